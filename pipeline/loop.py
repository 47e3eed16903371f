"""The main job: plan, compress, export, measure, judge, until every limit is met; then recover, and judge again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from calibration.callables import load_callable
from pipeline.evidence import Evidence
from pipeline.export.artifact import Artifact
from pipeline.limits import Verdict, judged_limits, limits_of, verdict_of, worst
from pipeline.search import Probe, next_budget
from pipeline.stages import Made, Stages
from pipeline.verify.delegation import Delegation, require_strict, violations
from pipeline.verify.parity import Parity
from reports.measured import GpuWorkRecord, OperatorRecord, QualityRecord
from reports.records import LimitRecord, OutcomeRecord
from targets.errors import PlanishError, UsageError
from targets.measure import Measurement

PLANS_A_PROBE = 4  # budgets that may give a plan which is known already, for each probe that is measured


@dataclass
class Candidate:
    """One probe: a network on disk, what was exported and measured of it, and the verdict on its limits."""

    index: int
    made: Made
    artifacts: list[Artifact] = field(default_factory=list)
    parity: list[Parity] = field(default_factory=list)  # of the exported program, then of the artifacts
    delegation: list[Delegation] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    quality: QualityRecord | None = None
    outcomes: list[OutcomeRecord] = field(default_factory=list)  # one a limit
    recovered_from: int | None = None
    operators: tuple[OperatorRecord, ...] = ()  # of the format that decides; of the original and the final one
    gpu_work: tuple[GpuWorkRecord, ...] = ()  # likewise
    unexplained: str = ""  # why there are none

    @property
    def milliseconds(self) -> float:
        """Measured median of the format that decides, on the first target."""
        return self.measurements[0].median_ms

    @property
    def verdict(self) -> Verdict:
        return verdict_of(self.outcomes)

    @property
    def ratio(self) -> float:
        """The worst of measured / limit."""
        outcome = worst(self.outcomes)
        return outcome.value / outcome.limit

    @property
    def violations(self) -> tuple[str, ...]:
        """What of its artifacts is not delegated as a whole; none where nothing was asked."""
        return tuple(sentence for each in self.delegation for sentence in violations(each))


@dataclass(frozen=True)
class FitResult:
    """The whole run.

    Attributes:
        probes: every candidate but the original, in the order they were made.
        searched: the same and the original as the search saw them.
        final: what is handed over.
        allowed_drop: quality that may be lost, in the metric's unit; None where no floor was asked for.
        violations: with a strict recipe, what of the final artifacts is not delegated.
    """

    limits: tuple[LimitRecord, ...]
    original: Candidate
    probes: list[Candidate]
    searched: list[Probe]
    final: Candidate
    allowed_drop: float | None
    violations: tuple[str, ...] = ()

    @property
    def floor_kept(self) -> bool | None:
        """Whether no more quality was lost than allowed, on the artifacts; None where that was not asked."""
        return keeps_floor(self.final, self.allowed_drop)


def keeps_floor(candidate: Candidate, allowed: float | None) -> bool | None:
    """Whether a candidate lost no more quality than allowed; None where that is not asked or not known."""
    if allowed is None or candidate.quality is None:
        return None
    return (candidate.quality.lost or 0.0) <= allowed + 1e-9


Told = Callable[[Candidate, tuple[LimitRecord, ...]], None]


def allowed_drop(stages: Stages, original: Candidate) -> float | None:
    """What of the quality may be lost, in the metric's unit; None where no floor was asked for."""
    drop = stages.recipe.allowed_drop
    if drop is None or original.quality is None:
        return None
    points, share = drop
    return points if points is not None else share * abs(original.quality.value)


def search(stages: Stages, told: Told = lambda candidate, limits: None) -> FitResult:
    """Run the loop. `told` hears of every candidate as soon as it is judged."""
    recipe = stages.recipe
    _require_judgeable(stages)
    stages.samples  # noqa: B018  (bad data ends the run before any work is done on it)
    evidence = Evidence(stages)
    original = _candidate(evidence, 0, stages.original(), None)
    if recipe.strict:  # before any work on it: what the original has that no delegate takes, its candidates have, too
        for artifact, delegation in zip(original.artifacts, original.delegation):
            require_strict(delegation, artifact)
    limits = limits_of(evidence, original.made, original.artifacts[0], original.measurements)
    original.outcomes = judged_limits(evidence, limits, original, None)
    told(original, limits)
    stages.weigh(original.outcomes)
    probes = [Probe(stages.base_price.operators, original.ratio, original.verdict == "met")]
    candidates = _searched(evidence, limits, original, probes, told)
    final = _finish(evidence, limits, original, candidates, told)
    for candidate in (original, final) if final is not original else (original,):
        _explain(evidence, candidate)
    return FitResult(
        limits,
        original,
        candidates,
        probes,
        final,
        allowed_drop(stages, original),
        final.violations if recipe.strict else (),
    )


def _searched(
    evidence: Evidence, limits: tuple[LimitRecord, ...], original: Candidate, probes: list[Probe], told: Told
) -> list[Candidate]:
    """Candidates until one is good enough or nothing lies between; `probes` grows with what they showed."""
    stages, recipe = evidence.stages, evidence.recipe
    candidates: list[Candidate] = []
    known: dict[str, int] = {}  # signature of a plan -> its place in `probes`
    for number in range(1, PLANS_A_PROBE * recipe.max_probes + 1):
        budget = next_budget(probes, recipe.tolerance, stages.base_price.fixed)
        if budget is None or len(candidates) == recipe.max_probes:
            break
        planned = stages.planned(number, budget)
        if planned.empty:  # nothing makes this network cheaper on the target, or nothing may
            original.made = replace(original.made, result=original.made.result | {"rejected": planned.rejected})
            break
        if (place := known.get(planned.signature)) is not None:  # measured already: nothing lies below this budget
            probes[place] = replace(probes[place], budget=max(probes[place].reach, budget))
            continue
        candidate = _candidate(evidence, len(candidates) + 1, stages.compressed(len(candidates) + 1, budget), original)
        candidate.outcomes = judged_limits(evidence, limits, candidate, original)
        candidates.append(candidate)
        known[planned.signature] = len(probes)
        met = candidate.verdict == "met"
        probes.append(Probe(planned.predicted, candidate.ratio, met, planned.smallest, budget))
        told(candidate, limits)
    return candidates


def _require_judgeable(stages: Stages) -> None:
    """Before any work is done, that quality can be judged as the recipe wants it. UsageError QUALITY_..., METRIC_..."""
    recipe = stages.recipe
    if recipe.max_drop is not None and recipe.metric is None and stages.classes is None:
        raise UsageError(
            "a quality floor needs a quality that planish can judge",
            where=f"--max-drop {recipe.max_drop}",
            why="the network's output is not one row of class scores a sample",
            fix="name a metric of your own, --metric metric.py:callable, or leave out --max-drop",
            code="QUALITY_UNKNOWN",
        )
    if recipe.metric is not None:
        load_callable(recipe.metric, "metric")


def _finish(
    evidence: Evidence,
    limits: tuple[LimitRecord, ...],
    original: Candidate,
    candidates: list[Candidate],
    told: Told,
) -> Candidate:
    """Recover the largest candidate that met the limits, or the closest when none did, and judge its artifacts.

    Training does not change what a dense network takes, so as a rule the first one does; where another measurement
    disagrees, the next smaller one is recovered.
    """
    if original.verdict == "met" or not candidates:
        return original
    met = [candidate for candidate in candidates if candidate.verdict == "met" and not candidate.violations]
    ordered = sorted(met, key=lambda c: c.made.result["predicted_ms"], reverse=True)
    finals = []
    for chosen in ordered or [min(candidates, key=lambda c: c.ratio)]:
        index = len(candidates) + 1
        final = _candidate(evidence, index, evidence.stages.recovered(index, chosen.made), original, handed_over=True)
        final.recovered_from = chosen.index
        final.outcomes = judged_limits(evidence, limits, final, original)
        candidates.append(final)
        finals.append(final)
        told(final, limits)
        if final.verdict == "met":
            return final
    return min(finals, key=lambda c: c.ratio)


def _candidate(
    evidence: Evidence, index: int, made: Made, original: Candidate | None, handed_over: bool = False
) -> Candidate:
    """Export, verify and measure: all formats for what may be handed over, the deciding one while searching."""
    recipe = evidence.recipe
    whole = handed_over or original is None
    candidate = Candidate(index, made, evidence.exported(made, recipe.formats if whole else recipe.formats[:1]))
    candidate.parity = evidence.verified(made, candidate.artifacts, emulated=handed_over)
    if recipe.strict:
        candidate.delegation = evidence.delegated(made, candidate.artifacts)
    candidate.measurements = evidence.measured(made, candidate.artifacts)
    if evidence.stages.classes is not None or recipe.metric is not None:
        before = original and evidence.judged_on(original.made, original.artifacts[0])
        candidate.quality = evidence.quality(made, candidate.artifacts[0] if whole else None, before)
    return candidate


def _explain(evidence: Evidence, candidate: Candidate) -> None:
    """Where its time goes and what is delegated. What cannot be told fails no fit that found its artifact."""
    try:
        candidate.operators = evidence.explained(candidate.made, candidate.artifacts[0])
        candidate.gpu_work = evidence.gpu_work(candidate.made, candidate.artifacts[0])
    except PlanishError as error:
        candidate.unexplained = error.why
    try:
        candidate.delegation = evidence.delegated(candidate.made, candidate.artifacts, candidate.operators)
    except PlanishError as error:
        candidate.unexplained = candidate.unexplained or error.why
