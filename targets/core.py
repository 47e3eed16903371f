"""Typed loader of `cores/*.toml`: the design of a CPU core, the same in every chip that has it."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from targets.errors import nearest
from targets.facts import FactFile, between, invalid

CORES = Path(__file__).parent / "cores"


@dataclass(frozen=True)
class Prefetch:
    """The hardware prefetcher in front of the first data cache."""

    streams: int = between(0, 64)  # it follows at a time
    lines: int = between(0, 64)  # it runs ahead of a stream
    crosses_pages: bool  # by virtual address; else it learns a stream anew in every page of 4 KB


@dataclass(frozen=True)
class Tlb:
    """Translation of data addresses, pages of 4 KB."""

    entries: int = between(4, 256)
    l2_entries: int = between(64, 4096)
    l2_latency_cycles: int = between(1, 40)  # more, where the first level has no entry


@dataclass(frozen=True)
class WriteStreaming:
    """After how many whole lines written in a row writes pass by a cache without reading the line; 0: never."""

    l1_lines: int = between(0, 1024)
    l2_lines: int = between(0, 1024)


@dataclass(frozen=True, eq=False)
class Correction:
    """A class of instructions that the LLVM model times otherwise than the core was measured to."""

    pattern: str  # regular expression that matches the whole instruction, "mnemonic operands"
    replacement: str  # what the model times in its place, as `re.sub` fills it in; ";" parts several instructions
    source: str  # what the model says, what was measured, and where


@dataclass(frozen=True, eq=False)
class IssueRule:
    """What a class of instructions needs to issue on an in-order core. The first rule that matches is the rule."""

    match: str  # regular expression on the start of "mnemonic operands"
    source: str
    latency: int = 1  # cycles until another instruction may read the result
    forward: int = 0  # cycles until the next accumulation into the same register; 0: `latency`
    later: int = 0  # cycles more for each further register of a load
    late: int = 0  # cycles after issue at which it needs what it stores or inserts; one more for each further register
    lanes: int = 0  # 64-bit floating-point lanes, in the cycle of issue
    pipe: str = ""  # the pipe that is taken for `cycles`; empty: none
    cycles: int = 1
    first: bool = False  # issues only as the first instruction of a cycle
    alone: bool = False  # nothing else issues for `cycles`
    shadow: int = 0  # cycles after issue at which no vector load may issue
    shadowed: bool = False  # it is such a vector load


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
    dispatch_width: int = between(1, 16)  # instructions a cycle that the front end decodes
    dispatch_micro_ops: int = between(1, 32)  # micro-operations a cycle that it hands to the schedulers
    window: int = between(0, 1024)  # micro-operations in flight; 0 for an in-order core
    scheduler: int = between(0, 1024)  # vector micro-operations that wait to be issued; 0 for an in-order core
    store_buffer: int = between(1, 128)  # stores of up to 16 bytes that wait for their line
    mispredict_cycles: int = between(1, 40)
    line_fills: int = between(1, 128)  # outstanding fills of first-level data cache lines
    l2_fills: int = between(1, 128)  # outstanding fills of second-level cache lines, on behalf of this core
    l2_bytes_per_cycle: float = between(1, 128)  # from the second-level cache to the first
    prefetch: Prefetch
    write_streaming: WriteStreaming
    tlb: Tlb
    corrections: tuple[Correction, ...]  # where measured instructions contradict the LLVM model
    issue: tuple[IssueRule, ...]  # how an in-order core issues, where that was measured; else empty: LLVM's model
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
    corrections = _read_rules(path, Correction, file.facts.pop("corrections", []), "corrections")
    issue = file.facts.pop("issue", [])
    sibling = load_core(issue, asked_by=path) if isinstance(issue, str) else None  # the same design, other options
    facts = file.read(Core, without=("corrections", "issue", "version_text", "sources", "unknown"))
    file.require_sources(facts)
    if facts["in_order"] != (facts["window"] == 0):
        raise invalid(path, "window is 0 for an in-order core and above 0 for any other")
    return Core(
        **facts,
        corrections=corrections,
        issue=sibling.issue if sibling else _read_rules(path, IssueRule, issue, "issue"),
        version_text=file.text + (sibling.version_text if sibling else ""),
        sources=file.sources,
        unknown=file.unknown,
    )


Rule = TypeVar("Rule", Correction, IssueRule)


def _read_rules(path: Path, kind: type[Rule], tables: Any, name: str) -> tuple[Rule, ...]:
    """An array of tables, each with the fields of `kind`, those with a default being optional."""
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise invalid(path, f"{name} is an array of tables: [[{name}]]")
    hints, entries = get_type_hints(kind), dataclasses.fields(kind)
    needed = {entry.name for entry in entries if entry.default is dataclasses.MISSING}
    for index, table in enumerate(tables, 1):
        if missing := sorted(needed - table.keys()):
            raise invalid(path, f"{name} {index} is missing: {', '.join(missing)}")
        for key, value in table.items():
            if key not in hints or type(value) is not hints[key]:
                raise invalid(path, f"{name} {index}: {key} = {value!r} is no field of it, or not of its type")
        try:
            re.compile(table[entries[0].name])
        except re.error as error:
            raise invalid(path, f"{name} {index}: {entries[0].name} is no regular expression: {error}") from error
    return tuple(kind(**table) for table in tables)
