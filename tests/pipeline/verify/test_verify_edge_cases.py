"""Edge cases made from a user's samples."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.verify.edge_cases import EDGE_SAMPLES, OWN, STRETCH, groups

SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
VALUES = st.floats(-100, 100, width=32)


def by_name(samples, input_range=None):
    return {group.name: group.samples for group in groups(samples, input_range)}


@settings(deadline=None)
@given(samples=SHAPES.flatmap(lambda shape: arrays(np.float32, shape, elements=VALUES)))
def test_every_group_fits_the_network_and_stays_finite(samples):
    made = by_name(samples)
    assert list(made)[0] == OWN and (made[OWN] == samples).all()
    for name, group in made.items():
        assert group.dtype == np.float32 and group.shape[1:] == samples.shape[1:] and np.isfinite(group).all()
        assert 1 <= len(group) <= (len(samples) if name == OWN else EDGE_SAMPLES)
    assert ("swapped channels" in made) == (samples.shape[1] > 1)


@settings(deadline=None)
@given(samples=SHAPES.flatmap(lambda shape: arrays(np.float32, shape, elements=VALUES)))
def test_constants_and_negatives_stay_in_each_channel_s_own_range(samples):
    made = by_name(samples)
    for channel in range(samples.shape[1]):
        low, high = samples[:, channel].min(), samples[:, channel].max()
        assert (made["constant minimum"][:, channel] == low).all()
        assert (made["constant maximum"][:, channel] == high).all()
        inverted = made["inverted"][:, channel]
        assert inverted.min() >= low - 1e-3 and inverted.max() <= high + 1e-3


def test_a_black_image_is_not_zero():
    """Two channels with means of their own: black is another number in each, and no zero."""
    pixels = np.random.default_rng(0).random((5, 2, 8, 8), np.float32)
    pixels[0, :, 0, 0] = 0
    normalised = (pixels - np.float32([[[0.4]], [[0.6]]])) / np.float32(0.25)
    made = by_name(normalised)
    assert (made["zeros"] == 0).all()
    np.testing.assert_allclose(made["constant minimum"][0, :, 0, 0], [-1.6, -2.4], rtol=1e-5)


@pytest.mark.parametrize("input_range", [None, (-2.0, 6.0)])
def test_stretched_samples_span_the_range_several_times(input_range):
    samples = np.random.default_rng(0).standard_normal((3, 3, 5, 5), np.float32)
    stretched = by_name(samples, input_range)["stretched range"]
    low, high = input_range or (samples.min(), samples.max())
    spans = np.ptp(stretched.reshape(3, -1), axis=1)
    np.testing.assert_allclose(spans, STRETCH * (high - low), rtol=1e-5)
    np.testing.assert_allclose(stretched.max(), (low + high) / 2 + STRETCH * (high - low) / 2, rtol=1e-5)
    alike = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(samples, stretched)]
    assert min(alike) > 0.9999, "each is the sample itself, larger"


def test_swapped_channels_hold_the_same_values_elsewhere():
    samples = np.random.default_rng(0).standard_normal((2, 3, 4, 4), np.float32)
    swapped = by_name(samples)["swapped channels"]
    assert (swapped != samples).any() and (np.sort(swapped, axis=1) == np.sort(samples, axis=1)).all()


def test_noise_has_the_samples_own_moments_and_is_the_same_again():
    generator = np.random.default_rng(0)
    samples = (generator.standard_normal((4, 2, 64, 64)) * [[[[0.5]], [[3.0]]]] + [[[[-1.0]], [[7.0]]]]).astype(
        np.float32
    )
    one, again = by_name(samples)["noise"], by_name(samples)["noise"]
    assert (one == again).all()
    np.testing.assert_allclose(one.mean((0, 2, 3)), [-1, 7], atol=0.1)
    np.testing.assert_allclose(one.std((0, 2, 3)), [0.5, 3], rtol=0.05)


def test_rows_of_features_have_edge_cases_too():
    samples = np.random.default_rng(0).standard_normal((9, 5), np.float32) + np.float32([0, 10, 0, 0, 0])
    made = by_name(samples)
    assert made["constant maximum"].shape == (1, 5)
    np.testing.assert_array_equal(made["constant maximum"][0], samples.max(0))
