"""The three-valued verdict: an interval that straddles the goal gets more samples, then says that it cannot tell."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pipeline.fit import MORE_SAMPLES, Candidate, _judge
from targets.measure import Measurement


def measurement(low: float, high: float, runner: str = "host") -> Measurement:
    middle = (low + high) / 2
    return Measurement(
        artifact_sha256="0" * 64,
        format="tflite",
        target="host",
        profile_version="v",
        runner=runner,
        runtime="r 1",
        n=30,
        median_ms=middle,
        p90_ms=high,
        mad_ms=0.1,
        low_ms=low,
        high_ms=high,
        samples_ms=(low, high),
        instructions=None,
        cycles=None,
        state={},
    )


def judged(intervals: list[tuple[float, float]], runner: str = "host") -> tuple[str, list[float]]:
    """The verdict against 10 ms when each further measurement gives the next interval, and the seconds asked for."""
    first, *more = (measurement(*interval, runner) for interval in intervals)
    asked: list[float] = []

    def measured(made: object, artifacts: object, seconds: float) -> list[Measurement]:
        asked.append(seconds)
        return [more.pop(0)]

    candidate = Candidate(1, made=None, measurements=[first])
    return _judge(SimpleNamespace(measured=measured), candidate, 10.0), asked


@pytest.mark.parametrize(("interval", "verdict"), [((9, 9.9), "met"), ((9, 10), "met"), ((10.1, 11), "above")])
def test_a_clear_interval_needs_no_more_samples(interval: tuple[float, float], verdict: str) -> None:
    assert judged([interval]) == (verdict, [])


def test_a_straddling_interval_gets_more_samples_until_it_is_clear() -> None:
    assert judged([(9, 11), (9.5, 9.9)]) == ("met", list(MORE_SAMPLES[1:2]))
    assert judged([(9, 11), (9.5, 10.5), (10.2, 10.4)]) == ("above", list(MORE_SAMPLES[1:]))


def test_an_interval_that_keeps_straddling_is_undecided() -> None:
    assert judged([(9, 11), (9.5, 10.5), (9.9, 10.1)]) == ("undecided", list(MORE_SAMPLES[1:]))


def test_the_emulator_is_not_asked_again() -> None:
    assert judged([(9.99, 10.01)], runner="emulator") == ("undecided", [])
