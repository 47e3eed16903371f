"""What is asked of an artifact's latency, and the verdict on it with all that it rests on."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from targets.measure import Measurement
from targets.quantiles import Interval
from targets.statistics import Decision


@dataclass(frozen=True)
class Goal:
    """What is asked of a candidate: one limit of its median, one of its 90th percentile, or both."""

    median_ms: float | None = None
    share: float | None = None  # of the baseline's latency in the same session, 0.6 for 60 %
    p90_ms: float | None = None

    def __post_init__(self) -> None:
        limits = [limit for limit in (self.median_ms, self.share, self.p90_ms) if limit is not None]
        if not limits or not all(math.isfinite(limit) and limit > 0 for limit in limits):
            raise ValueError("a goal has at least one limit, finite and positive")
        if self.median_ms is not None and self.share is not None:
            raise ValueError("the median's goal is absolute or relative, not both")

    @property
    def criteria(self) -> int:
        return sum(limit is not None for limit in asdict(self).values())


@dataclass(frozen=True)
class InvalidPair:
    """A session that decides nothing, and why."""

    reason: str
    candidate: Measurement
    baseline: Measurement | None

    def to_json(self) -> dict[str, Any]:
        return {
            "reason": self.reason,
            "candidate": self.candidate.to_json(),
            "baseline": self.baseline and self.baseline.to_json(),
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> InvalidPair:
        return cls(record["reason"], *_measurements(record))


@dataclass(frozen=True)
class Judgement:
    """A verdict with what it rests on. Where every pair was invalid, the measurements are those of the last one."""

    verdict: Decision
    reason: str
    goal: Goal
    confidence: float  # of each asked-for interval, over all looks and criteria together; 1: the runner repeats itself
    looks: int
    candidate: Measurement
    baseline: Measurement | None
    median: Interval  # milliseconds
    p90: Interval | None  # milliseconds; None: not asked
    ratio: Interval | None  # candidate by baseline, of the rounds; None: no baseline
    invalid: tuple[InvalidPair, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in ("verdict", "reason", "confidence", "looks")},
            "goal": asdict(self.goal),
            "candidate": self.candidate.to_json(),
            "baseline": self.baseline and self.baseline.to_json(),
            **{name: (found := getattr(self, name)) and found.to_json() for name in ("median", "p90", "ratio")},
            "invalid": [pair.to_json() for pair in self.invalid],
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Judgement:
        """The inverse of `to_json`."""
        candidate, baseline = _measurements(record)
        intervals = {name: record[name] and Interval.from_json(record[name]) for name in ("median", "p90", "ratio")}
        invalid = tuple(map(InvalidPair.from_json, record["invalid"]))
        known = {"goal": Goal(**record["goal"]), "candidate": candidate, "baseline": baseline, "invalid": invalid}
        return cls(**record | known | intervals)


def _measurements(record: dict[str, Any]) -> tuple[Measurement, Measurement | None]:
    baseline = record["baseline"]
    return Measurement.from_json(record["candidate"]), baseline and Measurement.from_json(baseline)
