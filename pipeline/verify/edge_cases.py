"""Inputs at the edge of what a network will meet, made from the user's own samples.

A converter's mistakes often hide where ordinary samples do not go: a bias folded with the wrong padding shows on
constant inputs, a clipped range on large ones, swapped channels on samples whose channels differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

OWN = "your samples"
EDGE_SAMPLES = 4
STRETCH = 3.0


@dataclass(frozen=True)
class Group:
    """Samples that are judged together and reported by one name; `samples` [N, ...] in the network's layout."""

    name: str
    samples: np.ndarray

    @property
    def edge(self) -> bool:
        return self.name != OWN


def groups(samples: np.ndarray, input_range: tuple[float, float] | None = None) -> tuple[Group, ...]:
    """The user's `samples` [N, C, ...] float32 first, then the edge cases, of at most `EDGE_SAMPLES` samples each.

    zeros: nothing but 0, which is grey in a normalised image.
    constant minimum, constant maximum: every channel at the smallest or largest value it has in `samples`: an image all
        black or all white, normalised as theirs are.
    stretched range: each sample scaled and shifted until it spans `input_range` `STRETCH` times, about its middle.
    swapped channels: the channels in another order, as when an app feeds BGR; not for a single channel.
    inverted: each channel mirrored between its smallest and largest value, as a negative.
    noise: normal, with each channel's own mean and deviation; drawn from a fixed seed.

    Args:
        input_range: smallest and largest value of the calibration data; that of `samples` unless told otherwise.
    """
    some = samples[:EDGE_SAMPLES]
    axes = (0, *range(2, samples.ndim))
    low, high = samples.min(axes, keepdims=True), samples.max(axes, keepdims=True)
    mean, deviation = samples.mean(axes, keepdims=True), samples.std(axes, keepdims=True)
    one = np.zeros_like(samples[:1])
    draw = np.random.default_rng(0).standard_normal(some.shape, np.float32)
    made = {
        OWN: samples,
        "zeros": one,
        "constant minimum": one + low,
        "constant maximum": one + high,
        "stretched range": _stretched(some, *(input_range or (float(samples.min()), float(samples.max())))),
        "swapped channels": np.roll(some, 1, axis=1),
        "inverted": low + high - some,
        "noise": mean + deviation * draw,
    }
    if samples.shape[1] == 1:
        del made["swapped channels"]
    return tuple(Group(name, np.ascontiguousarray(values, np.float32)) for name, values in made.items())


def _stretched(samples: np.ndarray, low: float, high: float) -> np.ndarray:
    axes = tuple(range(1, samples.ndim))
    least, most = samples.min(axes, keepdims=True), samples.max(axes, keepdims=True)
    place = np.divide(samples - least, most - least, out=np.full_like(samples, 0.5), where=most > least)
    return (low + high) / 2 + STRETCH * (high - low) * (place - 0.5)
