"""Verdicts on machines whose true speed is known: right as often as said, undecided where nothing can be told."""

from __future__ import annotations

import json
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from synthetic import Machine, Mood, autoregressive, heavy_tailed, independent, two_clocks, wave

from targets.judgement import Goal, Judgement
from targets.judging import LOOKS_S, MOST_INVALID, judge
from targets.measure import Measurement
from targets.profile import load_profile
from targets.runners import Job, Timing, host
from targets.runners.host import STEADY

HOST = load_profile("host")
BASELINE_MS, CANDIDATE_MS = 80.0, 50.0
SHARE = CANDIDATE_MS / BASELINE_MS
HAIR = 1.0005  # a goal this far beyond the truth can be judged wrongly, but hardly rightly
RUNS = 40
MOST_WRONG = 0.05 + 2 * math.sqrt(0.05 * 0.95 / RUNS)  # what 5 % may look like in so many runs


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """(baseline, candidate): files that a synthetic machine does not open."""
    folder = tmp_path_factory.mktemp("judged")
    for name in ("baseline", "candidate"):
        (folder / name).write_text(name)
    return [Job(folder / name, folder / "inputs.npz") for name in ("baseline", "candidate")]


def judged(jobs: list[Job], machine: Machine, goal: Goal, **settings) -> Judgement:
    baseline, candidate = jobs
    return judge(baseline, candidate, format="tflite", profile=HOST, goal=goal, take=machine.take, **settings)


def wrong(jobs: list[Job], mood: Mood, goal: Goal, verdict: str) -> float:
    """How often that verdict, which the goal makes a wrong one, is given."""
    return sum(judged(jobs, Machine(seed, mood=mood), goal).verdict == verdict for seed in range(RUNS)) / RUNS


MOODS = {
    "independent": independent,
    "AR(0.9)": autoregressive(0.9),
    "AR(0.99)": autoregressive(0.99),
    "heavy tails": heavy_tailed,
    "two clocks": two_clocks(0.5),
    "wave of 3 s": wave(3.0),
    "wave of 10 s": wave(10.0),
}
moods = pytest.mark.parametrize("mood", MOODS.values(), ids=MOODS)


# Error rates ---------------------------------------------------------------------------------------------------------


@moods
def test_a_candidate_above_an_absolute_goal_is_called_met_no_more_often_than_said(jobs, mood):
    assert wrong(jobs, mood, Goal(median_ms=CANDIDATE_MS / HAIR), "met") <= MOST_WRONG


@moods
def test_a_candidate_that_meets_an_absolute_goal_is_called_above_no_more_often_than_said(jobs, mood):
    assert wrong(jobs, mood, Goal(median_ms=CANDIDATE_MS * HAIR), "above") <= MOST_WRONG


@pytest.mark.parametrize("mood", [*MOODS.values(), wave(40.0), wave(200.0)], ids=[*MOODS, "of 40 s", "of 200 s"])
def test_a_relative_verdict_errs_no_more_often_than_said_whatever_the_machine_does(jobs, mood):
    assert wrong(jobs, mood, Goal(share=SHARE / HAIR), "met") <= MOST_WRONG
    assert wrong(jobs, mood, Goal(share=SHARE * HAIR), "above") <= MOST_WRONG


@pytest.mark.parametrize("mood", [autoregressive(0.9), autoregressive(0.98)], ids=["AR(0.9)", "AR(0.98)"])
def test_a_goal_for_the_90th_percentile_errs_no_more_often_than_said(jobs, mood):
    truth = CANDIDATE_MS * math.exp(0.02 * norm.ppf(0.9))
    assert wrong(jobs, mood, Goal(p90_ms=truth / HAIR), "met") <= MOST_WRONG
    assert wrong(jobs, mood, Goal(p90_ms=truth * HAIR), "above") <= MOST_WRONG


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("period_s", [40.0, 200.0])
def test_a_wave_longer_than_the_session_misleads_no_further_than_its_height(jobs, seed, period_s):
    for goal_ms, verdict in ((CANDIDATE_MS * 1.03, "above"), (CANDIDATE_MS / 1.03, "met")):
        assert judged(jobs, Machine(seed, mood=wave(period_s)), Goal(median_ms=goal_ms)).verdict != verdict


# Looks ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("goal", "verdict"),
    [
        (Goal(median_ms=56.0), "met"),
        (Goal(median_ms=45.0), "above"),
        (Goal(share=SHARE * 1.1), "met"),
        (Goal(share=SHARE * 0.9), "above"),
    ],
)
def test_a_clear_case_is_decided_at_the_first_look(jobs, goal, verdict):
    machine = Machine(1)
    judgement = judged(jobs, machine, goal)
    assert (judgement.verdict, judgement.looks, machine.asked_s) == (verdict, 1, [LOOKS_S[0]])
    assert judgement.median.low < CANDIDATE_MS < judgement.median.high and judgement.ratio.low < SHARE
    assert judgement.reason.startswith("median" if goal.median_ms else "share of the baseline")


def test_a_close_case_is_decided_by_more_samples(jobs):
    machine = Machine(2)
    judgement = judged(jobs, machine, Goal(median_ms=CANDIDATE_MS * 1.006))
    assert (judgement.verdict, judgement.looks) == ("met", len(LOOKS_S))
    assert judgement.candidate.n == len(judgement.candidate.samples_ms) == sum(judgement.candidate.rounds)
    assert sum(judgement.candidate.samples_ms) >= 0.95e3 * sum(LOOKS_S)  # those of every look


def test_a_candidate_at_its_goal_takes_all_looks_and_is_undecided_as_often_as_said(jobs):
    goal = Goal(median_ms=CANDIDATE_MS)
    judgements = [judged(jobs, Machine(seed), goal) for seed in range(40)]
    undecided = [judgement for judgement in judgements if judgement.verdict == "undecided"]
    assert len(undecided) >= 0.95 * len(judgements)
    for judgement in undecided:
        median, shown = judgement.median, judgement.candidate
        assert judgement.looks == len(LOOKS_S) and median.low <= CANDIDATE_MS < median.high
        assert (shown.low_ms, shown.high_ms) == (median.low, median.high)


def test_what_an_undecided_verdict_says(jobs):
    machine, told = Machine(4), []
    judgement = judged(jobs, machine, Goal(median_ms=CANDIDATE_MS), progress=told.append)
    assert (judgement.verdict, machine.asked_s) == ("undecided", list(LOOKS_S))
    assert [line.partition(":")[0] for line in told] == ["undecided after 5 s", "undecided after 20 s"]
    assert told[0].endswith("ms, around 50 ms; taking 15 s more")
    assert judgement.reason.endswith("ms, around 50 ms") and judgement.confidence == 0.95


def test_all_criteria_must_be_met_and_one_is_enough_to_be_above(jobs):
    p90_ms = CANDIDATE_MS * math.exp(0.05 * norm.ppf(0.9))
    both = judged(jobs, Machine(4), Goal(median_ms=56.0, p90_ms=1.1 * p90_ms))
    slow_tail = judged(jobs, Machine(4), Goal(median_ms=56.0, p90_ms=0.97 * p90_ms))
    open_tail = judged(jobs, Machine(4), Goal(share=0.9, p90_ms=p90_ms))
    assert [each.verdict for each in (both, slow_tail, open_tail)] == ["met", "above", "undecided"]
    assert slow_tail.reason.startswith("90th percentile") and open_tail.reason.startswith("90th percentile")
    assert both.p90.low < p90_ms < both.p90.high


# Drift ---------------------------------------------------------------------------------------------------------------


def test_a_drifting_machine_is_timed_again_and_then_undecided_with_the_reason(jobs):
    machine, told = Machine(5, slowdowns=[0.21]), []
    judgement = judged(jobs, machine, Goal(median_ms=2 * CANDIDATE_MS), progress=told.append)
    assert (judgement.verdict, judgement.looks) == ("undecided", 0)
    assert judgement.reason.startswith("the machine's speed changed by 1") and judgement.reason.endswith("timed")
    assert machine.asked_s == [LOOKS_S[0]] * MOST_INVALID
    assert len(judgement.invalid) == len(told) == MOST_INVALID
    assert all(pair.candidate.samples_ms and pair.baseline.samples_ms for pair in judgement.invalid)
    assert judgement.candidate == judgement.invalid[-1].candidate


def test_the_samples_of_an_invalid_pair_are_kept_and_decide_nothing(jobs):
    machine = Machine(6, slowdowns=[0.6, 0.0])
    judgement = judged(jobs, machine, Goal(median_ms=56.0))
    assert (judgement.verdict, judgement.looks) == ("met", 1)  # with the first pair's it would have been above
    (pair,) = judgement.invalid
    assert pair.candidate.median_ms > 56 > judgement.candidate.high_ms
    assert set(pair.candidate.samples_ms).isdisjoint(judgement.candidate.samples_ms)


def test_a_machine_that_drifts_later_keeps_what_was_found_before(jobs):
    machine = Machine(7, slowdowns=[0.0, 0.3])
    judgement = judged(jobs, machine, Goal(median_ms=CANDIDATE_MS))
    assert (judgement.verdict, judgement.looks, len(judgement.invalid)) == ("undecided", 1, MOST_INVALID)
    assert judgement.reason.startswith("the machine's speed changed")
    assert judgement.median.low < CANDIDATE_MS < judgement.median.high


def test_a_machine_that_is_not_what_it_was_before_is_another_one(jobs):
    earlier = judged(jobs, Machine(8), Goal(median_ms=56.0)).baseline
    now = Machine(9, levels_ms=(1.3 * BASELINE_MS, 1.3 * CANDIDATE_MS))
    judgement = judged(jobs, now, Goal(median_ms=2 * CANDIDATE_MS), earlier=earlier)
    assert judgement.verdict == "undecided" and len(judgement.invalid) == MOST_INVALID
    assert re.fullmatch(r"the machine is (2|3)\d % slower than it was before", judgement.reason)
    same = judged(jobs, Machine(9), Goal(median_ms=2 * CANDIDATE_MS), earlier=earlier)
    assert same.verdict == "met" and not same.invalid


def test_without_a_baseline_the_candidates_own_drift_counts(jobs):
    judgement, drifting = (
        judge(
            None,
            jobs[1],
            format="tflite",
            profile=HOST,
            goal=Goal(median_ms=56.0),
            take=Machine(10, slowdowns=[slowdown]).take,
        )
        for slowdown in (0.0, 0.3)
    )
    assert (judgement.verdict, judgement.baseline, judgement.ratio) == ("met", None, None)
    assert drifting.verdict == "undecided" and len(drifting.invalid) == MOST_INVALID


# A relative goal -----------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 5), st.lists(st.floats(1.0, 3.0), max_size=300), st.sampled_from([0.9, 0.99, 1.0, 1.01, 1.1]))
def test_what_slows_both_in_the_same_rounds_changes_no_relative_verdict(jobs, seed, common, margin):
    goal = Goal(share=SHARE * margin)
    steady, slowed = (judged(jobs, Machine(seed, common=factors), goal) for factors in ((), common))
    assert slowed.verdict == steady.verdict and slowed.looks == steady.looks
    assert (slowed.ratio.low, slowed.ratio.high) == pytest.approx((steady.ratio.low, steady.ratio.high))


def test_a_machine_that_gets_slower_for_both_invalidates_an_absolute_pair_only(jobs):
    absolute, relative = (
        judged(jobs, Machine(11, slowdowns=[0.4]), goal) for goal in (Goal(median_ms=100.0), Goal(share=0.7))
    )
    assert absolute.verdict == "undecided" and len(absolute.invalid) == MOST_INVALID
    assert relative.verdict == "met" and not relative.invalid
    assert abs(relative.baseline.samples_ms[-1] / relative.baseline.samples_ms[0] - 1) > STEADY


def test_a_baseline_that_drifts_alone_invalidates_a_relative_pair(jobs):
    def take(jobs, seconds):
        baseline, candidate = Machine(12).take(jobs, seconds)
        slower = tuple(ms * (1 + 0.4 * i / len(baseline.samples_ms)) for i, ms in enumerate(baseline.samples_ms))
        return [Timing(slower, "synthetic 1", None, None, {}, baseline.rounds), candidate]

    judgement = judge(*jobs, format="tflite", profile=HOST, goal=Goal(share=0.9), take=take)
    assert judgement.verdict == "undecided" and len(judgement.invalid) == MOST_INVALID
    assert "share of the baseline's latency changed by" in judgement.reason


# Values --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit_ms", "verdict"), [(10.1, "met"), (10.05, "undecided"), (9.9, "above")])
def test_a_runner_that_repeats_itself_is_looked_at_once(jobs, limit_ms, verdict):
    asked = []

    def take(jobs, seconds):
        asked.append(seconds)
        return [Timing(samples, "emulated", 1, 1.0, {}) for samples in ((20.0, 20.0), (10.0, 10.1))]

    judgement = judge(*jobs, format="tflite", profile=HOST, goal=Goal(median_ms=limit_ms), take=take)
    assert (judgement.verdict, judgement.looks, len(asked), judgement.confidence) == (verdict, 1, 1, 1.0)
    assert (judgement.median.low, judgement.median.high) == (10.0, 10.1)
    assert (judgement.ratio.low, judgement.ratio.high) == (0.5, 0.505)


@pytest.mark.parametrize("slowdown", [0.0, 0.5])
def test_a_judgement_comes_back_from_json(jobs, slowdown):
    judgement = judged(jobs, Machine(13, slowdowns=[slowdown]), Goal(share=0.7, p90_ms=60.0))
    assert Judgement.from_json(json.loads(json.dumps(judgement.to_json(), allow_nan=False))) == judgement


def test_a_measurement_without_rounds_can_still_be_read(jobs):
    found = judged(jobs, Machine(14), Goal(share=0.7)).candidate
    record = {name: value for name, value in found.to_json().items() if name != "rounds"}
    assert Measurement.from_json(record).rounds is None


@pytest.mark.parametrize(
    "limits", [{}, {"median_ms": 1.0, "share": 0.5}, {"median_ms": 0.0}, {"share": math.inf}, {"p90_ms": -1.0}]
)
def test_goals_that_cannot_be_judged_are_refused(limits):
    with pytest.raises(ValueError):
        Goal(**limits)


def test_a_relative_goal_needs_a_baseline(jobs):
    with pytest.raises(ValueError, match="baseline"):
        judge(None, jobs[1], format="tflite", profile=HOST, goal=Goal(share=0.5))


# This machine --------------------------------------------------------------------------------------------------------


def test_compared_artifacts_take_as_many_rounds_each(small, wider):
    pair = [Job(*artifacts["tflite"]) for artifacts in (small, wider)]
    first, second = host.time_artifacts(pair, "tflite", print, budget_s=0.1, warmup_s=0.01, compared=True)
    assert len(first.rounds) == len(second.rounds) > 1
    for timing in (first, second):
        assert sum(timing.rounds) == len(timing.samples_ms) and timing.rounds[0] > 1
    assert max(sum(timing.samples_ms) for timing in (first, second)) >= 100


def test_artifacts_are_judged_on_this_machine(small, large, monkeypatch):
    monkeypatch.setattr("targets.judging.LOOKS_S", (0.3, 0.3, 0.3))
    baseline, candidate = Job(*large["tflite"][:2]), Job(*small["tflite"])
    goals = [Goal(share=0.8), Goal(share=0.001)]
    judgements = [judge(baseline, candidate, format="tflite", profile=HOST, goal=goal) for goal in goals]
    for judgement, verdict in zip(judgements, ("met", "above")):
        gave_up = len(judgement.invalid) == MOST_INVALID or judgement.looks == 3  # other work on this machine
        assert judgement.verdict == verdict or judgement.verdict == "undecided" and gave_up, judgement.reason
        assert 0.001 < judgement.ratio.value < 0.8 and judgement.candidate.runner == "host"
        assert len(judgement.candidate.rounds) == len(judgement.baseline.rounds)
