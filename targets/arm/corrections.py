"""What llvm-mca is told beside its own model of a core: where the model contradicts measured instructions.

A scheduling model serves a compiler and is not exact. Where an instruction was measured (throughput and latency on the
core itself, never the latency of a network), the core's file names the class and an instruction of the same model with
the measured cost and the same registers; that one is timed in its place.
"""

from __future__ import annotations

import re
from functools import lru_cache

from targets.core import Core, Correction

QUEUE = 128  # micro-operations between decoder and dispatch: enough that it never is what limits


def corrected(assembly: str, core: Core) -> str:
    """The text llvm-mca is given for one instruction, which may be several lines.

    Args:
        assembly: one instruction as llvm-mc writes it.
    """
    return _corrected(" ".join(assembly.split()), core.corrections) if core.corrections else assembly


def mca_options(core: Core) -> list[str]:
    """llvm-mca's options for the front end of `core`.

    A core decodes so many instructions a cycle and dispatches so many micro-operations. llvm-mca by itself knows only
    the second and never splits an instruction's over two cycles. In-order models ignore the options.
    """
    return [
        f"--micro-op-queue-size={QUEUE}",
        f"--decoder-throughput={core.dispatch_width}",
        f"--dispatch={core.dispatch_micro_ops}",
    ]


@lru_cache(maxsize=1 << 16)
def _corrected(line: str, corrections: tuple[Correction, ...]) -> str:
    for correction in corrections:
        if match := re.fullmatch(correction.pattern, line):
            return "\n".join(part.strip() for part in match.expand(correction.replacement).split(";"))
    return line
