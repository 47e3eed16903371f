"""An interval for a quantile of samples that depend on each other, as the latencies of one machine do.

With n independent samples the number below the quantile q_p is binomial(n, p), so a pair of order statistics covers
q_p with a probability that needs no assumption about the distribution (David and Nagaraja, Order Statistics, 3rd ed.,
section 7.1). Latencies taken one after the other are not independent: a clock that stays low for a while lowers many
of them at once. They then say as much as fewer independent ones would, n / tau, where tau is the variance of the share
of samples at or below the quantile, over what it were under independence, p (1 - p) / n. That share is all that an
order statistic's interval rests on (Woodruff, JASA 47, 1952), and as it lies between 0 and 1, heavy tails do not upset
its estimate. tau is estimated by batch means: the samples in order of time are cut into `BATCHES` long pieces, whose
shares are nearly independent of each other where the pieces are longer than the machine's moods (Schmeiser, Operations
Research 30, 1982, on how many). Four corrections keep the interval honest where that is only nearly so:

- a few batches tell a variance badly: the Student quantile of BATCHES - 1 takes the place of the normal one;
- neighbouring batches that still go together widen it by (1 + r) / (1 - r), r their correlation, as Sequest does
  (Alexopoulos, Goldsman, Mokashi, Tien and Wilson, Operations Research 67, 2019); a trend is such a case;
- tau is the largest of those of several quantiles: a session that saw a slow clock too rarely has its quantile among
  the fast samples, where the batches look alike, and only further up do they tell of the two clocks;
- tau is never below 1: samples that seem to repel each other are credited with no more than independence.

What we changed: the interval is the exact binomial one at n / tau samples, not a normal approximation, so that few
samples give no bound rather than a wrong one. Limit: what changes more slowly than all the samples took is not seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BATCHES = 10
LEVELS = (0.25, 0.5, 0.75, 0.9)  # of the distribution, at which batches are compared


@dataclass(frozen=True)
class Interval:
    """A sample quantile, and the interval for the true one; a bound that the samples do not give is infinite."""

    value: float
    low: float
    high: float

    def times(self, factor: float) -> Interval:
        return Interval(factor * self.value, factor * self.low, factor * self.high)

    def to_json(self) -> dict[str, float | None]:
        """Infinite bounds are None: JSON has no word for them."""
        return {name: value if math.isfinite(value) else None for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Interval:
        low, high = record["low"], record["high"]
        return cls(record["value"], -math.inf if low is None else low, math.inf if high is None else high)


def quantile_interval(
    samples: Sequence[float], p: float, *, confidence: float, rounds: Sequence[int] | None = None
) -> Interval:
    """The p-quantile of at least one sample, with its interval.

    Args:
        samples: [n], in the order of time.
        confidence: of both bounds together; each fails with half of the rest.
        rounds: how many samples each round of the session gave, in order; batches are made of whole rounds. None:
            the samples are independent.
    """
    from scipy.special import bdtr, bdtrc  # a quarter of a second to import

    values = np.asarray(samples, dtype=float)
    n, tail = len(values), (1 - confidence) / 2
    ordered = np.sort(values)
    value = float(ordered[math.ceil(p * n) - 1]) if p != 0.5 else float(np.median(ordered))
    worth = n if rounds is None else max(1, int(n / _inflation(values, {p, *LEVELS}, rounds, tail)))
    below = np.arange(worth)  # how many of `worth` independent samples lie below the quantile
    lowest = int(np.searchsorted(bdtr(below, worth, p), tail, side="right"))  # ranks from 1; 0: none is low enough
    highest = worth + 1 - int(np.searchsorted(bdtrc(below[::-1], worth, p), tail, side="right"))
    return Interval(
        value,
        float(ordered[math.floor((lowest - 1) * n / worth)]) if lowest else -math.inf,
        float(ordered[math.ceil(highest * n / worth) - 1]) if highest <= worth else math.inf,
    )


def _inflation(values: np.ndarray, levels: Iterable[float], rounds: Sequence[int], tail: float) -> float:
    """The largest tau of the quantiles at `levels`, at least 1; `values` [n] in the order of time."""
    from scipy.special import ndtri, stdtrit

    n, batches = len(values), min(BATCHES, len(rounds))
    if batches < 3:
        return n
    ends = np.cumsum([sum(rounds[part[0] : part[-1] + 1]) for part in np.array_split(np.arange(len(rounds)), batches)])
    levels = np.array(sorted(levels))
    below = values[:, None] <= np.quantile(values, levels, method="inverted_cdf")  # [n, levels]
    away = np.array([batch.mean(0) for batch in np.split(below, ends[:-1])]) - below.mean(0)  # [batches, levels]
    squares = (away**2).sum(0)
    together = (away[1:] * away[:-1]).sum(0) / np.maximum(squares, 1e-12)
    variance = squares / (batches - 1) / batches * (1 + together.clip(0)) / (1 - together.clip(0))
    student = stdtrit(batches - 1, tail) / ndtri(tail)
    return max(1.0, float((variance * n / (levels * (1 - levels))).max()) * student**2)
