"""How far one output of an artifact is from the network's: the figures, without a verdict."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.verify.tolerance import Tolerance


@dataclass(frozen=True)
class Scale:
    """The size of an output, which errors are measured against.

    Attributes:
        rms: root of the mean square over all samples and elements.
        peak: largest absolute value.
    """

    rms: float
    peak: float

    @classmethod
    def of(cls, reference: np.ndarray) -> Scale:
        reference = reference.astype(np.float64)
        return cls(_rms(reference), float(np.abs(reference).max(initial=0.0)))

    def at_least(self, other: Scale) -> Scale:
        return Scale(max(self.rms, other.rms), max(self.peak, other.peak))


@dataclass(frozen=True)
class OutputParity:
    """How far one output is from the reference, over the samples of one group.

    Attributes:
        max_abs: largest absolute difference.
        relative_rmse: RMS of the difference over the RMS of the scale.
        max_abs_of_peak: `max_abs` over the peak of the scale.
        sqnr_db: signal to quantisation-noise ratio, -20 log10 of `relative_rmse`; infinite when identical.
        cosine: between the two outputs as vectors.
        top1_agreement: for class scores [N, K]; None for other outputs, and when every sample is a tie.
    """

    name: str
    max_abs: float
    relative_rmse: float
    max_abs_of_peak: float
    sqnr_db: float
    cosine: float
    top1_agreement: float | None


def compare(
    name: str, actual: np.ndarray, reference: np.ndarray, tolerance: Tolerance, scale: Scale | None = None
) -> OutputParity:
    """The figures of one output [N, ...]; all of them `nan` when either side holds a value that is not finite.

    Args:
        scale: what errors are relative to; the reference itself unless told otherwise.
    """
    if not (np.isfinite(actual).all() and np.isfinite(reference).all()):
        return OutputParity(name, *[float("nan")] * 5, top1_agreement=None)
    scale = scale or Scale.of(reference)
    actual, reference = actual.astype(np.float64), reference.astype(np.float64)
    error = Scale.of(actual - reference)
    relative = ratio(error.rms, scale.rms)
    with np.errstate(divide="ignore"):
        sqnr_db = float(-20 * np.log10(relative))
    norms = _rms(actual) * _rms(reference)
    cosine = float(np.mean(actual * reference) / norms) if norms > 0 else float(error.peak == 0)
    return OutputParity(
        name,
        error.peak,
        relative,
        ratio(error.peak, scale.peak),
        sqnr_db,
        cosine,
        top1_agreement(actual, reference, tolerance, scale),
    )


def top1_agreement(
    actual: np.ndarray, reference: np.ndarray, tolerance: Tolerance, scale: Scale | None = None
) -> float | None:
    """Share of samples whose largest score falls on the same class; scores are [N, K].

    A sample whose two best reference scores lie closer than twice the permitted RMS error is a tie: an error within
    tolerance may decide it either way, so it says nothing about the artifact and is left out.
    """
    if reference.ndim != 2 or reference.shape[1] < 2:
        return None
    best = np.sort(reference, axis=1)
    decided = best[:, -1] - best[:, -2] > 2 * tolerance.relative_rmse * (scale or Scale.of(reference)).rms
    if not decided.any():
        return None
    return float(np.mean(actual[decided].argmax(axis=1) == reference[decided].argmax(axis=1)))


def ratio(error: float, scale: float) -> float:
    """`error / scale`; against a reference of nothing but zeros, any error is infinitely large."""
    return error / scale if scale > 0 else (0.0 if error == 0 else float("inf"))


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if values.size else 0.0
