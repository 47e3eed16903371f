"""Whether an artifact meets its goal on a machine whose speed is never quite the same: met, above, or undecided.

Baseline and candidate are timed in interleaved blocks, a block of each a round. A look at the samples gives an interval
for what the goal limits; the verdict is `met` when the interval lies within the limit, `above` when it lies beyond, and
where it straddles the limit more samples are taken, up to the last look of `LOOKS_S`; then it is `undecided`.

- Interval: `targets.quantiles`, for the median and the 90th percentile alike.
- A relative goal limits the candidate's share of the baseline's latency. Each round gives one ratio, of its two blocks'
  medians; what slows both blocks of a round cancels in it. The interval is for the median of these ratios. Pairing in
  time and giving an interval for the ratio follow Kalibera and Jones, "Rigorous Benchmarking in Reasonable Time"
  (ISMM 2013).
- Several looks: one that may stop at any of several errs more often than each of them. The error probability,
  1 - confidence, is spent on the looks in proportion to the seconds they add (the simplest spending function of Lan and
  DeMets, Biometrika 70, 1983), and within a look equally on the goal's criteria. So the first look, which knows the
  machine least, decides only what is clear. The parts add up (Bonferroni), whatever the looks have in common: each
  takes the samples of those before, too.
- Drift: where the level of the baseline changes by more than `STEADY` within a session, or the baseline is off what it
  was before by more than that and than both intervals allow, the machine is another one: the pair decides nothing, is
  kept in the record, and is taken again, up to `MOST_INVALID` invalid pairs in all. For a relative goal it is the ratio
  that must not drift: a change that is common to both has cancelled.
- A runner that repeats itself (the emulator) is looked at once; its interval is the range of its samples, and says
  nothing of how well the model of the machine fits.

Limits: the confidence is about the machine as it was during the judgement. A level that wanders more slowly than that
and by less than `STEADY` is not seen by an absolute goal, nor is what differs from one start of the process to the next
(placement in memory) beyond the few starts of a judgement: a goal nearer to the truth than such changes may be judged
wrongly. A 90th percentile's upper bound needs some 60 independent samples at the first look, without it the verdict is
undecided.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate

from targets.judgement import Goal, InvalidPair, Judgement
from targets.measure import Measurement, measurement, require_measurable, timed
from targets.profile import Profile
from targets.quantiles import Interval, quantile_interval
from targets.runners import Job, Progress, Timing
from targets.runners.host import STEADY
from targets.statistics import CONFIDENCE, Decision, decide, drift

LOOKS_S = (5.0, 15.0, 40.0)  # seconds of timed inference, of the slower artifact, that each look adds
MOST_INVALID = 3

Take = Callable[[Sequence[Job], float], list[Timing]]
"""Times the jobs in interleaved blocks, the slowest for so many seconds; `rounds` correspond, or are all None."""


def judge(
    baseline: Job | None,
    candidate: Job,
    *,
    format: str,
    profile: Profile,
    goal: Goal,
    progress: Progress = lambda message: None,
    threads: int = 1,
    earlier: Measurement | None = None,
    confidence: float = CONFIDENCE,
    take: Take | None = None,
) -> Judgement:
    """The verdict on `candidate`, timed in interleaved blocks with `baseline`.

    Args:
        baseline: artifact of the same format. None where the candidate is the original itself: its own drift then
            tells whether the machine was steady.
        earlier: the baseline (or, without one, the candidate) at another time; only absolute goals look at it.
        confidence: of the verdict, over all looks and criteria together.
        take: times the jobs, in place of the profile's own runner.

    Raises:
        ValueError: a relative goal without a baseline.
        Others as `measure`.
    """
    if goal.share is not None and baseline is None:
        raise ValueError("a relative goal needs a baseline")
    require_measurable(candidate.artifact, format, profile, threads)

    def by_runner(jobs: Sequence[Job], seconds: float) -> list[Timing]:
        return timed(jobs, format, profile, progress, threads=threads, budget_s=seconds, compared=True)

    jobs = (candidate,) if baseline is None else (baseline, candidate)
    counted: list[Timing] = []  # of the pairs that count, joined
    joint: tuple[Measurement, Measurement | None] | None = None  # what they make
    invalid: list[InvalidPair] = []
    looks, before = 0, earlier

    def measured(timings: Sequence[Timing]) -> tuple[Measurement, Measurement | None]:
        found = [measurement(job.artifact, format, profile, threads, each, level) for job, each in zip(jobs, timings)]
        return found[-1], found[0] if baseline else None

    while looks < len(LOOKS_S) and len(invalid) < MOST_INVALID:
        level = 1 - (1 - confidence) / goal.criteria * LOOKS_S[looks] / sum(LOOKS_S)
        timings = (take or by_runner)(jobs, LOOKS_S[looks])
        pair = measured(timings)
        unsteady = _unsteady(timings, goal) or (_moved(pair[1] or pair[0], before) if goal.share is None else "")
        if unsteady:
            invalid.append(InvalidPair(unsteady, *pair))
            progress(f"{unsteady}: invalid pair {len(invalid)} of at most {MOST_INVALID}")
            continue
        counted = [_joined(*both) for both in zip(counted, timings)] if counted else timings
        looks += 1
        joint = measured(counted) if looks > 1 else pair
        before = joint[1] or joint[0]
        verdict, reason = _decided(counted, goal, level)
        if verdict != "undecided" or _repeats(counted):
            break
        if looks < len(LOOKS_S):
            progress(f"undecided after {sum(LOOKS_S[:looks]):g} s: {reason}; taking {LOOKS_S[looks]:g} s more")
    if len(invalid) == MOST_INVALID:
        verdict, reason = "undecided", invalid[-1].reason
    samples, (ours, theirs) = (counted, joint) if joint else (timings, pair)
    return Judgement(
        verdict=verdict,
        reason=reason,
        goal=goal,
        confidence=1.0 if _repeats(samples) else confidence,
        looks=looks,
        candidate=ours,
        baseline=theirs,
        median=_interval(samples[-1], 0.5, level),
        p90=None if goal.p90_ms is None else _interval(samples[-1], 0.9, level),
        ratio=None if baseline is None else _ratio(samples, level),
        invalid=tuple(invalid),
    )


def _decided(timings: Sequence[Timing], goal: Goal, level: float) -> tuple[Decision, str]:
    """Above when one criterion is, met when all are; with the sentence on the criterion that made it so."""
    asked: list[tuple[str, Interval, float, str]] = []
    if goal.median_ms is not None:
        asked.append(("median", _interval(timings[-1], 0.5, level), goal.median_ms, " ms"))
    if goal.share is not None:
        asked.append(("share of the baseline", _ratio(timings, level).times(100), 100 * goal.share, " %"))
    if goal.p90_ms is not None:
        asked.append(("90th percentile", _interval(timings[-1], 0.9, level), goal.p90_ms, " ms"))
    sentences: dict[Decision, str] = {}
    for name, found, limit, unit in asked:
        verdict = decide(found.low, found.high, limit)
        relation = {"met": "at or below", "above": "above", "undecided": "around"}[verdict]
        sentences.setdefault(verdict, f"{name} {_span(found, unit)}, {relation} {limit:.4g}{unit}")
    return next((verdict, sentences[verdict]) for verdict in ("above", "undecided", "met") if verdict in sentences)


def _span(found: Interval, unit: str) -> str:
    if math.isinf(found.low) and math.isinf(found.high):
        return f"{found.value:.4g}{unit} with too few samples for an interval"
    if math.isinf(found.high):
        return f"at least {found.low:.4g}{unit}"
    return f"at most {found.high:.4g}{unit}" if math.isinf(found.low) else f"{found.low:.4g} … {found.high:.4g}{unit}"


def _unsteady(timings: Sequence[Timing], goal: Goal) -> str:
    """Why the session decides nothing; empty where what must be steady was."""
    if _repeats(timings):
        return ""
    if goal.share is None:
        change, what = drift(timings[0].samples_ms), "the machine's speed"
    else:
        change, what = drift(_ratios(timings)), "the candidate's share of the baseline's latency"
    return f"{what} changed by {abs(change) * 100:.0f} % while it was timed" if abs(change) > STEADY else ""


def _moved(now: Measurement, before: Measurement | None) -> str:
    """Why the baseline is not on the machine it was measured on before; empty where it is, or nothing is known."""
    if before is None or now.low_ms <= before.high_ms and before.low_ms <= now.high_ms:
        return ""
    change = now.median_ms / before.median_ms - 1
    if abs(change) <= STEADY:
        return ""
    return f"the machine is {abs(change) * 100:.0f} % {'slower' if change > 0 else 'faster'} than it was before"


def _repeats(timings: Sequence[Timing]) -> bool:
    return timings[0].rounds is None


def _joined(first: Timing, second: Timing) -> Timing:
    """Two sessions of one artifact as one; the machine's state is that of the second."""
    return replace(second, samples_ms=first.samples_ms + second.samples_ms, rounds=first.rounds + second.rounds)


def _interval(timing: Timing, p: float, level: float) -> Interval:
    """For the p-quantile in milliseconds; the samples' range where the runner repeats itself."""
    found = quantile_interval(timing.samples_ms, p, confidence=level, rounds=timing.rounds)
    return found if timing.rounds else replace(found, low=min(timing.samples_ms), high=max(timing.samples_ms))


def _ratio(timings: Sequence[Timing], level: float) -> Interval:
    """For the median over the rounds of candidate by baseline."""
    if _repeats(timings):
        below, above = (_interval(timing, 0.5, level) for timing in timings)
        return Interval(above.value / below.value, above.low / below.high, above.high / below.low)
    ratios = _ratios(timings)
    return quantile_interval(ratios, 0.5, confidence=level, rounds=[1] * len(ratios))


def _ratios(timings: Sequence[Timing]) -> list[float]:
    """Candidate by baseline, of the medians of each round's two blocks."""
    below, above = (
        [
            statistics.median(timing.samples_ms[end - size : end])
            for end, size in zip(accumulate(timing.rounds), timing.rounds)
        ]
        for timing in timings
    )
    return [ours / theirs for ours, theirs in zip(above, below, strict=True)]
