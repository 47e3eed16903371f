"""The timing simulation driven without QEMU: caches, prefetcher, DRAM, TLB, branches, threads keep the profile's facts.

`simulator_driver.c` makes the accesses; every test loads a library of its own, whose caches are empty.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from targets.arm import chip, parts
from targets.arm.chip import HANDOVER_NS
from targets.profile import Dram, L2Cache, L3Cache, Profile, load_profile

KB, MB = 1 << 10, 1 << 20
LINE = chip.LINE_BYTES
FAR = 1 << 33  # an address of its own
DRIVER = Path(__file__).with_name("simulator_driver.c")
RESULTS = {"walks": ctypes.c_uint64, "open_chip": None}
PATIENT = 200.0  # cycles that an out-of-order core with a large window goes on without its data


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    if not shutil.which("gcc"):
        pytest.skip("needs gcc, as the emulator's set-up does")
    built = tmp_path_factory.mktemp("simulator") / "simulator.so"
    sources = [parts.SIMULATOR / name for name in ("caches.c", "memory.c", "branches.c", "schedule.c")]
    command = [*parts.COMPILE, f"-I{parts.SIMULATOR}", "-o", built, DRIVER, *sources, "-lm", "-lpthread"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return built


class Simulated:
    """The driver's functions on a chip of their own."""

    def __init__(self, library: Path, profile: Profile, cores: int) -> None:
        self._library = ctypes.CDLL(str(library))
        self.profile = profile
        self.open_chip(chip.packed(profile, cores), cores)

    def __getattr__(self, name: str) -> Callable[..., float]:
        function = getattr(self._library, name)
        function.restype = RESULTS.get(name, ctypes.c_double)
        kinds = {int: ctypes.c_uint64, float: ctypes.c_double, bytes: ctypes.c_char_p, bool: ctypes.c_bool}
        return lambda *arguments: function(*(kinds[type(value)](value) for value in arguments))

    def cycles(self, ns: float) -> float:
        return ns * self.profile.clock_ghz


@pytest.fixture
def simulated(library, tmp_path) -> Callable[..., Simulated]:
    """A chip made of a profile: a private copy of the library, since a process loads the same file only once."""
    made: list[Path] = []

    def make(profile: Profile, cores: int = 1) -> Simulated:
        copy = tmp_path / f"{len(made)}.so"
        shutil.copy(library, copy)
        made.append(copy)
        return Simulated(copy, profile, cores)

    return make


@pytest.fixture(scope="module")
def base() -> Profile:
    """A Cortex-A76 with plain caches: powers of two, nothing shared, and memory that is slow enough to matter."""
    return replace(
        load_profile("pixel-4-cpu"),
        l2=L2Cache(kib=256, ways=8, latency_ns=4.0, shared=False),
        l3=L3Cache(kib=2048, ways=16, latency_ns=15.0),
        dram=Dram(latency_ns=120.0, bandwidth_gb_s=10.0, shared_bandwidth_gb_s=None),
    )


def with_core(profile: Profile, **facts: object) -> Profile:
    return replace(profile, core=replace(profile.core, **facts))


def without_write_streaming(profile: Profile) -> Profile:
    return with_core(profile, write_streaming=replace(profile.core.write_streaming, l1_lines=0, l2_lines=0))


def writes_past_at_once(profile: Profile) -> Profile:
    return with_core(profile, write_streaming=replace(profile.core.write_streaming, l1_lines=4, l2_lines=8))


def bandwidth_limit(profile: Profile, lines: float) -> float:
    """Cycles that so many lines take at least between the chip and its memory."""
    return lines * LINE / profile.dram.bandwidth_gb_s * profile.clock_ghz


def test_a_chase_within_the_first_cache_never_waits(simulated, base):
    assert simulated(base).chase(FAR, 16 * KB // LINE, LINE) == pytest.approx(1, abs=1e-6)


def test_a_chase_sees_the_latency_of_the_level_it_fits_into(simulated, base):
    tlb = base.core.tlb.l2_latency_cycles
    for size, ns in ((base.l2.kib // 2, base.l2.latency_ns), (base.l3.kib // 2, base.l3.latency_ns)):
        chip = simulated(base)
        found, wanted = chip.chase(FAR, size * KB // LINE, LINE) - 1, chip.cycles(ns)
        assert 0.9 * wanted < found < 1.15 * wanted + tlb, f"{size} KiB"


def test_a_chase_through_memory_sees_its_latency_and_that_of_translation(simulated, base):
    chip = simulated(base)
    found, dram, l3 = chip.chase(FAR, 64 * MB // LINE, LINE) - 1, chip.cycles(120), chip.cycles(15)
    assert 0.9 * dram < found < 1.1 * dram + base.core.tlb.l2_latency_cycles + l3
    assert chip.walks(0) > 0


def test_without_a_third_cache_what_misses_the_second_comes_from_memory(simulated, base):
    chip = simulated(replace(base, l3=None))
    assert chip.chase(FAR, MB // LINE, LINE) - 1 > 0.7 * chip.cycles(120)


@pytest.mark.parametrize("pages_of", ["entries", "l2_entries", "neither"])
def test_translation_costs_what_the_level_of_the_tlb_says(simulated, base, pages_of):
    """A line in each page, no two in one set of the first cache."""
    tlb = base.core.tlb
    pages = {"entries": tlb.entries, "l2_entries": 2 * tlb.entries, "neither": 4 * tlb.l2_entries}[pages_of]
    chip = simulated(base)
    found = chip.chase(FAR, pages, 4 * KB + LINE) - 1
    if pages_of == "entries":
        assert found == pytest.approx(0, abs=0.2) and chip.walks(0) <= pages + 2
    elif pages_of == "l2_entries":
        assert 0.8 * tlb.l2_latency_cycles < found < 1.5 * tlb.l2_latency_cycles and chip.walks(0) <= pages + 2
    else:
        assert chip.walks(0) > 1.9 * pages and found > tlb.l2_latency_cycles


def test_independent_misses_overlap_as_far_as_there_are_line_fills(simulated, base):
    wide = replace(base, dram=Dram(latency_ns=120.0, bandwidth_gb_s=400.0, shared_bandwidth_gb_s=None), l3=None)
    rates = [simulated(with_core(wide, line_fills=fills)).scatter(256 * MB, 20_000, 400.0) for fills in (4, 8)]
    assert rates[0] == pytest.approx(wide.clock_ghz * 120 / 4, rel=0.25)
    assert rates[0] / rates[1] == pytest.approx(2, rel=0.1)


def test_a_core_that_waits_at_once_gains_nothing_from_line_fills(simulated, base):
    rates = [simulated(with_core(base, line_fills=fills)).scatter(256 * MB, 5_000, 0.0) for fills in (1, 32)]
    assert rates[0] == pytest.approx(rates[1], rel=0.02)


def test_data_that_is_needed_at_once_is_waited_for_whatever_else_is_on_its_way(simulated, base):
    chip = simulated(base)
    chip.touch(0, 1.0, 400.0, FAR, 8, False)
    at_once = chip.touch(0, 1.0, 0.0, 2 * FAR, 8, False)
    assert at_once > 0.9 * chip.cycles(120)


def test_what_is_shorter_late_than_the_core_can_go_on_costs_nothing(simulated, base):
    chip = simulated(base)
    small = base.l2.kib * KB // 2
    chip.sweep(0, FAR, 0, small, 1.0, 0.0)
    found = chip.sweep(0, FAR, 0, small, 1.0, PATIENT)
    assert found == pytest.approx(small / 16, rel=0.02)


@pytest.mark.parametrize("gb_s", [4.0, 12.0])
def test_a_copy_is_as_fast_as_the_memory(simulated, base, gb_s):
    memory = Dram(latency_ns=120.0, bandwidth_gb_s=gb_s, shared_bandwidth_gb_s=None)
    profile = writes_past_at_once(replace(base, dram=memory))
    size = 16 * MB
    found = simulated(profile).sweep(0, FAR, 2 * FAR, size, 0.5, PATIENT)
    assert found == pytest.approx(bandwidth_limit(profile, 2 * size / LINE), rel=0.1)


def test_a_read_stream_is_as_fast_as_the_memory(simulated, base):
    profile = replace(base, dram=Dram(latency_ns=120.0, bandwidth_gb_s=6.0, shared_bandwidth_gb_s=None))
    size = 16 * MB
    found = simulated(profile).sweep(0, FAR, 0, size, 0.5, PATIENT)
    assert found == pytest.approx(bandwidth_limit(profile, size / LINE), rel=0.1)


def test_the_prefetcher_hides_memory_from_a_core_that_cannot_wait(simulated, base):
    eager = replace(base, dram=Dram(latency_ns=120.0, bandwidth_gb_s=100.0, shared_bandwidth_gb_s=None))
    blind = with_core(eager, prefetch=replace(eager.core.prefetch, lines=0))
    size = 4 * MB
    found, alone = (simulated(profile).sweep(0, FAR, 0, size, 2.0, 0.0) for profile in (eager, blind))
    assert alone > 0.8 * size / LINE * simulated(base).cycles(120), "a miss a line"
    assert found < alone / 3


def test_write_streaming_saves_reading_what_is_overwritten(simulated, base):
    size, small = 16 * MB, replace(base, l3=None)
    read_first = simulated(without_write_streaming(small)).sweep(0, 0, FAR, size, 0.5, 0.0)
    past = simulated(writes_past_at_once(small)).sweep(0, 0, FAR, size, 0.5, 0.0)
    assert read_first / past == pytest.approx(2, rel=0.1)
    assert past == pytest.approx(bandwidth_limit(base, size / LINE), rel=0.1)


def test_two_cores_share_the_bandwidth(simulated, base):
    slow = replace(base, dram=Dram(latency_ns=120.0, bandwidth_gb_s=5.0, shared_bandwidth_gb_s=None))
    one, two = (simulated(slow, cores=2).read_together(n, 8 * MB, 0.5, PATIENT) for n in (1, 2))
    assert two / one == pytest.approx(2, rel=0.1)
    assert two == pytest.approx(bandwidth_limit(slow, 2 * 8 * MB / LINE), rel=0.1)
    narrow = replace(slow, dram=replace(slow.dram, shared_bandwidth_gb_s=2.5))
    assert simulated(narrow, cores=2).read_together(2, 8 * MB, 0.5, PATIENT) == pytest.approx(2 * two, rel=0.1)


@pytest.mark.parametrize("shared", [False, True])
def test_a_line_that_another_core_wrote_is_fetched_from_it(simulated, base, shared):
    """Whether or not the second cache is shared, another core's write takes the line away."""
    chip = simulated(replace(base, l2=replace(base.l2, shared=shared)), cores=2)
    for core in (0, 1):
        chip.touch(core, 1.0, 0.0, FAR + LINE, 8, False)
    chip.touch(0, 1e5, 0.0, FAR, 8, False)
    assert chip.touch(0, 1.0, 0.0, FAR, 8, False) == 1
    chip.touch(1, 1e6, 0.0, FAR, 8, True)
    chip.touch(0, 1e6, 0.0, FAR + LINE, 8, False)
    handed_over = chip.touch(0, 1.0, 0.0, FAR, 8, False) - 1
    wanted = chip.cycles(base.l2.latency_ns if shared else HANDOVER_NS)
    assert handed_over == pytest.approx(wanted, rel=0.2)
    chip.touch(0, 1.0, 0.0, FAR + LINE, 8, False)
    assert chip.touch(0, 1.0, 0.0, FAR, 8, False) == 1, "it has the line again"


def test_a_line_that_others_only_read_stays(simulated, base):
    chip = simulated(base, cores=2)
    for core in (0, 1):
        chip.touch(core, 1e5, 0.0, FAR, 8, False)
        chip.touch(core, 1e5, 0.0, FAR + LINE, 8, False)
    for core in (0, 1):
        assert chip.touch(core, 1.0, 0.0, FAR, 8, False) == 1


@pytest.mark.parametrize("trips", [2, 5, 12, 30])
def test_a_loop_of_few_trips_is_foreseen(simulated, base, trips):
    assert simulated(base).mispredicted_loop(40_000, trips) < 0.01


def test_a_long_loop_is_mispredicted_once_where_it_ends(simulated, base):
    assert simulated(base).mispredicted_loop(100_000, 500) < 2.5 / 500


def test_directions_at_random_are_mispredicted_half_the_time(simulated, base):
    assert 0.4 < simulated(base).mispredicted_loop(40_000, 0) < 0.6


def test_targets_in_turn_are_foreseen(simulated, base):
    assert simulated(base).mispredicted_targets(40_000, 1) == 0
    assert simulated(base).mispredicted_targets(40_000, 3) < 0.02


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_threads_take_turns_in_the_order_of_their_time(simulated, base, threads):
    """No thread is more than a quantum and a step ahead of another, however long its steps are."""
    lead = simulated(base, cores=threads).run_threads(threads, 200_000.0)
    assert lead <= 1000 + 2 * 10 * threads
