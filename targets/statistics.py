"""Robust summaries of latency samples, and the three-valued decision.

The interval is the distribution-free one of `targets.quantiles`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

CONFIDENCE = 0.95
Decision = Literal["met", "above", "undecided"]


@dataclass(frozen=True)
class Summary:
    """Latency in milliseconds over `n` samples; `low_ms, high_ms` is an interval for the median.

    Where too few samples bound the median (fewer than six for 95 %), the interval ends at the outermost sample.
    """

    n: int
    median_ms: float
    p90_ms: float
    mad_ms: float  # median absolute deviation, not rescaled
    low_ms: float
    high_ms: float


def summarize(
    samples_ms: Sequence[float], rounds: Sequence[int] | None = None, confidence: float = CONFIDENCE
) -> Summary:
    """Summary of at least one finite, non-negative sample; `rounds` as for `quantiles.quantile_interval`.

    Raises:
        ValueError: no sample, or one that is negative or not finite.
    """
    ordered = sorted(samples_ms)
    if not ordered:
        raise ValueError("no samples")
    if not all(math.isfinite(sample) and sample >= 0 for sample in ordered):
        raise ValueError("a latency is finite and not negative")
    median = statistics.median(ordered)
    low, high = ordered[0], ordered[-1]
    if low < high:  # an emulator repeats itself
        # SciPy takes a quarter of a second to import, and the timing process, which takes `drift` from here, has none.
        from targets.quantiles import quantile_interval

        interval = quantile_interval(samples_ms, 0.5, confidence=confidence, rounds=rounds)
        low, high = max(interval.low, low), min(interval.high, high)
    return Summary(
        n=len(ordered),
        median_ms=median,
        p90_ms=ordered[math.ceil(0.9 * len(ordered)) - 1],
        mad_ms=statistics.median(abs(sample - median) for sample in ordered),
        low_ms=low,
        high_ms=high,
    )


def decide(low_ms: float, high_ms: float, target_ms: float) -> Decision:
    """`met` when the whole interval is at or below the target, `above` when it lies wholly beyond, else `undecided`."""
    if not low_ms <= high_ms:
        raise ValueError(f"not an interval: {low_ms} to {high_ms}")
    if high_ms <= target_ms:
        return "met"
    return "above" if low_ms > target_ms else "undecided"


def drift(samples_ms: Sequence[float]) -> float:
    """Relative change of the median from the first third of the samples, in order of time, to the last third."""
    third = max(1, len(samples_ms) // 3)
    first, last = statistics.median(samples_ms[:third]), statistics.median(samples_ms[-third:])
    return (last - first) / first if first else 0.0
