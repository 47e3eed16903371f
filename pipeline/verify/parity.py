"""Whether an artifact computes what the network computes, on the user's own samples.

Random input proves little: an export can be right on noise and wrong on images, whose values, correlations and range
are different. The reference is the network run eagerly by PyTorch on the same samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.export.artifact import Artifact
from pipeline.verify.execute import from_layout, run_artifact, to_layout
from targets.errors import VerificationError


@dataclass(frozen=True)
class Tolerance:
    """Limits of one precision. All are relative to the scale of the reference output.

    Attributes:
        relative_rmse: of an output over all samples. Float32 has a unit roundoff of 6e-8; summation in another order
            over a deep network leaves about 1e-6 to 1e-5, so 1e-3 (60 dB) is clear of rounding and below real defects.
        max_abs_of_peak: largest single error over the largest reference value. One wrong element in a large output
            hardly moves the RMSE; rounding alone stays three orders of magnitude below 1e-2.
        top1_agreement: share of samples whose predicted class is the same, ties aside (see `top1_agreement`). Allows
            five of a thousand because a sample just outside the tie band may still flip.
    """

    relative_rmse: float
    max_abs_of_peak: float
    top1_agreement: float


FP32 = Tolerance(relative_rmse=1e-3, max_abs_of_peak=1e-2, top1_agreement=0.995)


@dataclass(frozen=True)
class OutputParity:
    """How far one output is from the reference, over all samples.

    Attributes:
        max_abs: largest absolute difference.
        relative_rmse: RMS of the difference over RMS of the reference.
        sqnr_db: signal to quantisation-noise ratio, -20 log10 of `relative_rmse`; infinite when identical.
        cosine: between the two outputs as vectors.
        top1_agreement: for class scores [N, K]; None for other outputs, and when every sample is a tie.
    """

    name: str
    max_abs: float
    relative_rmse: float
    sqnr_db: float
    cosine: float
    top1_agreement: float | None


@dataclass(frozen=True)
class Parity:
    """The verdict on one artifact; `reasons` is empty when it passed."""

    artifact_sha256: str
    samples: int
    outputs: tuple[OutputParity, ...]
    tolerance: dict[str, float]
    passed: bool
    reasons: tuple[str, ...]
    runner: str = "host"

    def to_json(self) -> dict[str, Any]:
        """Plain data in strict JSON; figures that are not finite become the strings `inf`, `-inf` and `nan`."""
        outputs = [
            {
                key: repr(value) if isinstance(value, float) and not np.isfinite(value) else value
                for key, value in asdict(output).items()
            }
            for output in self.outputs
        ]
        return {**asdict(self), "outputs": outputs, "reasons": list(self.reasons)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Parity:
        """The inverse of `to_json`."""
        outputs = [
            OutputParity(
                **{
                    key: float(value) if key != "name" and isinstance(value, str) else value
                    for key, value in output.items()
                }
            )
            for output in data["outputs"]
        ]
        return cls(**{**data, "outputs": tuple(outputs), "reasons": tuple(data["reasons"])})


Runner = Callable[[Artifact, np.ndarray], list[np.ndarray]]


def check(
    artifact: Artifact,
    eager_outputs: Sequence[np.ndarray],
    samples: np.ndarray,
    *,
    run: Runner = run_artifact,
    tolerance: Tolerance = FP32,
) -> Parity:
    """Compares the artifact with the network on `samples`.

    Args:
        eager_outputs: the network's outputs on `samples`, [N, ...] each, in the network's own layout.
        samples: [N, C, H, W] float32 (or [N, F]).
        run: runs an artifact on samples in the artifact's layout and returns [N, ...] per output, in that layout too.
    """
    found = [
        from_layout(output, specification)
        for output, specification in zip(
            run(artifact, to_layout(samples, artifact.inputs[0])), artifact.outputs, strict=True
        )
    ]
    outputs, reasons = [], []
    if len(found) != len(eager_outputs):
        reasons.append(f"the artifact has {len(found)} outputs, the network {len(eager_outputs)}")
    for specification, actual, reference in zip(artifact.outputs, found, eager_outputs):
        if actual.shape != reference.shape:
            reasons.append(
                f"output {specification.name!r} is {list(actual.shape)}, the network's is {list(reference.shape)}"
            )
            continue
        compared = compare(specification.name, actual, reference, tolerance)
        outputs.append(compared)
        reasons += _violations(compared, actual, reference, tolerance)
    return Parity(artifact.sha256, len(samples), tuple(outputs), asdict(tolerance), not reasons, tuple(reasons))


def compare(name: str, actual: np.ndarray, reference: np.ndarray, tolerance: Tolerance) -> OutputParity:
    """The figures of one output; all of them `nan` when either side holds a value that is not finite."""
    if not (np.isfinite(actual).all() and np.isfinite(reference).all()):
        return OutputParity(name, *[float("nan")] * 4, top1_agreement=None)
    actual, reference = actual.astype(np.float64), reference.astype(np.float64)
    difference = actual - reference
    error, signal = _rms(difference), _rms(reference)
    relative = _ratio(error, signal)
    with np.errstate(divide="ignore"):
        sqnr_db = float(-20 * np.log10(relative))
    norms = _rms(actual) * signal
    cosine = float(np.mean(actual * reference) / norms) if norms > 0 else float(error == 0)
    return OutputParity(
        name, float(np.abs(difference).max()), relative, sqnr_db, cosine, top1_agreement(actual, reference, tolerance)
    )


def top1_agreement(actual: np.ndarray, reference: np.ndarray, tolerance: Tolerance) -> float | None:
    """Share of samples whose largest score falls on the same class; scores are [N, K].

    A sample whose two best reference scores lie closer than twice the permitted RMS error is a tie: an error within
    tolerance may decide it either way, so it says nothing about the artifact and is left out.
    """
    if reference.ndim != 2 or reference.shape[1] < 2:
        return None
    best = np.sort(reference, axis=1)
    decided = best[:, -1] - best[:, -2] > 2 * tolerance.relative_rmse * _rms(reference)
    if not decided.any():
        return None
    return float(np.mean(actual[decided].argmax(axis=1) == reference[decided].argmax(axis=1)))


def require(parity: Parity, artifact: Artifact) -> None:
    """Raises VerificationError `PARITY_FAILED`, with the first reason and the worst figures, unless parity passed."""
    if parity.passed:
        return
    worst = max(parity.outputs, key=lambda output: (np.isnan(output.relative_rmse), output.relative_rmse), default=None)
    figures = (
        ""
        if worst is None
        else (
            f"; worst output {worst.name!r}: relative RMSE {worst.relative_rmse:.2g}, "
            f"largest difference {worst.max_abs:.3g}, cosine {worst.cosine:.6f}"
        )
    )
    raise VerificationError(
        f"The {artifact.format} artifact does not compute what the network computes.",
        where=str(artifact.path),
        why=f"on {parity.samples} samples {parity.reasons[0]}{figures}.",
        fix="export to another format, or replace the operator that the converter gets wrong.",
        code="PARITY_FAILED",
    )


def _violations(output: OutputParity, actual: np.ndarray, reference: np.ndarray, tolerance: Tolerance) -> list[str]:
    """Sentences, the most telling first."""
    if np.isnan(output.relative_rmse):
        side = "the artifact" if np.isfinite(reference).all() else "the network itself"
        return [f"{side} returned NaN or infinity in output {output.name!r}"]
    violations = []
    if output.relative_rmse > tolerance.relative_rmse:
        violations.append(
            f"output {output.name!r} has a relative RMSE of {output.relative_rmse:.2g}, above the "
            f"permitted {tolerance.relative_rmse:g}"
        )
    peak = _ratio(output.max_abs, float(np.abs(reference).max()))
    if peak > tolerance.max_abs_of_peak:
        violations.append(
            f"output {output.name!r} is off by up to {peak:.2g} of its largest value, above the "
            f"permitted {tolerance.max_abs_of_peak:g}"
        )
    if output.top1_agreement is not None and output.top1_agreement < tolerance.top1_agreement:
        violations.append(
            f"output {output.name!r} names the same class for {output.top1_agreement:.1%} of the "
            f"samples, below the required {tolerance.top1_agreement:.1%}"
        )
    return violations


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _ratio(error: float, scale: float) -> float:
    """`error / scale`; against a reference of nothing but zeros, any error is infinitely large."""
    return error / scale if scale > 0 else (0.0 if error == 0 else float("inf"))
