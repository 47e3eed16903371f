"""Renders a run as one HTML file that needs nothing else: no script, no font, no image, no network.

The page says what was asked, what was measured, what was changed and how to do it again. Values are escaped by the
template engine; the page's own content policy forbids loading anything.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jinja2

from reports import limits, operators, plots, quantities
from reports.comparison import compare_layers
from reports.depth import error_by_depth
from reports.matrix import MatrixRecord
from reports.measured import QualityRecord
from reports.records import CandidateRecord, RunRecord
from reports.verification import CulpritRecord, ParityRecord

_VERDICTS = {
    "met": ("✓", "Target met"),
    "not-met": ("✗", "Target not met"),
    "undecided": ("?", "Undecided"),
    "verification-failed": ("!", "Verification failed"),
}
_OUTCOMES = {
    "base": "■ base",
    "met": "● met",
    "above": "▲ above",
    "undecided": "◆ undecided",
    "failed": "✕ failed",
}
_LEVELS = {
    "program": "exported program",
    "host": "this machine",
    "emulator": "emulated phone",
    "gpu": "GPU delegate",
}
_PARITY = {"passed": ("✓", "good"), "failed": ("✗", "bad"), "not run here": ("–", "quiet")}
_FILTERS = ("milliseconds", "percent", "points", "against_target", "size", "count", "duration", "significant")
_SPELLINGS = (
    "interval",
    "percent_interval",
    "speedup",
    "change",
    "measured",
    "measured_interval",
    "quality_interval",
    "quality_change",
    "quality_change_interval",
    "drop",
)
_CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n\r"}


def render(run: RunRecord) -> str:
    """The report as HTML text (UTF-8).

    The schema version was checked when the record was made: `RunRecord` exists only in this version's schema.
    """
    sign, verdict = _VERDICTS[run.verdict]
    after = run.chosen
    rows = compare_layers(run.base.layers, after.layers, after.edits) if after and after.index and after.layers else []
    slowest_ms = max(
        (layer.predicted_ms or 0.0 for row in rows for layer in (row.before, row.after) if layer), default=0.0
    )
    points = _points(run)
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            run=run,
            base=run.base,
            after=after,
            sign=sign,
            verdict=verdict,
            outcomes=_OUTCOMES,
            layer_rows=rows,
            slowest_ms=slowest_ms,
            broken_down=(broken_down := _broken_down(run)),
            used_bounds={each.bound for _, candidate, _ in broken_down for each in candidate.operators[:-1]},
            plot_wide=_plot(run, points, 720, 400),
            plot_narrow=_plot(run, points, 348, 330),
            fronted=sum(point.front for point in points) > 1,
            plotted={point.outcome for point in points},
            marker=plots.marker,
            levels=_LEVELS,
            verdict_sign={verdict: sign for verdict, (sign, _) in _PARITY.items()},
            verdict_class={verdict: look for verdict, (_, look) in _PARITY.items()},
        )
    )


def render_matrix(record: MatrixRecord) -> str:
    """The page over the runs of several targets, as HTML text (UTF-8); it links to theirs."""
    return (
        _environment()
        .get_template("matrix.html.jinja")
        .render(
            matrix=record,
            met=len(record.met) == len(record.rows),
            verdicts=_VERDICTS,
            names=[row.target.name for row in record.rows],
            signs=limits.SIGNS,
        )
    )


def render_failed(title: str, parity: ParityRecord, culprit: CulpritRecord | None) -> str:
    """What is known of an artifact that failed parity, as HTML text (UTF-8)."""
    plot = error_by_depth(culprit) if culprit and culprit.blocks else ""
    template = _environment().get_template("failed.html.jinja")
    return template.render(title=title, parity=parity, culprit=culprit, plot=plot, levels=_LEVELS)


def _environment() -> jinja2.Environment:
    """Strict (an unknown name is an error) and escaping; the filters are the spellings of `quantities`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_legible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in _FILTERS:
        environment.filters[name] = _unbroken(getattr(quantities, name))
    environment.filters["edge_cases"] = _edge_cases
    for name in ("why", "dearest", "kind_of", "where"):
        environment.globals[name] = getattr(operators, name)
    environment.globals["bounds"] = operators.BOUND_BY
    for name in _SPELLINGS:
        environment.globals[name] = _unbroken(getattr(quantities, name))
    environment.globals.update(spelled=_unbroken(quantities.quality), limits=limits)
    return environment


def _edge_cases(parity: ParityRecord) -> str:
    """How many passed, and the names of those that did not."""
    failed = [each.name for each in parity.edge_cases if each.verdict == "failed"]
    passed = sum(each.verdict == "passed" for each in parity.edge_cases)
    return f"✗ {', '.join(failed)}" if failed else f"{passed} passed" if parity.edge_cases else "–"


def _broken_down(run: RunRecord) -> list[tuple[str, CandidateRecord, float]]:
    """(title, candidate, milliseconds) of the base and of what was chosen, where their operators are known."""
    after = run.chosen if run.chosen and run.chosen.index else None
    titles = [("Before" if after else "The original", run.base)]
    if after:
        titles.append(("After", after))
    return [
        (title, candidate, sum(each.milliseconds for each in candidate.operators))
        for title, candidate in titles
        if candidate.operators
    ]


def _unbroken(spell: Callable[..., str]) -> Callable[..., str]:
    """The same spelling with no-break spaces: a number never parts from its unit at the end of a line."""
    return lambda *values: spell(*values).replace(" ", "\u00a0")


def _legible(value: object) -> object:
    """Control characters, which HTML does not allow, become the replacement character."""
    return value.translate(_CONTROLS) if isinstance(value, str) else value


def _points(run: RunRecord) -> list[plots.Point]:
    """Every candidate with a latency and a quality of the shown metric; two metrics never share an axis."""
    shown = _shown(run)
    points = []
    for candidate in run.probes:
        measured, quality = run.primary(candidate), candidate.quality
        if measured is None or quality is None or quality.metric != shown.metric or candidate.failure:
            continue
        points.append(
            plots.Point(
                label=_label(run, candidate),
                x_ms=measured.median_ms,
                low_ms=measured.low_ms,
                high_ms=measured.high_ms,
                y=quality.value,
                y_low=quality.low,
                y_high=quality.high,
                outcome=candidate.verdict,
                chosen=candidate is run.chosen,
                front=candidate.index in run.front,
                link=f"candidate-{candidate.index}",
            )
        )
    return points


def _shown(run: RunRecord) -> QualityRecord | None:
    """The quality whose metric is plotted: the newest candidate's."""
    return next((probe.quality for probe in reversed(run.probes) if probe.quality), None)


def _label(run: RunRecord, candidate: CandidateRecord) -> str:
    if candidate.index == 0:
        return "base"
    if candidate.index == run.winner:
        return f"#{candidate.index} winner"
    closest = run.winner is None and candidate.index == run.best
    return f"#{candidate.index} closest" if closest else f"#{candidate.index}"


def _plot(run: RunRecord, points: list[plots.Point], width: int, height: int) -> str | None:
    if not points:
        return None
    shown = _shown(run)
    return plots.latency_quality(
        points,
        target_ms=run.goal.latency_ms,
        floor=run.floor,
        metric=shown.metric,
        unit=shown.unit,
        higher_is_better=shown.higher_is_better,
        width=width,
        height=height,
    )
