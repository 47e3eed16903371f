"""Intervals for quantiles of samples that do and do not depend on each other."""

from __future__ import annotations

import json
import math

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from synthetic import Mood, autoregressive, heavy_tailed, independent, two_clocks, wave

from targets.quantiles import Interval, quantile_interval

TIMES_S = numpy.arange(1, 501) * 0.02  # 500 samples of 10 ms, every other one of the same artifact
ROUNDS = [10] * 50
samples = st.lists(st.floats(min_value=0, max_value=1e6), min_size=1, max_size=80)


def covered(mood: Mood, p: float, truth: float, rounds: list[int] | None, runs: int = 300) -> float:
    """The share of intervals for 95 % that hold the truth."""
    hits = 0
    for seed in range(runs):
        found = quantile_interval(mood(TIMES_S, numpy.random.default_rng(seed)), p, confidence=0.95, rounds=rounds)
        hits += found.low <= truth <= found.high
    return hits / runs


@given(samples, st.sampled_from([0.1, 0.5, 0.9]), st.integers(1, 7))
def test_an_interval_holds_its_quantile_and_ends_at_samples(values, p, size):
    rounds = [len(part) for part in numpy.array_split(values, math.ceil(len(values) / size))]
    for found in (
        quantile_interval(values, p, confidence=0.95),
        quantile_interval(values, p, confidence=0.95, rounds=rounds),
    ):
        assert found.low <= found.value <= found.high
        assert {found.low, found.high} <= {*values, -math.inf, math.inf}


@given(samples, st.integers(1, 7))
def test_dependence_never_narrows_an_interval(values, size):
    rounds = [len(part) for part in numpy.array_split(values, math.ceil(len(values) / size))]
    alone = quantile_interval(values, 0.5, confidence=0.95)
    together = quantile_interval(values, 0.5, confidence=0.95, rounds=rounds)
    assert together.low <= alone.low and alone.high <= together.high


@pytest.mark.parametrize(
    ("n", "p", "confidence", "ranks"),
    [
        (30, 0.5, 0.95, (10, 21)),
        (10, 0.5, 0.95, (2, 9)),
        (5, 0.5, 0.95, (None, None)),
        (36, 0.9, 0.95, (29, 36)),  # 0.9^36 is below 2.5 %
        (35, 0.9, 0.95, (28, None)),
    ],
)
def test_the_ranks_of_the_binomial_distribution(n, p, confidence, ranks):
    found = quantile_interval(range(1, n + 1), p, confidence=confidence)
    assert (found.low, found.high) == (ranks[0] or -math.inf, ranks[1] or math.inf)


@pytest.mark.parametrize(
    ("mood", "p90"),
    [
        (independent, math.exp(0.05 * norm.ppf(0.9))),
        (autoregressive(0.9), math.exp(0.02 * norm.ppf(0.9))),
        (autoregressive(0.98), math.exp(0.02 * norm.ppf(0.9))),
        (heavy_tailed, None),
        (two_clocks(0.3), None),
        (wave(3.0), None),
    ],
    ids=["independent", "AR(0.9)", "AR(0.98)", "heavy tails", "two clocks", "wave"],
)
def test_an_interval_covers_the_quantile_as_often_as_it_says(mood, p90):
    assert covered(mood, 0.5, 1.0, ROUNDS) >= 0.93  # of 300, 95 % less two standard deviations
    if p90:
        assert covered(mood, 0.9, p90, ROUNDS) >= 0.93


def test_taken_for_independent_an_autocorrelated_machine_is_believed_too_much():
    assert covered(autoregressive(0.98), 0.5, 1.0, None) < 0.4


def test_independent_samples_lose_little_to_the_corrections():
    drawn = [independent(TIMES_S, numpy.random.default_rng(seed)) for seed in range(100)]
    widths = [
        numpy.median([(found.high - found.low) for found in (quantile_interval(x, 0.5, **settings) for x in drawn)])
        for settings in ({"confidence": 0.95}, {"confidence": 0.95, "rounds": ROUNDS})
    ]
    assert 1 < widths[1] / widths[0] < 2.5


def test_bounds_that_do_not_exist_are_none_in_json():
    found = quantile_interval([1.0, 2.0, 3.0], 0.9, confidence=0.95)
    record = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert record == {"value": 3.0, "low": 1.0, "high": None}
    assert Interval.from_json(record) == found
