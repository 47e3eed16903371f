"""Fits the constants of a GPU to published latencies; `planish targets validate --published FOLDER --refit` runs it.

Terms are fitted class by class to the least absolute relative error with no weight negative, as those of a CPU are
(`targets.cost_model.fit`), then the correction to what they miss, then the overhead to whole networks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from targets.gpu import correction
from targets.gpu.correction import Correction
from targets.gpu.dispatch import Unit
from targets.gpu.kernel import Kernel
from targets.gpu.model import Error, GpuModel, Overhead
from targets.gpu.published import SOURCE, Network, Timed
from targets.gpu.terms import TERMS, terms

ROUNDS = 6  # of reweighting
SMALL_ERROR = 0.03  # relative errors below it all count alike
OVERHEAD_ROUNDS, SMALL_OVERHEAD_ERROR = 3, 0.02
CORRECTED = 20  # kernels of a class, at least
NO_ERROR = Error(0, 0.0, 0.0, 0.0)


def fit(gpu: str, unit: Unit, networks: Sequence[Network], interval: float = 1.0, error: Error = NO_ERROR) -> GpuModel:
    """The model of one GPU from networks measured on it; interval and error are of `validation`."""
    timed = [one for network in networks for one in network.kernels if one.microseconds is not None]
    weights: dict[str, tuple[float, ...]] = {}
    corrections: dict[str, Correction] = {}
    for choice in TERMS:
        rows = of_class(timed, choice)
        if not rows:
            continue
        kernels = [one.kernel for one in rows]
        matrix = np.array([terms(unit, kernel) for kernel in kernels])
        measured = np.array([one.microseconds for one in rows])
        found = _non_negative(matrix, measured, ROUNDS, SMALL_ERROR)
        weights[choice] = tuple(float(weight) for weight in found)
        if len(set(kernels)) >= CORRECTED:
            corrections[choice] = correction.learn(unit, kernels, np.log(measured / (matrix @ found)))
    without = GpuModel(gpu, unit, weights, corrections, Overhead(0.0, 0.0, 1.0), interval, error, SOURCE)
    return GpuModel(gpu, unit, weights, corrections, _overhead(without, networks), interval, error, SOURCE)


def of_class(timed: Sequence[Timed], choice: str) -> list[Timed]:
    return [one for one in timed if one.kernel.choice == choice]


def kernels_us(model: GpuModel, network: Network, *, measured: bool) -> float:
    """The sum of a network's kernels: as measured where the table has them, or all as modelled."""
    return sum(
        model.microseconds(one.kernel) if one.microseconds is None or not measured else one.microseconds
        for one in network.kernels
    )


def dispatches(kernels: Sequence[Kernel]) -> int:
    return sum(kernel.dispatches for kernel in kernels)


def _overhead(model: GpuModel, networks: Sequence[Network]) -> Overhead:
    rows = [
        (1.0, dispatches([one.kernel for one in network.kernels]), kernels_us(model, network, measured=True) / 1000)
        for network in networks
    ]
    whole = np.array([network.milliseconds for network in networks])
    found = _non_negative(np.array(rows), whole, OVERHEAD_ROUNDS, SMALL_OVERHEAD_ERROR)
    return Overhead(*(float(value) for value in found))


def _non_negative(
    matrix: NDArray[np.float64], measured: NDArray[np.float64], rounds: int, small: float
) -> NDArray[np.float64]:
    """Weights of the columns: least squares, reweighted towards the least absolute relative error."""
    from scipy.optimize import nnls

    relative = matrix / measured[:, None]
    scale = relative.max(axis=0)
    scale[scale == 0] = 1.0  # a term that none of the rows has
    relative /= scale
    emphasis = np.ones(len(measured))
    for _ in range(rounds):
        weights, _ = nnls(relative * emphasis[:, None], emphasis, maxiter=5000)
        emphasis = 1 / np.sqrt(np.maximum(np.abs(relative @ weights - 1), small))
    return weights / scale
