"""Two runs beside each other, as data: what was asked, what came of it, and what made the difference.

Latencies are put against each other only where they mean the same: the same original network, target, format, runner
and number of threads. Everything else is shown side by side, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from reports.comparison import compare_layers
from reports.measured import MeasurementRecord, QualityRecord
from reports.records import (
    CandidateRecord,
    EditRecord,
    LayerRecord,
    LimitRecord,
    OutcomeRecord,
    Quantity,
    RunRecord,
    Verdict,
)
from reports.schema import Count, Record


class ChangedRecord(Record):
    """Something that has another value in the second run; None where a run does not have it."""

    key: str
    a: JsonValue
    b: JsonValue


class SideRecord(Record):
    """One of the runs. What follows `handed_over` is of that candidate, the closest one where the goal was not met."""

    directory: str
    model: str
    targets: tuple[str, ...]
    verdict: Verdict
    exit_code: int
    headline: str
    seconds: float
    handed_over: Count | None
    parameters: Count | None
    macs: Count | None
    quality: QualityRecord | None


class GoalPairRecord(Record):
    """One limit, what was measured against it in each run, and whether it was met; None where a run had no such."""

    quantity: Quantity
    target: str | None
    a: LimitRecord | None
    b: LimitRecord | None
    reached_a: OutcomeRecord | None
    reached_b: OutcomeRecord | None


class LatencyPairRecord(Record):
    """The artifacts handed over in one format, measured on one target.

    `ratio` is the second median over the first, `overlap` whether their intervals do; both None where `why_not` says
    that the two cannot be compared, or one is missing.
    """

    target: str
    format: str
    a: MeasurementRecord | None
    b: MeasurementRecord | None
    ratio: float | None
    overlap: bool | None
    why_not: str = ""


class SizePairRecord(Record):
    """Bytes of the artifacts handed over in one format."""

    format: str
    a: Count | None
    b: Count | None


class LayerPairRecord(Record):
    """A layer that is not the same in the two networks handed over; None where a network does not have it."""

    name: str
    a: str | None
    b: str | None


class RunsComparedRecord(Record):
    """Two runs. `unlike` says why no latencies are compared; `quality_change` is the second value less the first."""

    a: SideRecord
    b: SideRecord
    unlike: str = ""
    recipe: tuple[ChangedRecord, ...]
    environment: tuple[ChangedRecord, ...]
    goals: tuple[GoalPairRecord, ...]
    latencies: tuple[LatencyPairRecord, ...]
    sizes: tuple[SizePairRecord, ...]
    quality_change: float | None
    quality_overlap: bool | None
    quality_why_not: str = ""
    layers: tuple[LayerPairRecord, ...]
    only_a: tuple[EditRecord, ...]
    only_b: tuple[EditRecord, ...]


def compare_runs(
    a: RunRecord,
    b: RunRecord,
    directories: tuple[str, str],
    recipes: tuple[Mapping[str, JsonValue], Mapping[str, JsonValue]],
) -> RunsComparedRecord:
    """The candidates handed over by two runs, beside what each was asked for.

    Args:
        directories: of the runs, as the user named them.
        recipes: of the runs, every key spelled out.
    """
    unlike = "" if _layers(a.base) == _layers(b.base) else _originals(a, b)
    quality_why_not = _quality_unlike(a, b, recipes)
    first, second = _chosen_quality(a), _chosen_quality(b)
    comparable = not quality_why_not
    kept, other = (run.chosen.edits if run.chosen else () for run in (a, b))
    return RunsComparedRecord(
        a=_side(a, directories[0]),
        b=_side(b, directories[1]),
        unlike=unlike,
        recipe=_changed(*recipes),
        environment=_changed(a.environment, b.environment),
        goals=_goals(a, b),
        latencies=_latencies(a, b, unlike),
        sizes=_sizes(a.chosen, b.chosen),
        quality_change=second.value - first.value if comparable else None,
        quality_overlap=first.low <= second.high and second.low <= first.high if comparable else None,
        quality_why_not=quality_why_not,
        layers=_layer_pairs(a.chosen, b.chosen),
        only_a=_without(kept, other),
        only_b=_without(other, kept),
    )


def _side(run: RunRecord, directory: str) -> SideRecord:
    chosen = run.chosen
    return SideRecord(
        directory=directory,
        model=run.model,
        targets=tuple(target.name for target in run.targets),
        verdict=run.verdict,
        exit_code=run.exit_code,
        headline=run.headline,
        seconds=run.seconds,
        handed_over=chosen.index if chosen else None,
        parameters=chosen.parameters if chosen else None,
        macs=chosen.macs if chosen else None,
        quality=_chosen_quality(run),
    )


def _changed(a: Mapping[str, JsonValue], b: Mapping[str, JsonValue]) -> tuple[ChangedRecord, ...]:
    """In the order of the first, then what only the second has."""
    return tuple(
        ChangedRecord(key=key, a=a.get(key), b=b.get(key)) for key in {**a, **b} if a.get(key) != b.get(key)
    )  # fmt: skip


def _layers(candidate: CandidateRecord) -> list[tuple[str, str]]:
    return [(layer.kind, layer.description) for layer in candidate.layers]


def _originals(a: RunRecord, b: RunRecord) -> str:
    first, second = ((len(run.base.layers), f"{run.base.parameters:,}") for run in (a, b))
    if first == second:
        return "the originals are not the same network: their layers differ"
    return (
        f"the originals are not the same network: {first[0]} layers with {first[1]} parameters, "
        f"{second[0]} with {second[1]}"
    )


def _goals(a: RunRecord, b: RunRecord) -> tuple[GoalPairRecord, ...]:
    limits = [{limit.about: limit for limit in run.goal.limits} for run in (a, b)]

    def reached(run: RunRecord, limit: LimitRecord | None) -> OutcomeRecord | None:
        return run.chosen.against(limit) if limit and run.chosen else None

    return tuple(
        GoalPairRecord(
            quantity=about[0],
            target=about[1],
            a=limits[0].get(about),
            b=limits[1].get(about),
            reached_a=reached(a, limits[0].get(about)),
            reached_b=reached(b, limits[1].get(about)),
        )
        for about in {**limits[0], **limits[1]}
    )


def _latencies(a: RunRecord, b: RunRecord, unlike: str) -> tuple[LatencyPairRecord, ...]:
    versions = [{target.name: target.profile_version for target in run.targets} for run in (a, b)]
    measured = [
        {(each.target, each.format): each for each in (run.chosen.measurements if run.chosen else ())} for run in (a, b)
    ]
    pairs = []
    for about in {**measured[0], **measured[1]}:
        first, second = measured[0].get(about), measured[1].get(about)
        why_not = unlike
        if first and second and not unlike:
            described = versions[0].get(about[0]) == versions[1].get(about[0])
            why_not = _measured_otherwise(first, second) if described else f"{about[0]} was described otherwise"
        both = first is not None and second is not None and not why_not
        pairs.append(
            LatencyPairRecord(
                target=about[0],
                format=about[1],
                a=first,
                b=second,
                ratio=second.median_ms / first.median_ms if both else None,
                overlap=first.low_ms <= second.high_ms and second.low_ms <= first.high_ms if both else None,
                why_not=why_not if first and second else "",
            )
        )
    return tuple(pairs)


def _measured_otherwise(a: MeasurementRecord, b: MeasurementRecord) -> str:
    if a.runner != b.runner:
        return f"measured by {a.runner} and by {b.runner}"
    return f"measured on {a.threads} and on {b.threads} threads" if a.threads != b.threads else ""


def _sizes(a: CandidateRecord | None, b: CandidateRecord | None) -> tuple[SizePairRecord, ...]:
    bytes_a, bytes_b = (
        {} if each is None else {**{m.format: m.bytes for m in each.measurements}, **_exported(each)} for each in (a, b)
    )
    return tuple(
        SizePairRecord(format=format, a=bytes_a.get(format), b=bytes_b.get(format)) for format in {**bytes_a, **bytes_b}
    )


def _exported(candidate: CandidateRecord) -> dict[str, int]:
    return {each.format: each.bytes for each in candidate.exports}


def _chosen_quality(run: RunRecord) -> QualityRecord | None:
    return run.chosen.quality if run.chosen else None


def _quality_unlike(
    a: RunRecord, b: RunRecord, recipes: tuple[Mapping[str, JsonValue], Mapping[str, JsonValue]]
) -> str:
    """Why the two qualities cannot be compared; empty where they can."""
    first, second = _chosen_quality(a), _chosen_quality(b)
    if first is None or second is None:
        return "not both runs judged it"
    if first.metric != second.metric:
        return f"one is {first.metric}, the other {second.metric}"
    if changed := [key for key in ("data", "test", "metric", "seed") if recipes[0].get(key) != recipes[1].get(key)]:
        return f"judged on other samples or in another way: the recipes differ in {', '.join(changed)}"
    if first.samples != second.samples:
        return f"judged on {first.samples:,} and on {second.samples:,} samples"
    return ""


def _layer_pairs(a: CandidateRecord | None, b: CandidateRecord | None) -> tuple[LayerPairRecord, ...]:
    if a is None or b is None:
        return ()

    def said(layer: LayerRecord | None) -> str | None:
        return layer.description if layer else None

    rows = compare_layers(a.layers, b.layers, ())
    return tuple(
        LayerPairRecord(name=row.name, a=said(row.before), b=said(row.after)) for row in rows if row.change != "kept"
    )


def _without(edits: Sequence[EditRecord], others: Sequence[EditRecord]) -> tuple[EditRecord, ...]:
    """Edits that the others do not have: figures that a plan predicts do not make another edit."""
    there = {(edit.kind, edit.site, edit.summary) for edit in others}
    return tuple(edit for edit in edits if (edit.kind, edit.site, edit.summary) not in there)
