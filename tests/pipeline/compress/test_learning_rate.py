"""Which rate a recovery is given, by what some steps at each lead to."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from pipeline.compress.descent import Progress
from pipeline.compress.learning_rate import HOPELESS, RUNGS, Found, find_rate, trial_steps

STEPS, BEFORE = 5, 1.0


def found(ends: list[float], tried: list[float] | None = None) -> Found:
    """Asked for 1.0, where the rates from there down end at `ends`; inf is lost in the second step."""

    def attempt(rate: float, told: Progress) -> float:
        end = ends[round(-2 * math.log10(rate))]
        if tried is not None:
            tried.append(rate)
        for step in range(STEPS):
            told(step + 1, 2.0 if step == 0 else 2.0 * HOPELESS + 1 if math.isinf(end) else 2.0)
        return end

    return find_rate(1.0, attempt, BEFORE, lambda step, loss: None)


@pytest.mark.parametrize(
    ("ends", "rung", "steps"),
    [
        ([0.5, 0.6], 0, 10),  # the asked rate is the best: nothing is tried above it
        ([0.9, 0.5, 0.6], 0, 15),  # one above the best
        ([3.0, 0.9, 0.5, 0.6], 1, 20),
        ([math.inf, 0.5, 0.6], 1, 12),  # but none that was lost
        ([math.inf, math.inf, 0.9, 0.8, 0.85], 2, 19),
        ([5.0, 0.5, 0.6], 1, 15),  # nor one that ended too far off
        ([math.inf, 5.0, 3.0, 2.0, 1.5, 1.2], 5, 27),  # none comes nearer: the least
        ([math.inf] * RUNGS, 5, 12),
        ([math.nan, 0.5, 0.6], 1, 15),
    ],
)
def test_the_rate_and_what_it_took(ends: list[float], rung: int, steps: int) -> None:
    answer = found(ends)
    assert answer.rate == pytest.approx(10 ** (-rung / 2)) and answer.steps == steps


def test_a_short_recovery_tries_nothing() -> None:
    assert [trial_steps(steps) for steps in (0, 71, 159, 160, 400, 2000)] == [0, 0, 0, 16, 20, 100]


def test_trying_ends_where_it_gets_worse() -> None:
    tried: list[float] = []
    found([0.9, 0.5, 0.6, 0.1, 0.1, 0.1], tried)
    assert len(tried) == 3


def test_every_step_is_told_in_order() -> None:
    told: list[tuple[int, float]] = []

    def attempt(rate: float, each: Callable[[int, float], None]) -> float:
        for step in range(STEPS):
            each(step + 1, rate)
        return 1 / rate

    find_rate(1.0, attempt, BEFORE, lambda step, loss: told.append((step, loss)))
    assert [step for step, _ in told] == list(range(1, 2 * STEPS + 1)) and {loss for _, loss in told} == {1.0, 10**-0.5}
