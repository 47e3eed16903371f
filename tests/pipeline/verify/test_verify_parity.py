"""The figures and the verdict, on arrays alone."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.export.artifact import TensorSpec
from pipeline.verify.edge_cases import OWN, Group
from pipeline.verify.execute import from_layout, to_layout
from pipeline.verify.figures import compare, top1_agreement
from pipeline.verify.parity import Parity, failure, judge
from pipeline.verify.reference import Case, Reference
from pipeline.verify.tolerance import FP16, FP32, INT8, ROUNDINGS, TOLERANCES, Tolerance

SEEDS = st.integers(0, 2**32 - 1)
FILE = Path("model.onnx")


def case(name: str, *outputs: np.ndarray, nudged: np.ndarray | None = None) -> Case:
    samples = np.zeros((len(outputs[0]), 3, 4, 5), np.float32)
    return Case(Group(name, samples), outputs, None if nudged is None else (nudged,))


def verdict(actual: np.ndarray, reference: np.ndarray, tolerance: Tolerance = FP32, labels=None) -> Parity:
    """Of one output on the user's samples alone."""
    return judged([case(OWN, reference)], [actual], tolerance, labels)


def edged(actual: np.ndarray, edge: Case, tolerance: Tolerance = FP32) -> Parity:
    """Of `actual` on an edge case, right on the user's samples, on which outputs are of size 1."""
    own = np.random.default_rng(0).standard_normal((8, 10))
    return judged([case(OWN, own), edge], [np.concatenate([own, actual])], tolerance)


def judged(cases, outputs, tolerance: Tolerance = FP32, labels=None) -> Parity:
    return judge(
        Reference(tuple(cases), labels),
        outputs,
        [f"output_{index}" for index in range(len(outputs))],
        artifact_sha256="0" * 64,
        format="onnx",
        level="host",
        runner="onnxruntime",
        tolerance=tolerance,
    )


@given(seed=SEEDS, noise=st.sampled_from([1e-7, 1e-4, 1e-2]), scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_verdict_does_not_depend_on_the_scale(seed, noise, scale):
    generator = np.random.default_rng(seed)
    reference = generator.standard_normal((8, 10))
    actual = reference + noise * generator.standard_normal((8, 10))
    plain, scaled = compare("o", actual, reference, FP32), compare("o", actual * scale, reference * scale, FP32)
    assert scaled.relative_rmse == pytest.approx(plain.relative_rmse) == pytest.approx(noise, rel=0.7)
    assert scaled.sqnr_db == pytest.approx(plain.sqnr_db) == pytest.approx(-20 * np.log10(plain.relative_rmse))
    assert scaled.max_abs == pytest.approx(plain.max_abs * scale)
    assert scaled.max_abs_of_peak == pytest.approx(plain.max_abs_of_peak)
    assert scaled.top1_agreement == plain.top1_agreement
    assert verdict(actual, reference).passed == verdict(actual * scale, reference * scale).passed == (noise < 1e-3)


@given(seed=SEEDS)
def test_identical_outputs_are_perfect(seed):
    reference = np.random.default_rng(seed).standard_normal((8, 10)).astype(np.float32)
    output = compare("o", reference, reference, FP32)
    assert (output.max_abs, output.relative_rmse, output.sqnr_db) == (0.0, 0.0, float("inf"))
    assert output.cosine == pytest.approx(1.0)


@given(seed=SEEDS, angle=st.floats(0.01, 3.1))
def test_figures_of_one_output_agree_with_one_another(seed, angle):
    """Of two vectors of one length the relative error follows from the angle between them."""
    first, second = np.linalg.qr(np.random.default_rng(seed).standard_normal((20, 2)))[0].T
    output = compare("o", (np.cos(angle) * first + np.sin(angle) * second)[None], first[None], FP32)
    assert output.cosine == pytest.approx(np.cos(angle), abs=1e-9)
    assert output.relative_rmse == pytest.approx(2 * np.sin(angle / 2))
    assert output.max_abs <= output.relative_rmse * np.linalg.norm(first) + 1e-12


@given(seed=SEEDS, bad=st.sampled_from([np.nan, np.inf, -np.inf]), index=st.integers(0, 79), eager=st.booleans())
def test_nan_anywhere_fails(seed, bad, index, eager):
    reference = np.random.default_rng(seed).standard_normal((8, 10))
    damaged = reference.copy()
    damaged.flat[index] = bad
    parity = verdict(reference, damaged) if eager else verdict(damaged, reference)
    assert parity.failed and ("network itself" if eager else "the artifact") in parity.reasons[0]
    assert Parity.from_json(json.loads(json.dumps(parity.to_json(), allow_nan=False))).reasons == parity.reasons


def test_one_wrong_element_among_many_fails():
    reference = np.ones((8, 100_000))
    actual = reference.copy()
    actual[3, 77] = 1.05
    assert compare("o", actual, reference, FP32).relative_rmse < FP32.relative_rmse
    assert "off by up to" in verdict(actual, reference).reasons[0]


def test_one_wrong_sample_fails_by_its_class():
    reference = np.zeros((1000, 10))
    reference[:, 0], reference[:, 1] = 1000.0, 997.0  # decided, though by little
    actual = reference.copy()
    actual[:6, 1] += 6.0
    output = compare("o", actual, reference, FP32)
    assert output.relative_rmse < FP32.relative_rmse and output.top1_agreement == pytest.approx(0.994)
    assert "names the same class for 99.4%" in verdict(actual, reference).reasons[-1]


def test_ties_say_nothing():
    reference = np.array([[1.0, 1.0 + 1e-4, 0.0], [1.0, 0.0, 0.0]])
    flipped = np.array([[1.0 + 2e-4, 1.0, 0.0], [1.0, 0.0, 0.0]])
    assert top1_agreement(flipped, reference, FP32) == 1.0
    assert top1_agreement(flipped[:1], reference[:1], FP32) is None
    assert top1_agreement(flipped[:, ::-1], reference, FP32) == 0.0
    assert top1_agreement(reference[:, :1], reference[:, :1], FP32) is None


def test_reference_of_zeros():
    zeros = np.zeros((8, 10))
    assert verdict(zeros, zeros).passed
    assert compare("o", zeros + 1e-9, zeros, FP32).relative_rmse == float("inf")
    assert verdict(zeros + 1e-9, zeros).failed


@pytest.mark.parametrize("tolerance", TOLERANCES.values(), ids=TOLERANCES)
def test_an_output_of_zeros_fails_in_every_precision(tolerance):
    reference = np.random.default_rng(0).standard_normal((8, 10))
    parity = verdict(np.zeros((8, 10)), reference, tolerance)
    assert parity.failed and parity.outputs[0].relative_rmse == 1 and parity.outputs[0].cosine == 0


@pytest.mark.parametrize("tolerance", TOLERANCES.values(), ids=TOLERANCES)
def test_classes_in_another_order_fail_in_every_precision(tolerance):
    reference = np.random.default_rng(0).standard_normal((64, 10))
    parity = verdict(np.roll(reference, 1, axis=1), reference, tolerance)
    assert parity.failed and "relative RMSE" in parity.reasons[0] and "same class" in parity.reasons[-1]


def test_limits_leave_room_for_the_roundings_of_their_precision_and_for_little_more():
    """One rounding's RMS error, grown through a hundred layers, passes; ten times the limit does not."""
    generator = np.random.default_rng(0)
    reference, error = generator.standard_normal((2, 64, 1000))
    for tolerance in TOLERANCES.values():
        rounding = 12 / 255 / np.sqrt(12) if tolerance is INT8 else tolerance.unit_roundoff / np.sqrt(3)
        assert verdict(reference + ROUNDINGS * rounding * error, reference, tolerance).passed
        assert verdict(reference + 10 * tolerance.relative_rmse * error, reference, tolerance).failed
    assert FP32.relative_rmse < FP16.relative_rmse < INT8.relative_rmse


# Edge cases ------------------------------------------------------------------------------------------------------


@given(noise=st.sampled_from([1e-5, 1e-2]), sign=st.sampled_from([-1, 1]))
def test_outputs_that_cancel_are_judged_by_their_usual_size(noise, sign):
    zeros = np.zeros((1, 10))
    parity = edged(zeros + sign * noise, case("zeros", zeros))
    assert parity.passed == (noise < FP32.relative_rmse)
    assert parity.groups[1].outputs[0].relative_rmse == pytest.approx(noise, rel=0.5)


@given(noise=st.sampled_from([1e-5, 1e-2]))
def test_huge_outputs_are_judged_by_their_own_size(noise):
    huge = 1e6 * np.random.default_rng(1).standard_normal((4, 10))
    assert edged(huge * (1 + noise), case("stretched range", huge)).passed == (noise < FP32.relative_rmse)


def test_a_failed_edge_case_is_named_and_the_users_samples_stay_apart():
    reference = np.random.default_rng(1).standard_normal((1, 10))
    parity = edged(reference + 1, case("constant minimum", reference))
    assert parity.failed and parity.reasons[0].startswith("on the edge case 'constant minimum' output 'output_0' has")
    assert [group.verdict for group in parity.groups] == ["passed", "failed"]
    assert parity.samples == 8 and parity.outputs[0].relative_rmse == 0
    error = failure(parity, FILE)
    assert (error.code, error.exit_code, error.where) == ("PARITY_FAILED", 4, "model.onnx")
    assert "'constant minimum'" in error.why and "(n = 1)" in error.why and len(str(error).splitlines()) == 4


def test_where_the_network_itself_is_not_finite_nothing_is_judged():
    reference = np.random.default_rng(1).standard_normal((4, 10))
    reference[[0, 2], 3] = np.inf
    actual = np.where(np.isfinite(reference), reference, 0)
    parity = edged(actual, case("stretched range", reference))
    assert parity.passed and parity.groups[1].samples == 2
    parity = edged(actual[[0, 2]], case("stretched range", reference[[0, 2]]))
    assert parity.passed and (parity.groups[1].verdict, parity.groups[1].outputs) == ("not judged", ())
    actual[1, 0] = np.nan
    parity = edged(actual, case("stretched range", reference))
    assert parity.failed and "the artifact returned NaN" in parity.reasons[0]


def test_a_network_that_amplifies_rounding_is_given_room_for_it_but_not_for_any_error():
    reference = np.random.default_rng(1).standard_normal((4, 10))
    moved = reference * (1 + 5e-4)
    assert edged(reference * 1.005, case("noise", reference)).failed
    assert edged(reference * 1.005, case("noise", reference, nudged=moved)).passed
    assert edged(reference * 1.05, case("noise", reference, nudged=moved)).failed
    assert edged(-2 * reference, case("noise", reference, nudged=100 * reference)).failed
    assert edged(reference * 1.005, case("noise", reference, nudged=moved * np.nan)).failed


def test_saturation_explains_too_little_but_not_the_wrong_sign():
    reference = np.random.default_rng(1).standard_normal((4, 10))
    for factor, passed in ((0.3, True), (-0.3, False), (2.5, False)):
        assert edged(factor * reference, case("stretched range", reference), INT8).passed is passed
        assert edged(factor * reference, case("stretched range", reference), FP16).failed


# The task --------------------------------------------------------------------------------------------------------


def test_right_answers_lost_fail_where_the_figures_pass():
    """Scores so close that int8 may decide either way; it decides wrongly too often."""
    reference = np.zeros((1000, 2))
    reference[:, 0] = 1.0
    reference[:, 1] = 0.9
    actual = reference.copy()
    labels = np.zeros(1000, np.int64)
    actual[:5] = actual[:5, ::-1]
    assert verdict(actual, reference, INT8, labels).passed
    actual[:50] = reference[:50, ::-1]
    parity = verdict(actual, reference, INT8, labels)
    assert parity.groups[0].verdict == "passed" and parity.failed
    assert "answers 95.00% rightly and the network 100.00%" in parity.reasons[0]
    assert verdict(actual, reference, INT8).passed and verdict(actual, reference, INT8).task is None


# Shapes and records ----------------------------------------------------------------------------------------------


def test_wrong_count_and_wrong_shape_fail_without_figures():
    reference = np.ones((8, 10))
    parity = verdict(np.ones((8, 9)), reference)
    assert parity.failed and "[8, 9]" in parity.reasons[0] and parity.outputs == ()
    assert "does not compute" in failure(parity, FILE).what
    parity = judged([case(OWN, reference, reference)], [reference])
    assert parity.failed and "1 outputs, the network 2" in parity.reasons[0]
    assert verdict(np.ones((80,)), reference).failed, "an output without a batch dimension"


def test_worst_output_is_named():
    reference = np.random.default_rng(0).standard_normal((8, 10))
    parity = judged([case(OWN, reference, reference)], [reference * 1.01, reference * 1.5])
    assert "worst output 'output_1': relative RMSE 0.5" in failure(parity, FILE).why


def test_what_was_not_run_has_neither_passed_nor_failed():
    passed = verdict(np.ones((8, 10)), np.ones((8, 10)))
    parity = dataclasses.replace(passed, verdict="not run here", reasons=("no phone",), groups=(), runner="")
    assert not parity.passed and not parity.failed and parity.samples == 0 and parity.outputs == ()
    assert Parity.from_json(json.loads(json.dumps(parity.to_json(), allow_nan=False))) == parity


@given(shape=st.tuples(*[st.integers(1, 4)] * 4), layout=st.sampled_from(["NCHW", "NHWC"]))
def test_layout_round_trip(shape, layout):
    values = np.arange(np.prod(shape)).reshape(shape)
    spec = TensorSpec("x", (1,), "float32", layout)
    assert (from_layout(to_layout(values, spec), spec) == values).all()
    assert (to_layout(values[0, 0], TensorSpec("x", (1,), "float32", "NC")) == values[0, 0]).all()


def test_json_round_trip():
    reference = np.random.default_rng(0).standard_normal((8, 10))
    labels = reference.argmax(1)
    for actual in (reference, reference * 1.0001, reference * 2):
        for given_labels in (labels, None):
            parity = verdict(actual, reference, FP32, given_labels)
            assert (parity.task is None) == (given_labels is None)
            assert Parity.from_json(json.loads(json.dumps(parity.to_json(), allow_nan=False))) == parity
