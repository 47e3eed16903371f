"""What a finished run says: the verdict, its exit code, the sentence, the front, and what each knob would buy."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from made_up import candidate, measurement, outcome, quality, result

from pipeline.advice import advice, front
from pipeline.loop import FitResult
from pipeline.recipe import make_recipe
from pipeline.results import run_record
from pipeline.verify.delegation import Delegation, Fallback
from reports.records import RunRecord
from targets.profile import load_profile


def recorded(root: Path, found: FitResult, **asked: object) -> RunRecord:
    fields = {"model": "m.py:net", "data": "d.npz", "target": "pixel-4-cpu", "latency": "10ms", **asked}
    for one in (found.original, *found.probes):
        one.artifacts[0].path = root / "model.tflite"
    stages = SimpleNamespace(
        recipe=make_recipe(**fields),
        profiles=[load_profile("pixel-4-cpu")],
        run=SimpleNamespace(root=root, seconds=lambda name: 0.0),
        samples=SimpleNamespace(test=SimpleNamespace(has_labels=True)),
    )
    now = datetime.now(UTC)
    return run_record(stages, found, command="planish fit", started=now, finished=now)


@pytest.mark.parametrize(
    ("met", "delegated", "verdict", "exit_code"),
    [(True, True, "met", 0), (True, False, "verification-failed", 4), (False, False, "not-met", 3)],
)
def test_a_goal_met_by_an_artifact_that_is_not_delegated_whole_is_no_success(
    tmp_path: Path, met: bool, delegated: bool, verdict: str, exit_code: int
) -> None:
    left = () if delegated else (Fallback("ATAN2", "blocks.middle", 1),)
    placed = Delegation("0" * 64, "tflite", "pixel-4-cpu", "r 1", "XNNPACK", "", 1, 9, 9 - len(left), fallbacks=left)
    original = candidate(0, 9.0 if met else 11.0, delegation=[placed])
    record = recorded(tmp_path, result(original, violations=original.violations), strict=True)
    assert (record.verdict, record.exit_code, record.winner) == (verdict, exit_code, 0 if verdict == "met" else None)
    assert record.base.reasons == original.violations
    told = "ATAN2 in 'blocks.middle' is not taken by XNNPACK." in record.headline
    assert told == (verdict == "verification-failed")


def test_latency_met_and_floor_broken_is_shown_as_such(tmp_path: Path) -> None:
    """Candidate 1 keeps the floor and misses the latency; 2 meets it, and 3 is 2 after recovery."""
    original = candidate(0, 20.0, quality=quality(90.0))
    slow = candidate(1, 11.0, quality=quality(89.8, 0.2, "network"))
    fast = candidate(2, 9.9, quality=quality(85.0, 5.0, "network"))
    final = candidate(3, 9.9, quality=quality(88.0, 2.0), recovered_from=2)
    found = result(original, slow, fast, final, allowed_drop=1.0)
    record = recorded(tmp_path, found, max_drop="1pt")
    assert (record.verdict, record.exit_code, record.floor_kept, record.best) == ("not-met", 3, False, 3)
    assert "Every limit is met" in record.headline and "2 points of quality were lost and 1" in record.headline
    assert record.front == (3, 1, 0)
    knobs = {each.knob: each for each in record.advice}
    assert knobs["latency"].option == "--latency 11.05ms" and knobs["latency"].candidate == 1
    assert knobs["quality floor"].option == "--max-drop 2.01pt"
    assert knobs["recovery"].option == "--recover-steps 800" and "won 3" in knobs["recovery"].text


def test_floor_kept_and_latency_missed_is_shown_as_such(tmp_path: Path) -> None:
    original, final = candidate(0, 20.0, quality=quality(90.0)), candidate(1, 12.0, quality=quality(89.9, 0.1))
    final.made.result["smallest"] = True
    record = recorded(tmp_path, result(original, final, allowed_drop=1.0), max_drop="1pt")
    assert (record.verdict, record.exit_code, record.floor_kept) == ("not-met", 3, True)
    assert "1.2 times the 10 ms asked for; nothing smaller can be planned" in record.headline
    (closest,) = record.advice
    assert closest.option == "--latency 12.06ms" and closest.candidate == 1


def test_every_limit_that_is_missed_has_its_gap(tmp_path: Path) -> None:
    outcomes = [outcome(12.0), outcome(3e6, 2e6, quantity="size")]
    record = recorded(tmp_path, result(candidate(0, 20.0), candidate(1, 12.0, outcomes=outcomes)), size="2MB")
    assert "the latency is 1.2 times the 10 ms" in record.headline
    assert "the size is 1.5 times the 2" in record.headline
    assert record.candidates[0].margin_percent == pytest.approx(50)


def test_what_cannot_be_told_is_exit_5_with_the_reason(tmp_path: Path) -> None:
    open_one = outcome(10.0, verdict="undecided").model_copy(update={"reason": "the machine changed"})
    record = recorded(tmp_path, result(candidate(0, 20.0), candidate(1, 10.0, outcomes=[open_one])))
    assert (record.verdict, record.exit_code) == ("undecided", 5)
    assert "cannot be told" in record.headline and "the machine changed" in record.headline


def test_a_faster_format_that_was_measured_is_advised() -> None:
    both = [measurement(9.0, 9.1), measurement(5.0, 5.1, format="onnx")]
    recipe = make_recipe(model="m.py:net", data="d.npz", target="pixel-4-cpu", latency="10ms")
    (one,) = advice(recipe, result(candidate(0, 20.0), candidate(1, 9.0, measurements=both)))
    assert (one.knob, one.option) == ("format", "--format onnx --format tflite")


def test_without_a_quality_there_is_no_front() -> None:
    assert front(result(candidate(0, 20.0), candidate(1, 9.0))) == ()
