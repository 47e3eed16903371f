"""The most a core can multiply and accumulate, by the same prices that time the artifacts."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from targets.arm.parts import Emulator
from targets.arm.pricing import Block, prices
from targets.core import Core

ACCUMULATORS = 24  # more than any core's latency times its multiply-accumulates a cycle
FMLA = 0x4E20CC00 | 31 << 16 | 30 << 5  # fmla vD.4s, v30.4s, v31.4s: 4 multiply-accumulates
SDOT = 0x4E809400 | 31 << 16 | 30 << 5  # sdot vD.4s, v30.16b, v31.16b: 16


@dataclass(frozen=True)
class Peak:
    """FLOP a cycle of one core, a multiply-accumulate being two. None for int8 without the dot product."""

    fp32: float
    int8: float | None


def peak(core: Core, emulator: Emulator) -> Peak:
    """From a loop of independent vector instructions of the kind.

    Raises:
        PlanishError: `TIMING_FAILED`.
    """
    words = [FMLA, SDOT] if "asimddp" in core.features else [FMLA]
    blocks = [
        Block(struct.pack(f"<{ACCUMULATORS}I", *(word | register for register in range(ACCUMULATORS))), ((index, 1),))
        for index, word in enumerate(words)
    ]
    cycles = [price.cycles / ACCUMULATORS for price in prices(blocks, emulator, core)]
    return Peak(8 / cycles[0], 32 / cycles[1] if len(cycles) > 1 else None)
