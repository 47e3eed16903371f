"""Target profiles as text: one line each, or one in full with its sources, its gaps and how far it was checked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from targets.core import Core
from targets.cost import RelativeError
from targets.gpu.carried import is_measured, model_of
from targets.gpu.model import load
from targets.profile import Gpu, Profile
from targets.validation.validate import RESULTS, Agreement, agreement, grouped, order, read

STAND_IN = "≈"  # before a value that stands in for an unknown one
GENERIC = "generic-"
MODELLED = "modelled"


@dataclass(frozen=True)
class Checked:
    """How emulated latencies compare with published ones, over every published case with one core."""

    same_runtime: Agreement | None  # of the same runtime, whose latencies should agree
    other_cases: int  # of other runtimes, which should order networks alike
    other_correlation: float | None  # the lowest rank correlation among them; None where too few to order


def checked_cases(core: Core) -> Checked | None:
    """The record of `core`, from the last `planish targets validate`; None where no published latency was checked."""
    cases = [case for case in read().cases if case.core == core.name] if RESULTS.exists() else []
    same = [case for case in cases if case.comparable == "same runtime"]
    other = [case for case in cases if case.comparable == "other runtime"]
    orders = [order(group) for group in grouped(other, "profile", "threads", "runtime", "precision").values()]
    correlations = [one.rank_correlation for one in orders if one.rank_correlation is not None]
    if not cases:
        return None
    return Checked(agreement(same) if same else None, len(other), min(correlations, default=None))


@dataclass(frozen=True)
class Fact:
    """One line of a profile: what it says, and the fields it says it of."""

    label: str
    value: str
    fields: tuple[str, ...]


def profile_table(profiles: Iterable[Profile]) -> Table:
    """One line a profile: this machine, then devices, then GPUs, then generic phones."""
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
        if profile.gpu:
            clock = f"{profile.gpu.clock_mhz / 1000:.2f}"
            short = re.sub(r"^PowerVR | M[PC]\d+$", "", profile.gpu.name)
            table.add_row(profile.name, profile.device, short, clock, "model")  # in place of threads
        elif profile.core is None:
            table.add_row(profile.name, profile.device, "by the clock", "", "")
        else:
            clock = f"{profile.clock_ghz:.2f}"
            core = profile.core.name.partition(" (")[0]
            table.add_row(profile.name, profile.device, core, clock, str(profile.cores))
    return table


def _order(profile: Profile) -> tuple[int, list[tuple[int, str]]]:
    """Numbers within a name count as numbers: A78 before A510."""
    rank = 2 if profile.gpu else 0 if profile.core is None else 3 if profile.name.startswith(GENERIC) else 1
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
    if profile.gpu is None and profile.core is None:
        return [head, Text(), Text(profile.notes)]
    notes = _Notes()
    gaps: list[tuple[str, str]] = []
    told = Text(profile.notes)
    if "notes" in profile.sources:
        told.append(f"  {notes.numbers([profile.sources['notes']])}", "dim")
    parts = [head, Text(f"{profile.soc} · version {profile.version}", "dim"), told]
    for title, facts, described in _described(profile):
        rows: list[tuple[str, str | Text]] = []
        for fact in facts:
            why = list(dict.fromkeys(described.unknown[field] for field in fact.fields if field in described.unknown))
            gaps += [(fact.label, reason) for reason in why]
            numbers = notes.numbers(described.sources[field] for field in fact.fields)
            cited = (f"  {numbers}" if fact.fields else "", "dim")
            value = Text.assemble((f"{STAND_IN} " if why else "", "yellow"), fact.value, cited)
            rows.append((fact.label, value))
        parts += _section(title, rows)
    trust = gpu_trust(profile) if profile.gpu else _trust(profile, checked, cost_errors)
    parts += _section("how far to trust it", trust)
    if gaps:
        parts += _section(f"not known, marked {STAND_IN}", gaps)
    return parts + _section("sources", [(f"{number:>4}", source) for number, source in enumerate(notes.sources, 1)], 4)


def _described(profile: Profile) -> list[tuple[str, list[Fact], Profile | Core]]:
    """(heading, facts, whose sources they have) of everything a profile says."""
    if profile.gpu:
        return [("GPU", gpu_facts(profile.gpu), profile)]
    return [
        ("core", core_facts(profile.core), profile.core),
        ("clock", clock_facts(profile), profile),
        ("caches", cache_facts(profile), profile),
        ("memory", memory_facts(profile), profile),
    ]


def gpu_facts(gpu: Gpu) -> list[Fact]:
    """What the model of a GPU takes from the profile."""
    return [
        Fact("GPU", f"{gpu.name}, {gpu.architecture}", ("gpu.name", "gpu.architecture")),
        Fact("compute units", str(gpu.units), ("gpu.units",)),
        Fact("arithmetic", f"{gpu.lanes} multiply-adds in fp32 a clock", ("gpu.lanes",)),
        Fact("frequency", f"{gpu.clock_mhz:g} MHz", ("gpu.clock_mhz",)),
        Fact("bandwidth", f"{gpu.bandwidth_gb_s:g} GB/s at the most", ("gpu.bandwidth_gb_s",)),
        Fact("costs of kernels", gpu.constants, ("gpu.constants",)),
    ]


def gpu_trust(profile: Profile) -> list[tuple[str, str]]:
    """How far the model was from published inferences of networks it was not fitted on."""
    model, measured = model_of(profile), is_measured(profile.gpu)
    error = model.error
    whose = "this GPU" if measured else f"the GPU it is carried over from, {load(profile.gpu.constants).gpu}"
    return [
        (MODELLED, f"never measured: TFLite's GPU delegate in half precision, fitted on {model.source}"),
        (
            "networks",
            f"{error.networks} published ones on {whose}, none fitted on with its family left in: median error "
            f"{error.median:.1%}, nine of ten within {error.p90:.1%}, rank correlation {error.spearman:.3f}",
        ),
        ("interval", f"from {1 / model.interval:.2f} to {model.interval:.2f} times the figure, nine in ten"),
    ]


def core_facts(core: Core) -> list[Fact]:
    """The design of the core."""
    order = "in order" if core.in_order else f"out of order, {core.window} in flight"
    return [
        Fact("design", f"{core.name}, {order}", ("name", "in_order", "window")),
        Fact("decoders", f"{core.dispatch_width} instructions a cycle", ("dispatch_width",)),
        Fact("dispatch", f"{core.dispatch_micro_ops} micro-operations a cycle", ("dispatch_micro_ops",)),
        Fact("misprediction", f"{core.mispredict_cycles} cycles", ("mispredict_cycles",)),
        Fact("scheduler", _scheduler(core), ("scheduler",)),
        Fact("store buffer", f"{core.store_buffer} stores", ("store_buffer",)),
        Fact("misses", f"{core.line_fills} lines in flight", ("line_fills",)),
        Fact("L2 misses", f"{core.l2_fills} lines in flight", ("l2_fills",)),
        Fact("from L2 to L1", f"{core.l2_bytes_per_cycle:g} bytes a cycle", ("l2_bytes_per_cycle",)),
        Fact("prefetcher", _prefetcher(core), ("prefetch.streams", "prefetch.lines", "prefetch.crosses_pages")),
        Fact("write streaming", _streaming(core), ("write_streaming.l1_lines", "write_streaming.l2_lines")),
        Fact("translation", _translation(core), ("tlb.entries", "tlb.l2_entries", "tlb.l2_latency_cycles")),
        Fact("timed by", _timing(core), ("mca_cpu",)),
        Fact("emulated as", f"QEMU's {core.qemu_cpu}", ("qemu_cpu",)),
        Fact("reported as", f"MIDR {core.implementer:#04x} {core.midr_part:#05x}", ("implementer", "midr_part")),
        Fact("features", " ".join(core.features), ("features",)),
    ]


def _scheduler(core: Core) -> str:
    return f"{core.scheduler} vector micro-operations wait" if core.scheduler else "none, it issues in order"


def _prefetcher(core: Core) -> str:
    pages = "across pages" if core.prefetch.crosses_pages else "within a page of 4 KB"
    return f"{core.prefetch.streams} streams, {core.prefetch.lines} lines ahead, {pages}"


def _streaming(core: Core) -> str:
    levels = (("L1", core.write_streaming.l1_lines), ("L2", core.write_streaming.l2_lines))
    past = [f"past {level} after {lines} whole lines" for level, lines in levels if lines]
    return ", ".join(past) or "never"


def _translation(core: Core) -> str:
    tlb = core.tlb
    return f"{tlb.entries} pages at once, {tlb.l2_entries} more after {tlb.l2_latency_cycles} cycles"


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
    facts = [
        Fact("DRAM latency", f"{profile.dram.latency_ns:g} ns", ("dram.latency_ns",)),
        Fact("DRAM bandwidth", f"{profile.dram.bandwidth_gb_s:g} GB/s, reads and writes", ("dram.bandwidth_gb_s",)),
    ]
    if shared := profile.dram.shared_bandwidth_gb_s:
        facts.append(Fact("of several cores", f"{shared:g} GB/s together", ("dram.shared_bandwidth_gb_s",)))
    elif profile.cores > 1:
        facts.append(Fact("of several cores", f"{STAND_IN} as much together; no measurement was found", ()))
    return facts


def profile_json(
    profile: Profile, checked: Checked | None, cost_errors: Mapping[str, RelativeError | None]
) -> dict[str, Any]:
    """The same for a program: every field, with its source."""
    facts = asdict(profile)
    if profile.core:
        del facts["core"]["version_text"]
    errors = {format: asdict(error) if error else None for format, error in cost_errors.items()}
    told = facts | {"checked": asdict(checked) if checked else None, "cost_errors": errors}
    if profile.gpu is None:
        return told
    model = model_of(profile)
    return told | {"modelled": {"error": asdict(model.error), "interval": model.interval, "source": model.source}}


def _timing(core: Core) -> str:
    """What gives an instruction its cycles: LLVM's model, or rules for an in-order core."""
    if core.issue:
        return f"{len(core.issue)} rules of issue, from measurements where there are"
    corrected = f", {len(core.corrections)} classes of instructions corrected" if core.corrections else ""
    return f"LLVM's model {core.mca_cpu}{corrected}"


def _trust(
    profile: Profile, checked: Checked | None, cost_errors: Mapping[str, RelativeError | None]
) -> list[tuple[str, str]]:
    rows = [("latencies", said) for said in _said_of(checked)]
    for format, error in cost_errors.items():
        state = (
            f"median error {100 * error.median:.1f} %, nine of ten within {100 * error.p90:.1f} %"
            if error
            else f"no table is shipped; `planish targets cost {profile.name}` builds it"
        )
        rows.append((f"operators, {format}", state))
    return rows


def _said_of(checked: Checked | None) -> list[str]:
    if checked is None:
        return ["no published latency was checked for this core"]
    said = []
    if found := checked.same_runtime:
        cases = f"{found.count} published case{'s' * (found.count != 1)} with this core and runtime"
        said.append(f"{cases}: median error {found.median_error:.1%}, worst {found.worst_error:+.1%}")
    if checked.other_cases:
        order = "" if (low := checked.other_correlation) is None else f": rank correlation at least {low:.3f}"
        said.append(f"{checked.other_cases} published cases with this core and another runtime{order}")
    return said


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
