"""Probes and summaries as text: tables that shed columns rather than break, and one-line forms for logs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from reports import quantities
from reports.records import CandidateRecord, GoalRecord, MeasurementRecord, RunRecord
from reports.streams import printable

_GAP = 2
_STYLES = {"base": "dim", "met": "green", "above": "red", "undecided": "yellow", "failed": "bold red"}
_SIGNS = {"base": "■", "met": "●", "above": "▲", "undecided": "◆", "failed": "✕"}
_VERDICTS = {
    "met": ("met", "bold green"),
    "not-met": ("not met", "bold red"),
    "undecided": ("undecided", "bold yellow"),
    "verification-failed": ("verification failed", "bold red"),
}
# What a narrow terminal gives up, in this order.
_SHED = ("interval", "lost", "predicted", "budget", "change", "quality", "vs target")

Rows = list[dict[str, str]]


def decisive(probe: CandidateRecord, goal: GoalRecord | None) -> MeasurementRecord | None:
    """The measurement that decides; before a goal is known, the first one."""
    if goal is not None:
        return probe.measurement(goal.primary_format)
    return probe.measurements[0] if probe.measurements else None


def lost_points(probe: CandidateRecord, base: CandidateRecord | None) -> float | None:
    """Quality lost against the base when both carry the same metric, in percentage points."""
    if probe.quality is None or base is None or base.quality is None or probe.index == 0:
        return None
    if probe.quality.metric != base.quality.metric:
        return None
    return base.quality.value_percent - probe.quality.value_percent


def probe_table(probes: Sequence[CandidateRecord], goal: GoalRecord | None, width: int, earlier: int = 0) -> Table:
    """One row a probe: `#  budget  predicted  measured  vs target  quality  verdict`, as wide as fits.

    Args:
        probes: the rows to show; the base is looked for among them to show what was lost.
        width: columns of the terminal.
        earlier: leave out that many rows from the front and say so.
    """
    base = next((probe for probe in probes if probe.index == 0), None)
    rows: Rows = []
    for probe in probes[earlier:]:
        measured, lost = decisive(probe, goal), lost_points(probe, base)
        rows.append(
            {
                "#": str(probe.index),
                "budget": quantities.milliseconds(probe.budget_ms),
                "predicted": quantities.milliseconds(probe.predicted_ms),
                "measured": quantities.milliseconds(measured.median_ms if measured else None),
                "interval": quantities.interval(measured.low_ms, measured.high_ms) if measured else "",
                "vs target": quantities.against_target(probe.margin_percent),
                "quality": quantities.percent(probe.quality.value_percent if probe.quality else None),
                "lost": "" if lost is None else quantities.points(-lost),
                "verdict": f"{_SIGNS[probe.outcome]} {probe.outcome}",
            }
        )
    names = _fitting(
        rows, ["#", "budget", "predicted", "measured", "interval", "vs target", "quality", "lost", "verdict"], width
    )
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


def probe_line(probe: CandidateRecord, goal: GoalRecord | None, base: CandidateRecord | None) -> str:
    """A probe in one line, for logs."""
    measured, lost = decisive(probe, goal), lost_points(probe, base)
    parts = []
    if probe.budget_ms is not None:
        parts.append(f"budget {quantities.milliseconds(probe.budget_ms)}")
    if probe.predicted_ms is not None:
        parts.append(f"predicted {quantities.milliseconds(probe.predicted_ms)}")
    if measured is not None:
        parts.append(
            f"measured {quantities.milliseconds(measured.median_ms)} "
            f"{quantities.interval(measured.low_ms, measured.high_ms)}"
        )
    if probe.margin_percent is not None:
        parts.append(quantities.against_target(probe.margin_percent))
    if probe.quality is not None:
        change = "" if lost is None else f" ({quantities.points(-lost)})"
        parts.append(f"{probe.quality.metric} {quantities.percent(probe.quality.value_percent)}{change}")
    if probe.failure is not None:
        parts.append(f"{probe.failure.code} {printable(probe.failure.what)}")
    return f"probe {probe.index}: " + ", ".join([*parts, probe.outcome])


def goal_line(target: str, goal: GoalRecord) -> str:
    """What is asked for, in one line."""
    parts = [f"target {printable(target)}", f"median ≤ {quantities.milliseconds(goal.latency_ms)}"]
    if goal.max_drop_points is not None:
        parts.append(f"at most {goal.max_drop_points:.2f} pt of quality lost")
    return " · ".join([*parts, f"{goal.primary_format} decides"])


def summary(run: RunRecord, directory: Path, width: int) -> list[Table | Text]:
    """The end of a run: verdict, before and after, where the artifacts are, what to run next."""
    word, style = _VERDICTS[run.verdict]
    lines: list[Table | Text] = [Text.assemble((f"{word}: " if run.headline else word, style), printable(run.headline))]
    rows = _summary_rows(run)
    if rows:
        lines += [Text(), _summary_table(rows, width)]
    if run.verdict == "not-met" and run.best is not None:
        lines.append(Text(f"candidate {run.best} is the closest and is kept", style="dim"))
    lines.append(Text())
    if run.chosen:
        lines += [_place(each.format, directory / each.file) for each in run.chosen.exports]
    lines.append(_place("report", directory / "report.html"))
    lines.append(_place("next", printable(run.next_command or f"open {directory / 'report.html'}")))
    return lines


def _summary_rows(run: RunRecord) -> Rows:
    """Latency, quality, size, work: before, after, change; empty when nothing was measured."""
    before, chosen = run.primary(run.base), run.chosen
    after = run.primary(chosen) if chosen else None
    if before is None and after is None:
        return []
    moved = chosen is not None and chosen.index != 0 and after is not None
    rows: Rows = [
        {
            "": "latency",
            "before": quantities.milliseconds(before.median_ms if before else None),
            "after": quantities.milliseconds(after.median_ms) if moved else "",
            "interval": quantities.interval(after.low_ms, after.high_ms) if moved else "",
            "change": quantities.speedup(before.median_ms, after.median_ms) if moved and before else "",
        }
    ]
    if quality := (chosen.quality if moved else run.base.quality):
        lost = run.drop_points(chosen) if moved else None
        label = "top-1" if quality.metric == "top-1" else "agreement"
        rows.append(
            {
                "": label,
                "before": quantities.percent(run.original_percent(quality.metric)),
                "after": quantities.percent(quality.value_percent) if moved else "",
                "interval": quantities.percent_interval(quality.low_percent, quality.high_percent) if moved else "",
                "change": quantities.points(-lost) if lost is not None else "",
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


def _summary_table(rows: Rows, width: int) -> Table:
    names = ["", "before", "after", "interval", "change"] if any(row["after"] for row in rows) else ["", "before"]
    names = _fitting(rows, names, width)
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


def _fitting(rows: Rows, names: list[str], width: int) -> list[str]:
    """The columns that fit, given up in the order of `_SHED`."""

    def needed(kept: list[str]) -> int:
        return sum(max([cell_len(name)] + [cell_len(row[name]) for row in rows]) + _GAP for name in kept) - _GAP

    kept = [name for name in names if name not in ("interval", "lost") or any(row[name] for row in rows)]
    for name in _SHED:
        if needed(kept) <= width:
            break
        kept = [each for each in kept if each != name]
    return kept


def _place(label: str, what: object) -> Text:
    """A line to copy from: never wrapped."""
    return Text.assemble((f"{label:<9} ", "dim"), str(what), no_wrap=True)
