"""The figures and the verdict, on arrays alone."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.export.artifact import Artifact, TensorSpec
from pipeline.verify.execute import from_layout, to_layout
from pipeline.verify.figures import compare, top1_agreement
from pipeline.verify.parity import Parity, check, require
from pipeline.verify.tolerance import FP32
from targets.errors import VerificationError

SEEDS = st.integers(0, 2**32 - 1)


def artifact(*outputs: TensorSpec, layout: str = "NCHW") -> Artifact:
    shape = (1, 3, 4, 5) if layout == "NCHW" else (1, 4, 5, 3)
    return Artifact(
        Path("model.onnx"),
        "onnx",
        "0" * 64,
        1,
        "onnxruntime",
        "1.14",
        (TensorSpec("x", shape, "float32", layout),),
        outputs,
        {},
        0.0,
    )


SCORES = TensorSpec("scores", (1, 10), "float32", "NC")
SAMPLES = np.random.default_rng(1).standard_normal((8, 3, 4, 5)).astype(np.float32)


def verdict(actual: np.ndarray, reference: np.ndarray) -> Parity:
    return check(artifact(SCORES), [reference], SAMPLES, run=lambda *_: [actual])


@given(seed=SEEDS, noise=st.sampled_from([1e-7, 1e-4, 1e-2]), scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_verdict_does_not_depend_on_the_scale(seed, noise, scale):
    generator = np.random.default_rng(seed)
    reference = generator.standard_normal((8, 10))
    actual = reference + noise * generator.standard_normal((8, 10))
    plain, scaled = compare("o", actual, reference, FP32), compare("o", actual * scale, reference * scale, FP32)
    assert scaled.relative_rmse == pytest.approx(plain.relative_rmse) == pytest.approx(noise, rel=0.7)
    assert scaled.sqnr_db == pytest.approx(plain.sqnr_db) == pytest.approx(-20 * np.log10(plain.relative_rmse))
    assert scaled.max_abs == pytest.approx(plain.max_abs * scale)
    assert scaled.top1_agreement == plain.top1_agreement
    assert verdict(actual, reference).passed == verdict(actual * scale, reference * scale).passed == (noise < 1e-3)


@given(seed=SEEDS)
def test_identical_outputs_are_perfect(seed):
    reference = np.random.default_rng(seed).standard_normal((8, 10)).astype(np.float32)
    output = compare("o", reference, reference, FP32)
    assert (output.max_abs, output.relative_rmse, output.sqnr_db) == (0.0, 0.0, float("inf"))
    assert output.cosine == pytest.approx(1.0)


@given(seed=SEEDS, bad=st.sampled_from([np.nan, np.inf, -np.inf]), index=st.integers(0, 79), eager=st.booleans())
def test_nan_anywhere_fails(seed, bad, index, eager):
    reference = np.random.default_rng(seed).standard_normal((8, 10))
    damaged = reference.copy()
    damaged.flat[index] = bad
    parity = verdict(reference, damaged) if eager else verdict(damaged, reference)
    assert not parity.passed and ("network itself" if eager else "the artifact") in parity.reasons[0]
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
    assert not verdict(zeros + 1e-9, zeros).passed


def test_wrong_count_and_wrong_shape_fail_without_figures():
    reference = np.ones((8, 10))
    parity = verdict(np.ones((8, 9)), reference)
    assert not parity.passed and "[8, 9]" in parity.reasons[0] and parity.outputs == ()
    with pytest.raises(VerificationError, match="does not compute"):
        require(parity, artifact(SCORES))
    parity = check(artifact(SCORES), [reference, reference], SAMPLES, run=lambda *_: [reference])
    assert not parity.passed and "1 outputs, the network 2" in parity.reasons[0]


def test_worst_output_is_named():
    other = TensorSpec("other", (1, 10), "float32", "NC")
    reference = np.random.default_rng(0).standard_normal((8, 10))
    both = artifact(SCORES, other)
    parity = check(both, [reference, reference], SAMPLES, run=lambda *_: [reference * 1.01, reference * 1.5])
    with pytest.raises(VerificationError) as caught:
        require(parity, both)
    assert "worst output 'other': relative RMSE 0.5" in caught.value.why


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_layouts_are_the_artifacts_inside_and_the_networks_outside(layout):
    spec = TensorSpec("y", (1, 3, 4, 5) if layout == "NCHW" else (1, 4, 5, 3), "float32", layout)

    def doubled(_, samples):
        assert samples.shape[1:] == spec.shape[1:]
        return [samples * 2]

    assert check(artifact(spec, layout=layout), [SAMPLES * 2], SAMPLES, run=doubled).passed


@given(shape=st.tuples(*[st.integers(1, 4)] * 4), layout=st.sampled_from(["NCHW", "NHWC"]))
def test_layout_round_trip(shape, layout):
    values = np.arange(np.prod(shape)).reshape(shape)
    spec = TensorSpec("x", (1,), "float32", layout)
    assert (from_layout(to_layout(values, spec), spec) == values).all()
    assert (to_layout(values[0, 0], TensorSpec("x", (1,), "float32", "NC")) == values[0, 0]).all()


def test_json_round_trip():
    reference = np.random.default_rng(0).standard_normal((8, 10))
    for actual in (reference, reference * 1.0001, reference * 2):
        parity = verdict(actual, reference)
        assert Parity.from_json(json.loads(json.dumps(parity.to_json(), allow_nan=False))) == parity
