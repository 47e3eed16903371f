"""The limits of a run, and candidates held against them: by an emulator, the clock, a file's or a process's size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Protocol

from pipeline.evidence import Evidence
from pipeline.export.artifact import Artifact
from pipeline.recipe import Limit
from pipeline.stages import Made
from reports.records import LimitRecord, OutcomeRecord
from targets.judgement import Goal, Judgement
from targets.measure import Measurement
from targets.profile import Profile
from targets.quantiles import Interval
from targets.statistics import decide

Verdict = Literal["met", "above", "undecided"]


class Judged(Protocol):
    """What is known of a candidate when its limits are judged; the first artifact decides."""

    made: Made
    artifacts: list[Artifact]
    measurements: list[Measurement]


def limits_of(
    evidence: Evidence, made: Made, artifact: Artifact, measurements: Sequence[Measurement]
) -> tuple[LimitRecord, ...]:
    """What the recipe asks for, in milliseconds and bytes; a share is of the original's artifact given here."""

    def original(limit: Limit) -> float:
        match limit.quantity:
            case "size":
                return float(artifact.bytes)
            case "memory":
                return float(evidence.memory(made, artifact).bytes)
        measured = _of(measurements, artifact, limit.target)
        return measured.median_ms if limit.quantity == "latency" else measured.p90_ms

    gpus = {profile.name for profile in evidence.profiles if profile.kind == "gpu"}
    return tuple(
        LimitRecord(
            quantity=limit.quantity,
            target=limit.target,
            limit=limit.most if limit.share is None else limit.share * original(limit),
            unit=limit.unit,
            asked=limit.text,
            modelled=limit.target in gpus,
        )
        for limit in evidence.recipe.limits
    )


def worst(outcomes: Sequence[OutcomeRecord]) -> OutcomeRecord:
    """The outcome that is the farthest from being met."""
    return max(outcomes, key=lambda outcome: outcome.value / outcome.limit)


def verdict_of(outcomes: Sequence[OutcomeRecord]) -> Verdict:
    """Met when every limit is; above as soon as one is missed for certain."""
    verdicts = {outcome.verdict for outcome in outcomes}
    return "above" if "above" in verdicts else "undecided" if "undecided" in verdicts else "met"


def judged_limits(
    evidence: Evidence, limits: Sequence[LimitRecord], candidate: Judged, original: Judged | None
) -> list[OutcomeRecord]:
    """One outcome a limit.

    On a target that is timed by the clock the candidate takes turns with the original, and what the judgement measured
    takes the place of the candidate's own measurement.

    Args:
        original: None where the candidate is the original.
    """
    artifact = candidate.artifacts[0]
    outcomes = {}
    for limit in limits:
        match limit.quantity:
            case "size":
                outcomes[limit] = _held_against(limit, artifact.bytes, artifact.bytes, artifact.bytes)
            case "memory":
                memory = evidence.memory(candidate.made, artifact)
                outcomes[limit] = _held_against(limit, memory.bytes, memory.low_bytes, memory.high_bytes)
    for profile in evidence.profiles:
        here = [limit for limit in limits if limit.target == profile.name]
        if profile.kind == "host" and here:
            outcomes |= _by_the_clock(evidence, here, candidate, original, profile)
        elif here:
            measured = _of(candidate.measurements, artifact, profile.name)
            # A model's interval says how far a phone may be from it: alike for all candidates, it decides nothing.
            interval = None if measured.runner == "model" else (measured.low_ms, measured.high_ms)
            for limit in here:
                median = limit.quantity == "latency"
                value = measured.median_ms if median else measured.p90_ms
                outcomes[limit] = _held_against(limit, value, *(interval if interval and median else (value, value)))
    return [outcomes[limit] for limit in limits]


def _by_the_clock(
    evidence: Evidence, limits: Sequence[LimitRecord], candidate: Judged, original: Judged | None, profile: Profile
) -> dict[LimitRecord, OutcomeRecord]:
    shares = {each.quantity: each.share for each in evidence.recipe.limits if each.target == profile.name}
    by_quantity = {limit.quantity: limit for limit in limits}
    share = shares.get("latency") if original else None
    median, p90 = by_quantity.get("latency"), by_quantity.get("p90")
    goal = Goal(
        median_ms=median.limit if median and share is None else None,
        share=share,
        p90_ms=p90.limit if p90 else None,
    )
    artifact = candidate.artifacts[0]
    found = evidence.judged(candidate.made, artifact, original and original.artifacts[0], profile, goal)
    place = candidate.measurements.index(_of(candidate.measurements, artifact, profile.name))
    candidate.measurements[place] = found.candidate
    outcomes = {}
    if p90:
        outcomes[p90] = _outcome(p90, found, found.p90)
    if median and share is None:
        outcomes[median] = _outcome(median, found, found.median)
    elif median:  # a share of what the original takes in the same session, whatever it took in another
        original_ms = found.baseline.median_ms
        paired = Interval(*(original_ms * bound for bound in (found.ratio.value, found.ratio.low, found.ratio.high)))
        outcomes[median] = _outcome(median.model_copy(update={"limit": share * original_ms}), found, paired)
    return outcomes


def _outcome(limit: LimitRecord, found: Judgement, interval: Interval) -> OutcomeRecord:
    """Of a judgement that no pair counted for, nothing is decided."""
    low = max(interval.low, 0.0)
    verdict = decide(low, interval.high, limit.limit) if found.looks else "undecided"
    high = interval.high if math.isfinite(interval.high) else None
    outcome = _held_against(limit, interval.value, low, high, verdict)
    reason = found.reason if verdict == "undecided" else ""
    return outcome.model_copy(update={"confidence_percent": 100 * found.confidence, "reason": reason})


def _held_against(
    limit: LimitRecord, value: float, low: float, high: float | None, verdict: Verdict | None = None
) -> OutcomeRecord:
    return OutcomeRecord(
        quantity=limit.quantity,
        target=limit.target,
        limit=limit.limit,
        unit=limit.unit,
        value=value,
        low=low,
        high=high,
        verdict=verdict or decide(low, high, limit.limit),
    )


def _of(measurements: Sequence[Measurement], artifact: Artifact, target: str | None) -> Measurement:
    return next(m for m in measurements if m.format == artifact.format and m.target == target)
