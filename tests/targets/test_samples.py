"""Samples for integer inputs: float32 becomes the artifact's steps where it states them, and nowhere else."""

from __future__ import annotations

from types import SimpleNamespace

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.runners.artifact import ArtifactError, Samples, quantised


def saved(path, array):
    numpy.savez(path / "samples.npz", x=array)
    return path / "samples.npz"


def artifact(dtype, quantization):
    return SimpleNamespace(inputs=[("x", (1, 3), dtype)], quantization=[quantization])


@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20),
    st.floats(2**-10, 10, width=32),
    st.sampled_from([(numpy.int8, -5), (numpy.uint8, 128), (numpy.int16, 0)]),
)
def test_a_value_in_range_is_off_by_half_a_step_at_most(values, scale, kind):
    dtype, zero_point = kind
    array, limits = numpy.array(values, numpy.float32), numpy.iinfo(dtype)
    steps = quantised(array, dtype, scale, zero_point)
    assert steps.dtype == dtype
    back = (steps.astype(numpy.float64) - zero_point) * scale
    low, high = ((limit - zero_point) * scale for limit in (limits.min, limits.max))
    numpy.testing.assert_array_less(numpy.abs(back - numpy.clip(array, low, high)), 0.5001 * scale + 1e-9)


def test_float_samples_of_an_integer_input_are_quantised_by_its_own_scale(tmp_path):
    path = saved(tmp_path, numpy.array([[0.0, 0.5, -100.0], [0.25, 0.75, 100.0]], numpy.float32))
    samples = Samples(path, artifact(numpy.int8, (0.5, -3)))
    assert samples.count == 2
    assert samples[0][0].tolist() == [[-3, -2, -128]]
    assert samples[1][0].tolist() == [[-3, -1, 127]], "ties go to the even step"


def test_integer_samples_are_fed_as_they_are(tmp_path):
    given_steps = numpy.array([[1, 2, 3]], numpy.int8)
    assert Samples(saved(tmp_path, given_steps), artifact(numpy.int8, (0.5, -3)))[0][0].tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("quantization", [None, (0.5, 0)])
def test_other_types_are_never_converted(tmp_path, quantization):
    path = saved(tmp_path, numpy.zeros((1, 3), numpy.float64 if quantization else numpy.float32))
    with pytest.raises(ArtifactError, match="takes .* int8"):
        Samples(path, artifact(numpy.int8, quantization))
