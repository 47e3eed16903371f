"""Which runtime is recommended, and when none is."""

from __future__ import annotations

import pytest

from targets.measure import Measurement
from targets.recommendation import EMULATED_LEAD, recommend


def measurement(format: str, low: float, high: float, runner: str = "host", threads: int = 1) -> Measurement:
    return Measurement(
        artifact_sha256="0" * 64,
        format=format,
        target="t",
        profile_version="v",
        runner=runner,
        runtime="r 1",
        n=30,
        median_ms=(low + high) / 2,
        p90_ms=high,
        mad_ms=0.1,
        low_ms=low,
        high_ms=high,
        samples_ms=(low, high),
        instructions=None,
        cycles=None,
        state={},
        threads=threads,
    )


def test_the_fastest_runtime_is_named_with_its_lead_over_the_next():
    slow, fast, next_best = measurement("pte", 30, 32), measurement("onnx", 9, 11), measurement("tflite", 14, 16)
    advice = recommend([("c.pte", slow), ("b.onnx", fast), ("a.tflite", next_best)])
    assert (advice.decision, advice.artifact, advice.ratio) == ("fastest", "b.onnx", 1.5)
    assert advice.text == "ONNX Runtime/MLAS is 1.50 times as fast as TFLite/XNNPACK here: ship b.onnx"


def test_artifacts_of_one_runtime_are_named_by_their_files():
    advice = recommend([("a.tflite", measurement("tflite", 10, 10)), ("b.tflite", measurement("tflite", 5, 5))])
    assert advice.text == "b.tflite is 2.00 times as fast as a.tflite here: ship b.tflite"


@pytest.mark.parametrize(
    ("runner", "next_low", "decision"),
    [
        ("host", 10.5, "undecided"),
        ("host", 11.1, "fastest"),
        ("emulator", 11.1, "undecided"),
        ("emulator", 11 * EMULATED_LEAD + 0.01, "fastest"),
    ],
)
def test_a_lead_that_the_intervals_do_not_show_is_not_claimed(runner, next_low, decision):
    advice = recommend(
        [("a.tflite", measurement("tflite", 9, 11, runner)), ("b.pte", measurement("pte", next_low, 20, runner))]
    )
    assert advice.decision == decision and advice.artifact == "a.tflite"
    assert advice.text.startswith("undecided") == (decision == "undecided")


def test_one_artifact_is_compared_with_nothing():
    assert recommend([("a.tflite", measurement("tflite", 9, 11))]) is None


def test_different_numbers_of_threads_are_not_compared():
    with pytest.raises(ValueError, match="threads"):
        recommend([("a.onnx", measurement("onnx", 1, 1)), ("b.onnx", measurement("onnx", 1, 1, threads=2))])
