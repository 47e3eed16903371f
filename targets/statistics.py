"""Robust summaries of latency samples, and the three-valued decision.

The interval is the distribution-free confidence interval of the median: with n independent samples, the number below
the median is binomial(n, 1/2), so a pair of order statistics covers it with a probability that needs no assumption
about the distribution (David and Nagaraja, Order Statistics, 3rd ed., section 7.1).
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

    With fewer than six samples no pair of order statistics reaches 95 %; the interval is then the samples' range.
    """

    n: int
    median_ms: float
    p90_ms: float
    mad_ms: float  # median absolute deviation, not rescaled
    low_ms: float
    high_ms: float


def summarize(samples_ms: Sequence[float]) -> Summary:
    """Summary of at least one finite, non-negative sample.

    Raises:
        ValueError: no sample, or one that is negative or not finite.
    """
    ordered = sorted(samples_ms)
    if not ordered:
        raise ValueError("no samples")
    if not all(math.isfinite(sample) and sample >= 0 for sample in ordered):
        raise ValueError("a latency is finite and not negative")
    median = statistics.median(ordered)
    rank = _median_interval_rank(len(ordered))
    return Summary(
        n=len(ordered),
        median_ms=median,
        p90_ms=ordered[math.ceil(0.9 * len(ordered)) - 1],
        mad_ms=statistics.median(abs(sample - median) for sample in ordered),
        low_ms=ordered[rank],
        high_ms=ordered[-1 - rank],
    )


def _median_interval_rank(n: int) -> int:
    """Largest r such that the r-th order statistics from both ends (from 0) cover the median with `CONFIDENCE`."""
    tail, rank = 0.0, 0
    for below in range(n // 2):
        tail += math.comb(n, below) / 2**n
        if 2 * tail > 1 - CONFIDENCE:
            break
        rank = below
    return rank


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
