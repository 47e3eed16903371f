"""The main job: plan, compress, export, measure, judge, until the latency is met; then recover, and judge again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from pipeline.evidence import Evidence
from pipeline.export.artifact import Artifact
from pipeline.search import Probe, next_budget
from pipeline.stages import Made, Stages
from pipeline.verify.delegation import Delegation, require_strict, violations
from pipeline.verify.parity import Parity
from reports.records import OperatorRecord, QualityRecord
from targets.errors import PlanishError, UsageError
from targets.measure import Measurement
from targets.statistics import decide

MORE_SAMPLES = (5.0, 20.0, 60.0)  # seconds of timing: a straddling interval gets more, then the verdict is undecided


@dataclass
class Candidate:
    """One probe: a network on disk, what was exported and measured of it, and the verdict on its latency."""

    index: int
    made: Made
    artifacts: list[Artifact] = field(default_factory=list)
    parity: list[Parity] = field(default_factory=list)  # of the exported program, then of the artifacts
    delegation: list[Delegation] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    quality: QualityRecord | None = None
    verdict: str = "above"
    recovered_from: int | None = None
    operators: tuple[OperatorRecord, ...] = ()  # of the format that decides; of the original and the final one
    unexplained: str = ""  # why there are none

    @property
    def milliseconds(self) -> float:
        """Measured median of the format that decides."""
        return self.measurements[0].median_ms

    @property
    def violations(self) -> tuple[str, ...]:
        """What of its artifacts is not delegated as a whole; none where nothing was asked."""
        return tuple(sentence for each in self.delegation for sentence in violations(each))


@dataclass(frozen=True)
class FitResult:
    """The whole run: the original, every probe, and the candidate that is handed over."""

    goal_ms: float
    original: Candidate
    probes: list[Candidate]
    final: Candidate
    met: bool
    undecided: bool
    floor_kept: bool | None
    violations: tuple[str, ...] = ()  # with a strict recipe: what of the final artifacts is not delegated


def fit(stages: Stages, told: Callable[[Candidate, float], None] = lambda candidate, goal_ms: None) -> FitResult:
    """Run the loop. `told` hears of every candidate as soon as it is judged."""
    recipe = stages.recipe
    _require_judgeable(stages)
    stages.samples  # noqa: B018  (bad data ends the run before any work is done on it)
    evidence = Evidence(stages)
    original = _candidate(evidence, 0, stages.original(), searching=False)
    if recipe.strict:  # before any work on it: what the original has that no delegate takes, its candidates have, too
        for artifact, delegation in zip(original.artifacts, original.delegation):
            require_strict(delegation, artifact)
    goal_ms = recipe.latency_ms(original.milliseconds)
    original.verdict = _judge(evidence, original, goal_ms)
    told(original, goal_ms)
    probes = [Probe(original.made.result["predicted_ms"], original.milliseconds, original.verdict == "met")]
    candidates: list[Candidate] = []
    planned = 0
    for index in range(1, recipe.max_probes + 1):
        budget_ms = next_budget(probes, goal_ms, recipe.tolerance)
        if budget_ms is None:
            break
        made, planned = stages.compressed(index, budget_ms), index
        if not made.result["edits"]:  # nothing makes this network cheaper on the target, or nothing may
            original.made = replace(original.made, result=original.made.result | {"rejected": made.result["rejected"]})
            break
        if any(made.result["weights_sha256"] == other.made.result["weights_sha256"] for other in candidates):
            break  # the same plan again: nothing lies between
        candidate = _candidate(evidence, index, made, searching=True)
        candidate.verdict = _judge(evidence, candidate, goal_ms)
        candidates.append(candidate)
        met, smallest = candidate.verdict == "met", made.result["smallest"]
        probes.append(Probe(made.result["predicted_ms"], candidate.milliseconds, met, smallest))
        told(candidate, goal_ms)
    final = _finish(evidence, original, candidates, planned + 1, goal_ms, told)
    for candidate in (original, final) if final is not original else (original,):
        _explain(evidence, candidate)
    return FitResult(
        goal_ms,
        original,
        candidates,
        final,
        final.verdict == "met",
        final.verdict == "undecided",
        _floor_kept(stages, original, final),
        final.violations if recipe.strict else (),
    )


def _require_judgeable(stages: Stages) -> None:
    if stages.recipe.max_drop is not None and stages.classes is None:
        raise UsageError(
            "a quality floor needs a quality that planish can judge",
            where=f"--max-drop {stages.recipe.max_drop}",
            why="the network's output is not one row of class scores a sample",
            fix="leave out --max-drop and judge the candidates' artifacts yourself",
            code="QUALITY_UNKNOWN",
        )


def _finish(
    evidence: Evidence,
    original: Candidate,
    candidates: list[Candidate],
    index: int,
    goal_ms: float,
    told: Callable[[Candidate, float], None],
) -> Candidate:
    """Recover the slowest candidate that met the goal, or the fastest when none did, and judge its artifacts."""
    if original.verdict == "met" or not candidates:
        return original
    stages = evidence.stages
    met = [candidate for candidate in candidates if candidate.verdict == "met" and not candidate.violations]
    chosen = max(met, key=lambda c: c.milliseconds) if met else min(candidates, key=lambda c: c.milliseconds)
    made = stages.recovered(index, chosen.made)
    final = _candidate(evidence, index, made, searching=False)
    final.recovered_from = chosen.index
    final.verdict = _judge(evidence, final, goal_ms)
    candidates.append(final)
    told(final, goal_ms)
    return final


def _candidate(evidence: Evidence, index: int, made: Made, searching: bool) -> Candidate:
    """Export, verify and measure: all formats for what may be handed over, the deciding one while searching."""
    recipe = evidence.recipe
    candidate = Candidate(index, made, evidence.exported(made, recipe.formats[:1] if searching else recipe.formats))
    candidate.parity = evidence.verified(made, candidate.artifacts, emulated=not searching and index > 0)
    if recipe.strict:
        candidate.delegation = evidence.delegated(made, candidate.artifacts)
    candidate.measurements = evidence.measured(made, candidate.artifacts, MORE_SAMPLES[0])
    if evidence.stages.classes is not None:
        candidate.quality = evidence.quality(made, None if searching else candidate.artifacts[0])
    return candidate


def _explain(evidence: Evidence, candidate: Candidate) -> None:
    """Where its time goes and what is delegated. What cannot be told fails no fit that found its artifact."""
    try:
        candidate.operators = evidence.explained(candidate.made, candidate.artifacts[0])
    except PlanishError as error:
        candidate.unexplained = error.why
    try:
        candidate.delegation = evidence.delegated(candidate.made, candidate.artifacts, candidate.operators)
    except PlanishError as error:
        candidate.unexplained = candidate.unexplained or error.why


def _judge(evidence: Evidence, candidate: Candidate, goal_ms: float) -> str:
    """Three-valued; an interval that straddles the goal gets more samples before it is called undecided."""
    for seconds in MORE_SAMPLES:
        if seconds > MORE_SAMPLES[0]:
            if candidate.measurements[0].runner == "emulator":
                break  # it repeats itself: more of the same says nothing new
            candidate.measurements = evidence.measured(candidate.made, candidate.artifacts, seconds)
        deciding = candidate.measurements[0]
        verdict = decide(deciding.low_ms, deciding.high_ms, goal_ms)
        if verdict != "undecided":
            break
    return verdict


def _floor_kept(stages: Stages, original: Candidate, final: Candidate) -> bool | None:
    """Whether no more than `max_drop` points of quality were lost, on the artifacts; None when it was not asked."""
    allowed = stages.recipe.max_drop_points
    if allowed is None or original.quality is None or final.quality is None:
        return None
    return original.quality.value_percent - final.quality.value_percent <= allowed + 1e-9
