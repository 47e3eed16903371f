"""Target profiles as text: one line each, or one in full with its sources, its gaps and how far it was checked."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

import targets
from targets.core import Core
from targets.cost import RelativeError
from targets.profile import Profile

PUBLISHED = Path(targets.__file__).parent / "validation/results.json"
STAND_IN = "≈"  # before a value that stands in for an unknown one
GENERIC = "generic-"


@dataclass(frozen=True)
class Checked:
    """How far emulated latencies were from published ones, on every published case with one core."""

    cases: int
    median_percent: float
    worst_percent: float

    @classmethod
    def of(cls, core: Core, path: Path = PUBLISHED) -> Checked | None:
        """The record of `core`; None where no published latency was checked."""
        cases = json.loads(path.read_text(encoding="utf-8"))["cases"] if path.exists() else []
        errors = [
            100 * abs(case["emulated_ms"] / case["published_ms"] - 1)
            for case in cases
            if case["core"].casefold() == core.name.casefold()
        ]
        return cls(len(errors), statistics.median(errors), max(errors)) if errors else None


@dataclass(frozen=True)
class Fact:
    """One line of a profile: what it says, and the fields it says it of."""

    label: str
    value: str
    fields: tuple[str, ...]


def profile_table(profiles: Iterable[Profile]) -> Table:
    """One line a profile: this machine, then devices, then generic phones."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("target", no_wrap=True)
    table.add_column("device")
    table.add_column("core", no_wrap=True)
    table.add_column("GHz", justify="right")
    table.add_column("threads", justify="right")
    rank = 0
    for profile in sorted(profiles, key=_order):
        if _order(profile)[0] != rank:
            rank = _order(profile)[0]
            table.add_row()
        if profile.core is None:
            table.add_row(profile.name, profile.device, "by the clock", "", "")
        else:
            clock = f"{profile.clock_ghz:.2f}"
            table.add_row(profile.name, profile.device, profile.core.name, clock, str(profile.cores))
    return table


def _order(profile: Profile) -> tuple[int, list[tuple[int, str]]]:
    """Numbers within a name count as numbers: A78 before A510."""
    rank = 0 if profile.core is None else 2 if profile.name.startswith(GENERIC) else 1
    parts = re.findall(r"\d+|\D+", profile.name)
    return rank, [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def profile_view(
    profile: Profile, checked: Checked | None, cost_errors: Mapping[str, RelativeError | None]
) -> list[RenderableType]:
    """A profile in full.

    Args:
        cost_errors: format -> the error that the table of operator costs states, None where there is no table.
    """
    head = Text.assemble((profile.name, "bold"), "  ", profile.title)
    if profile.core is None:
        return [head, Text(), Text(profile.notes)]
    notes = _Notes()
    gaps: list[tuple[str, str]] = []
    parts = [head, Text(f"{profile.soc} · version {profile.version}", "dim"), Text(profile.notes)]
    for title, facts, described in (
        ("core", core_facts(profile.core), profile.core),
        ("clock", clock_facts(profile), profile),
        ("caches", cache_facts(profile), profile),
        ("memory", memory_facts(profile), profile),
    ):
        rows: list[tuple[str, str | Text]] = []
        for fact in facts:
            why = list(dict.fromkeys(described.unknown[field] for field in fact.fields if field in described.unknown))
            gaps += [(fact.label, reason) for reason in why]
            numbers = notes.numbers(described.sources[field] for field in fact.fields)
            value = Text.assemble((f"{STAND_IN} " if why else "", "yellow"), fact.value, (f"  {numbers}", "dim"))
            rows.append((fact.label, value))
        parts += _section(title, rows)
    parts += _section("how far to trust it", _trust(profile, checked, cost_errors))
    if gaps:
        parts += _section(f"not known, marked {STAND_IN}", gaps)
    return parts + _section("sources", [(f"{number:>4}", source) for number, source in enumerate(notes.sources, 1)], 4)


def core_facts(core: Core) -> list[Fact]:
    """The design of the core."""
    order = "in order" if core.in_order else f"out of order, {core.window} in flight"
    return [
        Fact("design", f"{core.name}, {order}", ("name", "in_order", "window")),
        Fact("front end", f"{core.dispatch_width} micro-operations a cycle", ("dispatch_width",)),
        Fact("misprediction", f"{core.mispredict_cycles} cycles", ("mispredict_cycles",)),
        Fact("misses", f"{core.line_fills} lines in flight", ("line_fills",)),
        Fact(
            "prefetcher",
            f"{core.prefetch.streams} streams, {core.prefetch.lines} lines ahead",
            ("prefetch.streams", "prefetch.lines"),
        ),
        Fact("timed as", f"{core.mca_cpu} (LLVM){_corrected(core)}", ("mca_cpu",)),
        Fact("emulated as", f"{core.qemu_cpu} (QEMU)", ("qemu_cpu",)),
        Fact("reported as", f"MIDR {core.implementer:#04x} {core.midr_part:#05x}", ("implementer", "midr_part")),
        Fact("features", " ".join(core.features), ("features",)),
    ]


def clock_facts(profile: Profile) -> list[Fact]:
    """The cluster the core stands in."""
    threads = "one thread" if profile.cores == 1 else f"up to {profile.cores} threads"
    cores = "one core" if profile.cores == 1 else f"{profile.cores} cores"
    return [
        Fact("frequency", f"{profile.clock_ghz:g} GHz", ("core", "clock_ghz")),
        Fact("cluster", f"{cores}, {threads}", ("cores",)),
    ]


def cache_facts(profile: Profile) -> list[Fact]:
    """The caches from the core outwards, a line for each size and each latency."""
    sharing = "shared by the cluster" if profile.l2.shared else "one a core"
    facts = [
        Fact("L1 data", _size(profile.l1d), ("l1d.kib", "l1d.ways")),
        Fact("L2", f"{_size(profile.l2)}, {sharing}", ("l2.kib", "l2.ways", "l2.shared")),
        Fact("L2 latency", f"{profile.l2.latency_ns:g} ns", ("l2.latency_ns",)),
    ]
    if profile.l3:
        facts += [
            Fact("L3", _size(profile.l3), ("l3.kib", "l3.ways")),
            Fact("L3 latency", f"{profile.l3.latency_ns:g} ns", ("l3.latency_ns",)),
        ]
    return facts


def memory_facts(profile: Profile) -> list[Fact]:
    """Main memory."""
    return [
        Fact("DRAM latency", f"{profile.dram.latency_ns:g} ns", ("dram.latency_ns",)),
        Fact("DRAM bandwidth", f"{profile.dram.bandwidth_gb_s:g} GB/s, reads and writes", ("dram.bandwidth_gb_s",)),
    ]


def profile_json(
    profile: Profile, checked: Checked | None, cost_errors: Mapping[str, RelativeError | None]
) -> dict[str, Any]:
    """The same for a program: every field, with its source."""
    facts = asdict(profile)
    if profile.core:
        del facts["core"]["version_text"]
    errors = {format: asdict(error) if error else None for format, error in cost_errors.items()}
    return facts | {"checked": asdict(checked) if checked else None, "cost_errors": errors}


def _corrected(core: Core) -> str:
    rules = len(core.corrections) + len(core.issue)
    return f", {rules} classes of instructions as measured" if rules else ""


def _trust(
    profile: Profile, checked: Checked | None, cost_errors: Mapping[str, RelativeError | None]
) -> list[tuple[str, str]]:
    if checked is None:
        rows = [("latencies", "no published latency was checked for this core")]
    else:
        cases = f"{checked.cases} published case{'s' * (checked.cases != 1)} with a {profile.core.name}"
        errors = f"median error {checked.median_percent:.1f} %, worst {checked.worst_percent:.1f} %"
        rows = [("latencies", f"{cases}: {errors}")]
    for format, error in cost_errors.items():
        state = (
            f"median error {100 * error.median:.1f} %, nine of ten within {100 * error.p90:.1f} %"
            if error
            else f"no table is shipped; `planish targets cost {profile.name}` builds it"
        )
        rows.append((f"operators, {format}", state))
    return rows


def _size(cache: Any) -> str:
    size = f"{cache.kib / 1024:g} MiB" if cache.kib >= 1024 else f"{cache.kib} KiB"
    return f"{size}, {cache.ways}-way"


def _section(title: str, rows: Sequence[tuple[str, str | Text]], label_width: int = 17) -> list[RenderableType]:
    """A heading and two columns, of which the second wraps."""
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0), expand=True)
    table.add_column(style="dim", width=label_width + 2, no_wrap=True)
    table.add_column(ratio=1)
    for label, value in rows:
        table.add_row(f"  {label}", value)
    return [Text(), Text(title, "bold"), table]


class _Notes:
    """Sources in the order they are first named, each once."""

    def __init__(self) -> None:
        self.sources: list[str] = []

    def numbers(self, sources: Iterable[str]) -> str:
        """`[1, 3]`, adding what is new."""
        found: list[int] = []
        for source in sources:
            if source not in self.sources:
                self.sources.append(source)
            found.append(self.sources.index(source) + 1)
        return f"[{', '.join(map(str, sorted(set(found))))}]"
