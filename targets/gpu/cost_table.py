"""What an operator costs on a mobile GPU, as planning asks: the table's face of a `GpuModel`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from targets.cost import RelativeError
from targets.gpu.carried import Precision, is_measured, model_of
from targets.gpu.kernel import HALF, SLICE
from targets.gpu.lowering import Linked, lower
from targets.gpu.model import GpuModel
from targets.gpu.terms import TERMS
from targets.operator import Operator
from targets.profile import Profile

LEAST_MS = 1e-6  # a price is above zero
ADDED, CURVED, MOVED = "outputs added to", "outputs curved", "activations"


@dataclass(frozen=True)
class GpuCostTable:
    """Milliseconds of operators on one GPU; the same members as `targets.cost.CostTable`.

    A table chooses where planning probes; it is never a result. Operators are priced as the delegate has them
    (`lowering`), so a sum behind a layer costs the reading of its other operand and no dispatch.

    Attributes:
        error: of whole networks left out by families, not of single operators.
        classes: all fitted constants, by which results of planning are told apart.
    """

    profile: str
    format: str
    source: str
    invoke_ms: float  # once an inference, without operators
    error: RelativeError
    classes: Mapping[str, tuple[float, ...]] = field(repr=False)
    model: GpuModel = field(repr=False)
    _known: dict[Operator, float] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def load(cls, profile: Profile, format: str = "tflite", precision: Precision = "fp16") -> GpuCostTable:
        """The table of a profile of kind "gpu".

        What is published is of TFLite's delegate; other formats have delegates of their own, for which it stands in.
        """
        model = model_of(profile, precision)
        how = "fitted on" if is_measured(profile.gpu) else f"{profile.gpu.constants}, carried over; fitted on"
        return cls(
            profile.name,
            format,
            f"modelled: {how} {model.source}",
            model.overhead.fixed_ms,
            RelativeError(model.error.median, model.error.p90),
            {choice: (*weights, *_corrections(model, choice)) for choice, weights in model.weights.items()},
            model,
        )

    def milliseconds(self, op: Operator) -> float:
        """Cost of `op` by itself, without `invoke_ms`; above zero. Planning asks hundreds of thousands of times."""
        known = self._known.get(op)
        if known is None:
            known = self._known[op] = max(self._price(op), LEAST_MS)
        return known

    def _price(self, op: Operator) -> float:
        kernels, linked = lower(op, self.model.unit.architecture)
        total = sum(self.model.marginal_ms(kernel) for kernel in kernels)
        return total + (linked_us(self.model, linked) * self.model.overhead.scale / 1000 if linked else 0.0)


def _corrections(model: GpuModel, choice: str) -> tuple[float, ...]:
    return tuple(model.corrections[choice].weights.tolist()) if choice in model.corrections else ()


def linked_us(model: GpuModel, linked: Linked) -> float:
    """Microseconds that a linked operator adds to a pointwise convolution; reading another tensor costs at least what a
    depthwise convolution's activations do.
    """
    terms, moving = (dict(zip(TERMS[of], model.weights[of], strict=True)) for of in ("pointwise", "depthwise"))
    reading = max(terms[ADDED], moving[MOVED] * SLICE * HALF)
    return linked.values * (linked.reads * reading + linked.curves * terms[CURVED])
