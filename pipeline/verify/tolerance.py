"""How far an artifact may be from the network, by the precision it computes in.

FP32's limits rest on what is seen. FP16's and INT8's are derived from the arithmetic,
not fitted to artifacts. The model of the derivation: a layer rounds its weights and its output, each rounding adds an
independent error of relative size `e` to the signal, and errors that pass through the layers unamplified add in
quadrature. After L layers the relative RMS error is e * sqrt(2 L); L = 100 is deeper than the networks planish is for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

Precision = Literal["fp32", "fp16", "int8"]

ROUNDINGS = math.sqrt(2 * 100)
"""Growth of one rounding's error through 100 layers, two roundings each."""


@dataclass(frozen=True)
class Tolerance:
    """Limits of one precision. Errors are relative to the scale of the reference output (`figures.Scale`).

    Attributes:
        relative_rmse: of an output over all samples.
        max_abs_of_peak: largest single error over the largest reference value. One wrong element in a large output
            hardly moves the RMSE.
        top1_agreement: share of samples whose predicted class is the same, ties aside (`figures.top1_agreement`).
        task_points: percentage points of right answers that may be lost. Parity fails when the whole interval of the
            paired difference lies beyond them, so that a handful of samples proves nothing.
        unit_roundoff: largest relative error of one rounding.
        saturates: whether activations are clipped to a range fixed at calibration.
    """

    precision: Precision
    relative_rmse: float
    max_abs_of_peak: float
    top1_agreement: float
    task_points: float
    unit_roundoff: float
    saturates: bool = False

    def at_edges(self) -> Tolerance:
        """The limits on edge cases.

        The same, except where activations saturate: outside its calibrated range such an artifact cannot follow the
        network. What it can do is answer too little in the right direction, which leaves a relative error below 1;
        beyond that the answer has the wrong sign or is too large, and saturation is no excuse for it.
        """
        return replace(self, relative_rmse=1.0, max_abs_of_peak=1.0, top1_agreement=0.0) if self.saturates else self


# Unit roundoff 6e-8; summation in another order over a deep network leaves about 1e-6 to 1e-5, on edge cases too: of
# MobileNetV2 on zeros, float32 is 5e-6 from float64. 1e-3 (60 dB) is clear of rounding and below real defects; a single
# value has an order of magnitude more. Five of a thousand classes may differ because a sample just outside the tie band
# may still flip. Nothing of the task may be lost.
FP32 = Tolerance("fp32", 1e-3, 1e-2, 0.995, 0.0, 2.0**-24)

# e = 2^-11 / sqrt(3), the RMS of an error uniform within the unit roundoff: 2.8e-4 * ROUNDINGS = 4e-3. Five times that,
# since a back end may also keep its sums in half precision: 0.02 (34 dB). The largest of a million normal errors is 5
# times their RMS, and the peak of an output is no smaller than its RMS: 0.1.
FP16 = Tolerance("fp16", 2e-2, 1e-1, 0.99, 0.5, 2.0**-11)

# A step is the range over 255 and its RMS error step / sqrt(12). With a range of +-6 RMS, wide enough for what the
# layers of a rectified network deliver, e = 2 * 6 / 255 / sqrt(12) = 0.0136, times ROUNDINGS 0.19: limit 0.25 (12 dB).
# Peaks of class scores are 3 RMS and more: 5 * 0.25 / 3 = 0.4, limit 0.5. Beside such errors agreement is of the
# clearly decided samples alone, and of those nine in ten have to hold; what they cost is for `task_points` to say.
INT8 = Tolerance("int8", 0.25, 0.5, 0.9, 2.0, 2.0**-8, saturates=True)

TOLERANCES: dict[str, Tolerance] = {tolerance.precision: tolerance for tolerance in (FP32, FP16, INT8)}
