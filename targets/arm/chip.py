"""The emulated chip in the terms of the timing simulation: a profile's facts, in cycles of its core."""

from __future__ import annotations

import struct

from targets.profile import Profile

LINE_BYTES = 64
# From waking a thread to its first instruction. Not measured: a timer wakes a Raspberry Pi 4 at most 17 us late
# (faschingbauer.me). The runtimes' threads spin for longer than an inference before they sleep, so it hardly counts.
WAKE_US = 5.0
# A line that another core holds: nviennot/core-to-core-latency, 58 to 70 ns on Snapdragon 850 and 855, 90 on BCM2711.
HANDOVER_NS = 65.0


def packed(profile: Profile, threads: int = 1) -> bytes:
    """`struct machine` of simulator.h.

    Args:
        threads: on as many cores; from two on, memory serves them together what was measured with all.
    """
    core, ghz = profile.core, profile.clock_ghz
    l1, l2, l3, dram = profile.l1d, profile.l2, profile.l3, profile.dram
    measured_together = dram.shared_bandwidth_gb_s is not None
    bandwidth = dram.shared_bandwidth_gb_s if threads > 1 and measured_together else dram.bandwidth_gb_s
    fields = (
        core.mispredict_cycles,
        core.line_fills,
        core.l2_fills,
        core.prefetch.streams,
        core.prefetch.lines,
        core.prefetch.crosses_pages,
        core.write_streaming.l1_lines,
        core.write_streaming.l2_lines,
        core.store_buffer,
        HANDOVER_NS * ghz,
        WAKE_US * 1e3 * ghz,
        core.tlb.entries,
        core.tlb.l2_entries,
        core.tlb.l2_latency_cycles,
        l1.kib,
        l1.ways,
        l2.kib,
        l2.ways,
        l2.latency_ns * ghz,
        l2.shared,
        LINE_BYTES / core.l2_bytes_per_cycle,
        l3.kib if l3 else 0,
        l3.ways if l3 else 1,
        l3.latency_ns * ghz if l3 else 0,
        dram.latency_ns * ghz,
        LINE_BYTES / bandwidth * ghz,
    )
    return struct.pack(f"={len(fields)}d", *fields)
