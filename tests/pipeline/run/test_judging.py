"""The three-valued verdict: an interval that straddles the goal gets more samples, then says that it cannot tell.

What a strict recipe finds is judged last: with an artifact that is not delegated whole, a run has not met its goal.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.fit import MORE_SAMPLES, Candidate, FitResult, _judge
from pipeline.recipe import make_recipe
from pipeline.results import run_record
from pipeline.stages import Made
from pipeline.verify.delegation import Delegation, Fallback
from targets.measure import Measurement
from targets.profile import load_profile


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


@pytest.mark.parametrize(
    ("met", "delegated", "verdict", "exit_code"),
    [(True, True, "met", 0), (True, False, "verification-failed", 4), (False, False, "not-met", 3)],
)
def test_a_goal_met_by_an_artifact_that_is_not_delegated_whole_is_no_success(
    tmp_path: Path, met: bool, delegated: bool, verdict: str, exit_code: int
) -> None:
    left = () if delegated else (Fallback("ATAN2", "blocks.middle", 1),)
    placed = Delegation("0" * 64, "tflite", "host", "r 1", "XNNPACK", "", 1, 9, 9 - len(left), fallbacks=left)
    rows = {name: [] for name in ("edits", "rejected", "layers")}
    made = Made("candidates/00", {**rows, "budget_ms": None, "predicted_ms": 9.0, "parameters": 1, "smallest": False})
    file = SimpleNamespace(
        format="tflite", path=tmp_path / "model.tflite", sha256="0" * 64, bytes=1, seconds=1.0, peak_mib=1.0
    )
    final = Candidate(0, made, [file], delegation=[placed], measurements=[measurement(9, 9.9)], verdict="met")
    stages = SimpleNamespace(
        recipe=make_recipe(model="m.py:net", data="d.npz", target="host", latency="10ms", strict=True),
        profile=load_profile("host"),
        run=SimpleNamespace(root=tmp_path),
        samples=SimpleNamespace(test=SimpleNamespace(has_labels=True)),
    )
    result = FitResult(10.0, final, [], final, met, False, None, final.violations)
    now = datetime.now(UTC)
    record = run_record(stages, result, command="planish fit", started=now, finished=now)
    assert (record.verdict, record.exit_code, record.winner) == (verdict, exit_code, 0 if verdict == "met" else None)
    assert record.base.reasons == final.violations
    told = "ATAN2 in 'blocks.middle' is not taken by XNNPACK." in record.headline
    assert told == (verdict == "verification-failed")
