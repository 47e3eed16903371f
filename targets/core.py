"""Typed loader of `cores/*.toml`: the design of a CPU core, the same in every chip that has it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from targets.errors import nearest
from targets.facts import FactFile, between, invalid

CORES = Path(__file__).parent / "cores"


@dataclass(frozen=True)
class Prefetch:
    """The hardware prefetcher in front of the first data cache."""

    streams: int = between(0, 64)  # it follows at a time
    lines: int = between(0, 64)  # it runs ahead of a stream


@dataclass(frozen=True)
class Core:
    """One CPU core, as a runtime sees it and as the timing model needs it."""

    name: str  # "Cortex-A76"
    midr_part: int = between(1, 0xFFF)  # part number of MIDR_EL1, e.g. 0xd0b
    implementer: int = between(1, 0xFF)  # of MIDR_EL1: 0x41 Arm, 0x51 Qualcomm, 0x53 Samsung
    in_order: bool
    mca_cpu: str  # LLVM scheduling model that fits the core, not always the model of the same name
    qemu_cpu: str  # decides the hardware capabilities the runtime is told of
    features: tuple[str, ...]  # the "Features" line of /proc/cpuinfo
    dispatch_width: int = between(1, 16)  # micro-operations a cycle that the front end sustains
    window: int = between(0, 1024)  # micro-operations in flight; 0 for an in-order core
    mispredict_cycles: int = between(1, 40)
    line_fills: int = between(1, 128)  # outstanding fills of first-level data cache lines
    prefetch: Prefetch
    corrections: tuple[dict[str, Any], ...]  # where measured instructions contradict the LLVM model
    version_text: str  # the whole file, for the version of the profiles that name the core
    sources: dict[str, str]  # field -> where the value comes from
    unknown: dict[str, str]  # field -> why it is unknown, and what stands in


def load_core(name: str, *, asked_by: Path) -> Core:
    """The core whose file is called `name`, for the profile `asked_by`.

    Raises:
        UsageError: `PROFILE_INVALID`.
    """
    names = [path.stem for path in sorted(CORES.glob("*.toml"))]
    if name not in names:
        raise invalid(asked_by, f"core is '{name}', which has no file; {nearest(name, names)}known: {', '.join(names)}")
    return read_core(CORES / f"{name}.toml")


@cache
def read_core(path: Path) -> Core:
    """Parse and check one file.

    Raises:
        UsageError: `PROFILE_INVALID`.
    """
    file = FactFile.open(path)
    corrections = file.facts.pop("corrections", [])
    if not isinstance(corrections, list):
        raise invalid(path, "corrections is an array of tables: [[corrections]]")
    facts = file.read(Core, without=("corrections", "version_text", "sources", "unknown"))
    file.require_sources(facts)
    if facts["in_order"] != (facts["window"] == 0):
        raise invalid(path, "window is 0 for an in-order core and above 0 for any other")
    return Core(
        **facts,
        corrections=tuple(corrections),
        version_text=file.text,
        sources=file.sources,
        unknown=file.unknown,
    )
