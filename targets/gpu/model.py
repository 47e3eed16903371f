"""What an inference takes on a mobile GPU under the TFLite GPU delegate, always *modelled*, never measured.

A kernel's time is the sum of its terms (`terms`) times a correction (`correction`); an inference is

    fixed + each dispatch + scale * the sum of its kernels,

where fixed is what the host and the driver do once, and scale is above 1 where kernels take longer in a row than one at
a time under the profiler. All constants are fitted (`fit`) and ship in `constants/`, with what they were fitted on and
how wrong they are of networks they were not fitted on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

import numpy as np

from targets.gpu.correction import Correction, features
from targets.gpu.dispatch import Unit
from targets.gpu.kernel import Kernel, parts
from targets.gpu.terms import TERMS, Resource, terms
from targets.profile import CONSTANTS

KERNELS = CONSTANTS / "kernels.json"
LEAST_US = 1.0  # no dispatch is quicker
FIELDS = ("in_size", "out_size", "in_channels", "out_channels", "taps", "stride", "groups", "adds", "muls", "curves")


@dataclass(frozen=True)
class Error:
    """Of whole networks none of which was fitted on, relative."""

    networks: int
    median: float
    p90: float
    spearman: float


@dataclass(frozen=True)
class Overhead:
    """What an inference costs besides its kernels."""

    fixed_ms: float
    dispatch_ms: float
    scale: float


@dataclass(frozen=True)
class GpuModel:
    """The constants of one GPU.

    Attributes:
        weights: for each class of kernels the microseconds of each of its terms.
        corrections: for the classes with enough kernels.
        interval: how many times larger or smaller than the model nine of ten held-out networks are at most.
        error: of networks left out by whole families.
    """

    gpu: str
    unit: Unit
    weights: Mapping[str, tuple[float, ...]]
    corrections: Mapping[str, Correction]
    overhead: Overhead
    interval: float
    error: Error
    source: str
    _known: dict[Kernel, float] = field(default_factory=dict, repr=False, compare=False)

    def microseconds(self, kernel: Kernel) -> float:
        """One kernel under the profiler; at least `LEAST_US`.

        The Winograd convolutions that were measured are few and of few channels, and their fit says little of deep
        ones: none is faster than its products are as a pointwise convolution.
        """
        known = self._known.get(kernel)
        if known is None:
            if kernel.choice in self.weights:
                known = max(self.uncorrected(kernel) * self._factor(kernel), LEAST_US)
            else:
                known = sum(self.microseconds(part) for part in parts(kernel))
            if kernel.choice == "winograd":
                known = max(known, self.microseconds(parts(kernel)[1]))
            self._known[kernel] = known
        return known

    def uncorrected(self, kernel: Kernel) -> float:
        """The sum of the kernel's terms."""
        values = terms(self.unit, kernel)
        return sum(weight * value for weight, value in zip(self.weights[kernel.choice], values, strict=True) if weight)

    def _factor(self, kernel: Kernel) -> float:
        correction = self.corrections.get(kernel.choice)
        return correction.factor(self.unit, kernel) if correction else 1.0

    def milliseconds(self, kernels: Sequence[Kernel]) -> float:
        """A whole inference."""
        return self.overhead.fixed_ms + sum(self.marginal_ms(kernel) for kernel in kernels)

    def marginal_ms(self, kernel: Kernel) -> float:
        """What an inference takes longer for one more kernel."""
        over = self.overhead
        return over.dispatch_ms * kernel.dispatches + over.scale * self.microseconds(kernel) / 1000

    def carried_over(self, gpu: str, unit: Unit, factors: Mapping[Resource, float], interval: float) -> GpuModel:
        """The model of a GPU nobody measured, by one of its kind: terms times the factor of their resource.

        The correction stays behind: it is of one GPU.
        """
        weights = {
            choice: tuple(w * factors[resource] for w, resource in zip(row, TERMS[choice].values(), strict=True))
            for choice, row in self.weights.items()
        }
        return GpuModel(gpu, unit, weights, {}, self.overhead, interval, self.error, self.source)


@cache
def load(name: str) -> GpuModel:
    """The shipped constants `constants/<name>.json`."""
    return from_json(json.loads((CONSTANTS / f"{name}.json").read_text(encoding="utf-8")), known_kernels())


@cache
def known_kernels() -> Mapping[str, tuple[Kernel, ...]]:
    """The shapes the corrections were learned on, class by class; GPUs share them."""
    record = json.loads(KERNELS.read_text(encoding="utf-8"))
    return {choice: tuple(_kernel(choice, row) for row in rows) for choice, rows in record.items()}


def kernel_row(kernel: Kernel) -> list[Any]:
    """A shape as `KERNELS` holds it."""
    return [*(getattr(kernel, name) for name in FIELDS), kernel.inputs]


def _kernel(choice: str, row: list[Any]) -> Kernel:
    named = dict(zip((*FIELDS, "inputs"), row, strict=True))
    return Kernel(choice, **{name: tuple(value) if isinstance(value, list) else value for name, value in named.items()})


def from_json(record: dict[str, Any], shapes: Mapping[str, tuple[Kernel, ...]]) -> GpuModel:
    """The inverse of `to_json`."""
    unit = Unit(**record["unit"])
    weights = {
        choice: tuple(record["classes"][choice]["microseconds"].get(term, 0.0) for term in TERMS[choice])
        for choice in record["classes"]
    }
    corrections = {
        choice: Correction(
            np.array([features(unit, shapes[choice][index]) for index in entry["correction"]["kernels"]]).round(4),
            np.array(entry["correction"]["weights"]),
        )
        for choice, entry in record["classes"].items()
        if "correction" in entry
    }
    return GpuModel(
        record["gpu"],
        unit,
        weights,
        corrections,
        Overhead(**record["overhead"]),
        record["interval"],
        Error(**record["error"]),
        record["source"],
    )


def to_json(model: GpuModel, counts: Mapping[str, int], indices: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """The constants as they ship.

    Args:
        counts: rows fitted, by class.
        indices: for each corrected class the places of its kernels in `KERNELS`.
    """
    classes: dict[str, Any] = {}
    for choice, weights in model.weights.items():
        kept = {term: float(f"{w:.6g}") for term, w in zip(TERMS[choice], weights, strict=True) if w}
        classes[choice] = {"rows": counts[choice], "microseconds": kept}
        if choice in model.corrections:
            rounded = [float(f"{weight:.5g}") for weight in model.corrections[choice].weights]
            classes[choice]["correction"] = {"kernels": list(indices[choice]), "weights": rounded}
    return {
        "gpu": model.gpu,
        "unit": asdict(model.unit),
        "source": model.source,
        "overhead": asdict(model.overhead),
        "interval": model.interval,
        "error": asdict(model.error),
        "classes": classes,
    }
