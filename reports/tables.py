"""Probes and summaries as text: tables that shed columns rather than break, and one-line forms for logs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from reports import limits, quantities
from reports.measured import MeasurementRecord
from reports.records import AdviceRecord, CandidateRecord, GoalRecord, LimitRecord, RunRecord, TargetRecord
from reports.streams import printable

_GAP = 2
_STYLES = {"base": "dim", "met": "green", "above": "red", "undecided": "yellow", "failed": "bold red"}
_SIGNS = {"base": "■", "failed": "✕", **limits.SIGNS}
VERDICTS = {
    "met": ("met", "bold green"),
    "not-met": ("not met", "bold red"),
    "undecided": ("undecided", "bold yellow"),
    "verification-failed": ("verification failed", "bold red"),
}
# What a narrow terminal gives up, in this order; the columns of further limits go before the last.
_SHED = ("interval", "lost", "predicted", "budget", "change", "quality")
_LAST = "vs target"

Rows = list[dict[str, str]]


def decisive(probe: CandidateRecord, goal: GoalRecord | None) -> MeasurementRecord | None:
    """The measurement that decides; before a goal is known, the first one."""
    if goal is not None:
        return goal.deciding(probe)
    return probe.measurements[0] if probe.measurements else None


def further(goal: GoalRecord | None) -> list[LimitRecord]:
    """The limits beside the first one on the median latency."""
    return [limit for limit in goal.limits if limit is not goal.latency] if goal else []


def probe_table(probes: Sequence[CandidateRecord], goal: GoalRecord | None, width: int, earlier: int = 0) -> Table:
    """One row a probe: `#  budget  predicted  measured  vs target  quality  verdict`, as wide as fits.

    Every limit beyond the first latency has a column of its own; `vs target` is the limit that is farthest from met.

    Args:
        probes: the rows to show.
        width: columns of the terminal.
        earlier: leave out that many rows from the front and say so.
    """
    first = limits.short(goal.latency, goal) if goal and goal.latency else "measured"
    others = {limits.short(limit, goal): limit for limit in further(goal)}
    rows: Rows = []
    for probe in probes[earlier:]:
        measured, quality = decisive(probe, goal), probe.quality
        rows.append(
            {
                "#": str(probe.index),
                "budget": quantities.milliseconds(probe.budget_ms),
                "predicted": quantities.milliseconds(probe.predicted_ms),
                first: quantities.milliseconds(measured.median_ms if measured else None),
                "interval": quantities.interval(measured.low_ms, measured.high_ms) if measured else "",
                **{name: _measured(probe, limit) for name, limit in others.items()},
                "vs target": quantities.against_target(probe.margin_percent),
                "quality": quantities.quality(quality.value, quality.unit) if quality else quantities.MISSING,
                "lost": _change(probe),
                "verdict": f"{_SIGNS[probe.outcome]} {probe.outcome}",
            }
        )
    names = ["#", "budget", "predicted", first, "interval", *others, "vs target", "quality", "lost", "verdict"]
    names = fitting(rows, names, width, (*_SHED, *reversed(others), _LAST))
    table = Table(
        box=None,
        padding=(0, _GAP, 0, 0),
        pad_edge=False,
        header_style="dim",
        title=f"… {earlier} earlier" if earlier else None,
        title_justify="left",
        title_style="dim",
    )
    for name in names:
        table.add_column(
            "" if name in ("interval", "lost") else name,
            no_wrap=True,
            overflow="ellipsis",
            justify="left" if name in ("verdict", "interval", "lost") else "right",
            style="dim" if name in ("predicted", "interval", "lost", "budget") else "",
        )
    for probe, row in zip(probes[earlier:], rows, strict=True):
        table.add_row(*(Text(row[name], style=_STYLES[probe.outcome] if name == "verdict" else "") for name in names))
    return table


def _measured(probe: CandidateRecord, limit: LimitRecord) -> str:
    outcome = probe.against(limit)
    return quantities.measured(outcome.value, outcome.unit) if outcome else quantities.MISSING


def _change(probe: CandidateRecord) -> str:
    quality = probe.quality
    return "" if quality is None or quality.change is None else quantities.quality_change(quality.change, quality.unit)


def _change_with_interval(probe: CandidateRecord) -> str:
    interval, unit = probe.quality.change_interval, probe.quality.unit
    return _change(probe) + (f" {quantities.quality_change_interval(*interval, unit)}" if interval else "")


def probe_line(probe: CandidateRecord, goal: GoalRecord | None) -> str:
    """A probe in one line, for logs."""
    measured, quality = decisive(probe, goal), probe.quality
    first = limits.short(goal.latency, goal) if goal and goal.latency else "measured"
    parts = []
    if probe.budget_ms is not None:
        parts.append(f"budget {quantities.milliseconds(probe.budget_ms)}")
    if probe.predicted_ms is not None:
        parts.append(f"predicted {quantities.milliseconds(probe.predicted_ms)}")
    if measured is not None:
        parts.append(
            f"{first} {quantities.milliseconds(measured.median_ms)} "
            f"{quantities.interval(measured.low_ms, measured.high_ms)}"
        )
    parts += [f"{limits.short(limit, goal)} {_measured(probe, limit)}" for limit in further(goal) if probe.outcomes]
    if probe.margin_percent is not None:
        parts.append(quantities.against_target(probe.margin_percent))
    if quality is not None:
        lost = f" ({_change(probe)})" if quality.change is not None else ""
        parts.append(f"{printable(quality.metric)} {quantities.quality(quality.value, quality.unit)}{lost}")
    if probe.failure is not None:
        parts.append(f"{probe.failure.code} {printable(probe.failure.what)}")
    return f"probe {probe.index}: " + ", ".join([*parts, probe.outcome])


def goal_line(targets: Sequence[TargetRecord], goal: GoalRecord) -> str:
    """What is asked for, in one line; one target is named first, several beside their limits."""
    parts = [f"target {targets[0].title}"] if len(targets) == 1 else []
    return printable(" · ".join([*parts, *limits.asked(targets, goal), f"{goal.primary_format} decides"]))


def summary(run: RunRecord, directory: Path, width: int) -> list[Table | Text]:
    """The end of a run: verdict, before and after, where the artifacts are, what to run next."""
    word, style = VERDICTS[run.verdict]
    lines: list[Table | Text] = [Text.assemble((f"{word}: " if run.headline else word, style), printable(run.headline))]
    rows = _summary_rows(run)
    if rows:
        lines += [Text(), _summary_table(rows, width)]
    if run.verdict == "not-met" and run.best is not None:
        lines.append(Text(f"candidate {run.best} is the closest and is kept", style="dim"))
    if run.chosen and run.chosen.quality and (doubt := limits.uncertainty(run.chosen.quality, run.goal.max_drop)):
        lines.append(Text(doubt, style="dim"))
    if run.advice:
        lines.append(Text())
        lines += [_advice(each) for each in run.advice]
    lines.append(Text())
    if run.chosen:
        lines += [place(each.format, directory / each.file) for each in run.chosen.exports]
    lines.append(place("report", directory / "report.html"))
    lines.append(place("next", printable(run.next_command or f"open {directory / 'report.html'}")))
    return lines


def _advice(advice: AdviceRecord) -> Text:
    return Text.assemble((printable(advice.option or advice.knob), "bold"), f"  {printable(advice.text)}")


def _summary_rows(run: RunRecord) -> Rows:
    """Latency, the other limits, quality, size, work: before, after, change; empty when nothing was measured."""
    before, chosen = run.primary(run.base), run.chosen
    after = run.primary(chosen) if chosen else None
    if before is None and after is None:
        return []
    moved = chosen is not None and chosen.index != 0 and after is not None
    first = run.goal.latency
    rows: Rows = [
        {
            "": f"latency {limits.short(first, run.goal)}" if first and len(run.targets) > 1 else "latency",
            "before": quantities.milliseconds(before.median_ms if before else None),
            "after": quantities.milliseconds(after.median_ms) if moved else "",
            "interval": quantities.interval(after.low_ms, after.high_ms) if moved else "",
            "change": quantities.speedup(before.median_ms, after.median_ms) if moved and before else "",
        }
    ]
    for limit in further(run.goal):
        if limit.quantity != "size":
            rows.append(_limit_row(run, limit, chosen if moved else None))
    if quality := (chosen.quality if moved else run.base.quality):
        rows.append(
            {
                "": {"agreement with the original": "agreement"}.get(quality.metric, printable(quality.metric)),
                "before": quantities.quality(quality.original, quality.unit),
                "after": quantities.quality(quality.value, quality.unit) if moved else "",
                "interval": quantities.quality_interval(quality.low, quality.high, quality.unit) if moved else "",
                "change": _change_with_interval(chosen) if moved else "",
            }
        )
    rows.append(
        {
            "": "size",
            "before": quantities.size(before.bytes if before else None),
            "after": quantities.size(after.bytes) if moved else "",
            "interval": "",
            "change": quantities.change(before.bytes, after.bytes) if moved and before else "",
        }
    )
    rows.append(
        {
            "": "MACs",
            "before": quantities.count(run.base.macs),
            "after": quantities.count(chosen.macs) if moved else "",
            "interval": "",
            "change": quantities.change(run.base.macs, chosen.macs) if moved else "",
        }
    )
    return rows


def _limit_row(run: RunRecord, limit: LimitRecord, moved: CandidateRecord | None) -> dict[str, str]:
    """Of a limit that no other row shows; `moved` is what the original became."""
    before, after = run.base.against(limit), moved.against(limit) if moved else None
    name = limits.short(limit, run.goal)
    compared = before is not None and after is not None and after.value > 0
    return {
        "": f"latency {name}" if limit.quantity == "latency" else name,
        "before": quantities.measured(before.value if before else None, limit.unit),
        "after": quantities.measured(after.value, limit.unit) if after else "",
        "interval": quantities.measured_interval(after.low, after.high, limit.unit) if after else "",
        "change": ""
        if not compared
        else quantities.speedup(before.value, after.value)
        if limit.unit == "ms"
        else quantities.change(before.value, after.value),
    }


def _summary_table(rows: Rows, width: int) -> Table:
    names = ["", "before", "after", "interval", "change"] if any(row["after"] for row in rows) else ["", "before"]
    names = fitting(rows, names, width, (*_SHED, _LAST))
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="dim")
    for name in names:
        table.add_column(
            "" if name in ("interval", "change") else name,
            no_wrap=True,
            overflow="ellipsis",
            justify="left" if name in ("", "interval", "change") else "right",
            style={"interval": "dim", "after": "bold"}.get(name, ""),
        )
    for row in rows:
        table.add_row(*(row[name] for name in names))
    return table


def fitting(rows: Rows, names: list[str], width: int, shed: Sequence[str]) -> list[str]:
    """The columns that fit, given up in the order of `shed`."""

    def needed(kept: list[str]) -> int:
        return sum(max([cell_len(name)] + [cell_len(row[name]) for row in rows]) + _GAP for name in kept) - _GAP

    kept = [name for name in names if name not in ("interval", "lost") or any(row[name] for row in rows)]
    for name in shed:
        if needed(kept) <= width:
            break
        kept = [each for each in kept if each != name]
    return kept


def place(label: str, what: object) -> Text:
    """Where something is: a line to copy from: never wrapped."""
    return Text.assemble((f"{label:<9} ", "dim"), str(what), no_wrap=True)
