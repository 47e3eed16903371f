"""Summaries of samples and the three-valued decision."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.statistics import decide, drift, summarize

latencies = st.floats(min_value=0, max_value=1e6, allow_nan=False)
samples = st.lists(latencies, min_size=1, max_size=80)


@given(samples)
def test_a_summary_is_ordered_and_within_the_samples(values):
    summary = summarize(values)
    assert min(values) <= summary.low_ms <= summary.median_ms <= summary.high_ms <= max(values)
    assert summary.p90_ms in values and summary.p90_ms >= summary.median_ms
    assert summary.n == len(values)
    assert 0 <= summary.mad_ms <= max(values) - min(values)


@given(samples, st.randoms(use_true_random=False))
def test_a_summary_does_not_depend_on_the_order(values, rng):
    shuffled = list(values)
    rng.shuffle(shuffled)
    assert summarize(shuffled) == summarize(values)


@given(latencies, st.integers(1, 40))
def test_equal_samples_have_an_interval_of_no_width(value, n):
    summary = summarize([value] * n)
    assert (summary.low_ms, summary.median_ms, summary.high_ms, summary.mad_ms) == (value, value, value, 0)


def test_the_interval_covers_the_median_as_often_as_it_says():
    rng = random.Random(3)
    covered = 0
    for _ in range(2000):
        summary = summarize([rng.expovariate(1.0) for _ in range(30)])
        covered += summary.low_ms <= 0.6931471805599453 <= summary.high_ms
    assert 0.94 <= covered / 2000 <= 0.98  # 95.7 % is what ranks 9 and 21 of 30 give


def test_the_textbook_ranks_for_thirty_samples():
    summary = summarize(range(1, 31))
    assert (summary.low_ms, summary.high_ms) == (10, 21)
    assert (summary.median_ms, summary.p90_ms) == (15.5, 27)


def test_five_samples_give_their_range():
    assert (summarize([5, 1, 4, 2, 3]).low_ms, summarize([5, 1, 4, 2, 3]).high_ms) == (1, 5)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")], [-1.0]])
def test_samples_that_are_no_latencies_are_refused(values):
    with pytest.raises(ValueError):
        summarize(values)


@given(latencies, latencies, latencies)
def test_a_decision_is_met_above_or_undecided_and_never_contradicts_the_interval(a, b, target):
    low, high = min(a, b), max(a, b)
    decision = decide(low, high, target)
    assert (decision == "met") == (high <= target)
    assert (decision == "above") == (low > target)
    assert (decision == "undecided") == (low <= target < high)


@given(latencies, latencies, latencies, latencies)
def test_a_looser_target_never_turns_met_into_less(a, b, target, more):
    rank = {"above": 0, "undecided": 1, "met": 2}
    low, high = min(a, b), max(a, b)
    assert rank[decide(low, high, target + more)] >= rank[decide(low, high, target)]


def test_an_interval_the_wrong_way_round_is_refused():
    with pytest.raises(ValueError):
        decide(2.0, 1.0, 1.5)


def test_drift_is_the_change_from_the_first_third_to_the_last():
    assert drift([10, 10, 10, 12, 11, 11, 11]) == pytest.approx(0.1)
    assert drift([5, 5, 5]) == 0
