"""One price for an operator where several limits have to be met: a weighted sum of what it costs by each.

Least damage under several budgets is a knapsack with several constraints. Its surrogate (Glover, "Surrogate
constraints", Operations Research 1968) has one: the constraints added up with multipliers. Here a multiplier is what a
limit still needs, so a phone that is far from its latency decides most of the plan and one that has room left hardly
any of it. The multipliers are set once, by what was measured of the original; the search then measures every limit of
every probe, so what the surrogate gets wrong costs damage and never a limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from targets.operator import Operator

LEAST_NEED = 0.05  # of a limit that the original meets: no plan is to make it much worse
WEIGHT_BYTES = 4


class Price(Protocol):
    """What planning pays for an operator: a target's cost table is one.

    Attributes:
        invoke_ms: what an inference costs besides its operators, and no plan saves.
    """

    invoke_ms: float

    def milliseconds(self, op: Operator) -> float:
        """Price of `op`, above zero; of a network it is the sum."""


class StoredBytes:
    """The float32 weights and biases of an operator, for a limit on the artifact's size."""

    invoke_ms = 0.0

    def milliseconds(self, op: Operator) -> float:
        """Bytes."""
        if op.kind not in ("conv", "linear"):
            return 0.0
        taps = op.kernel[0] * op.kernel[1]
        return float(WEIGHT_BYTES * op.out_channels * (op.in_channels // op.groups * taps + 1))


@dataclass(frozen=True)
class Surrogate:
    """The sum of several prices, each times its factor."""

    prices: tuple[Price, ...]
    factors: tuple[float, ...]
    _known: dict[Operator, float] = field(default_factory=dict, repr=False, compare=False)

    @property
    def invoke_ms(self) -> float:
        return sum(factor * price.invoke_ms for factor, price in zip(self.factors, self.prices, strict=True))

    def milliseconds(self, op: Operator) -> float:
        """On the scale of the first price: the whole original costs by both the same."""
        known = self._known.get(op)
        if known is None:
            each = zip(self.prices, self.factors, strict=True)
            known = self._known[op] = sum(factor * price.milliseconds(op) for price, factor in each)
        return known


def needs(ratios: Sequence[float]) -> tuple[float, ...]:
    """How much each limit matters, adding up to 1, of measured / limit of the original; to a twentieth.

    Rounded, so that a measurement by the clock, which never repeats, asks for the same plan twice.
    """
    wanted = [max(ratio - 1, LEAST_NEED) for ratio in ratios]
    total = sum(wanted)
    rounded = [max(round(20 * need / total), 1) for need in wanted]
    return tuple(part / sum(rounded) for part in rounded)


def surrogate(prices: Sequence[Price], weights: Sequence[float], original: Sequence[Operator]) -> Price:
    """The price that stands for all of `prices`, the single one where there is one.

    Args:
        weights: of `needs`.
        original: operators of the original network, by which the prices are brought to one scale.
    """
    if len(prices) == 1:
        return prices[0]
    totals = [sum(price.milliseconds(op) for op in original) for price in prices]
    factors = tuple(weight * totals[0] / total for weight, total in zip(weights, totals, strict=True))
    return Surrogate(tuple(prices), factors)
