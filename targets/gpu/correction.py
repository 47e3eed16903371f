"""What the terms get wrong of a kernel's time, learned from how wrong they were of kernels like it.

Gaussian-process regression (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, equation 2.25) of
the logarithm of measured over modelled time, with a Matérn kernel of 3/2 and a mean of zero: far from every kernel that
was measured it corrects nothing. Length, variance and noise are one choice for all GPUs and classes, made on the sum of
a network's kernels when its whole family is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from targets.gpu.dispatch import Unit, convolution_work
from targets.gpu.kernel import Kernel, slices

LENGTH, SPREAD, NOISE, SMOOTH = 3.0, 0.15, 0.03, 0.01
MOST = 0.4  # of the logarithm, either way
DISPATCHED = ("pointwise", "conv")


@dataclass(frozen=True)
class Correction:
    """Of one class of kernels on one GPU."""

    places: NDArray[np.float64]  # [kernels, features]
    weights: NDArray[np.float64]  # [kernels]

    def factor(self, unit: Unit, kernel: Kernel) -> float:
        """By which the sum of the terms is multiplied."""
        place = np.array(features(unit, kernel))
        squared = self._squares - self.places @ (2 * place)
        squared += place @ place
        distance = np.sqrt(np.maximum(squared, 0.0, out=squared), out=squared)
        return math.exp(min(max(float(_covariance(distance) @ self.weights), -MOST), MOST))

    @cached_property
    def _squares(self) -> NDArray[np.float64]:
        return (self.places**2).sum(axis=1)


def features(unit: Unit, kernel: Kernel) -> tuple[float, ...]:
    """Where a kernel lies among others: mostly logarithms, a doubling apart counting 1."""
    height, width = kernel.out_size
    depth = slices(kernel.out_channels)
    inner = slices(kernel.in_channels)
    place = (
        _log(height * width) / 2,
        _log(width) - _log(height),
        _log(inner),
        _log(depth),
        0.75 * _log(kernel.window),
        2.0 * (kernel.stride - 1),
        2.0 * (kernel.groups > 1),
        0.7 * kernel.adds,
        0.7 * kernel.muls,
        0.7 * kernel.curves,
        0.5 * (depth % 4 == 0),
        0.5 * (depth % 2 == 0),
        0.5 * (inner % 2 == 0),
        0.35 * kernel.inputs,
        0.15 * _log(kernel.in_size[0] * kernel.in_size[1]),
    )
    if kernel.choice not in DISPATCHED:
        return place
    work = convolution_work(unit, kernel)
    return (*place, _log(work.groups), _log(work.outputs), work.groups / unit.units % 1)


def learn(unit: Unit, kernels: Sequence[Kernel], logarithms: NDArray[np.float64]) -> Correction:
    """Fit to the logarithms of measured over modelled time; kernels measured several times count by their mean."""
    points = np.array([features(unit, kernel) for kernel in kernels]).round(4)
    places, first, which = np.unique(points, axis=0, return_index=True, return_inverse=True)
    which = which.ravel()
    counts = np.bincount(which)
    means = np.bincount(which, logarithms) / counts
    apart = np.sqrt(((places[:, None] - places[None]) ** 2).sum(axis=-1))
    noise = np.diag(NOISE**2 / counts + SMOOTH**2)
    weights = np.linalg.solve(_covariance(apart) + noise, means)
    order = np.argsort(first)
    return Correction(places[order], weights[order])


def representatives(unit: Unit, kernels: Sequence[Kernel]) -> list[Kernel]:
    """One kernel for each of `learn`'s places, in their order."""
    points = np.array([features(unit, kernel) for kernel in kernels]).round(4)
    return [kernels[index] for index in np.sort(np.unique(points, axis=0, return_index=True)[1])]


def _covariance(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    scaled = distance * (-math.sqrt(3) / LENGTH)
    return np.exp(scaled) * (SPREAD**2 - SPREAD**2 * scaled)


def _log(amount: float) -> float:
    return math.log2(max(amount, 1))
