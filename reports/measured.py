"""What was measured of a candidate: the time its artifacts take, where it goes, and how good the answers are."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from reports import quantities
from reports.schema import Count, Milliseconds, Percent, Record, Sha256

_ROUNDING = 1e-9  # of a difference of two shares


class SplitRecord(Record):
    """What of an inference a GPU's delegate leaves to the CPU, and what that is modelled to take.

    Attributes:
        partitions: calls of the delegate; 0 where it takes nothing.
        left: how many operators of each kind the CPU runs.
        left_ms: what they take, by the cost table of `cpu`; of `priced_by_bytes` by the memory they move.
        stands_in: `cpu` is another phone's, since there is no table of this one's.
        crossing_ms: what copying `crossing_bytes` takes at least.
        split_ms: both. What the two sides wait for each other is in no figure.
        whole_ms: an inference, if the delegate took every operator.
    """

    partitions: Count
    left: dict[str, Count]
    left_ms: Milliseconds
    priced_by_bytes: tuple[str, ...]
    cpu: str
    stands_in: bool
    crossing_bytes: Count
    crossing_ms: Milliseconds
    split_ms: Milliseconds
    whole_ms: Milliseconds

    @property
    def sentence(self) -> str:
        """ "left to the CPU: 1 ATAN2, 2 CONV_2D; ... " """
        left = ", ".join(f"{count} {kind}" for kind, count in self.left.items())
        whose = f"the cost table of {self.cpu}" + (", which stands in for this phone's" if self.stands_in else "")
        return (
            f"left to the CPU: {left}; {quantities.size(self.crossing_bytes)} cross. That takes {self.split_ms:.3g} ms "
            f"by {whose}, and at least {self.crossing_ms:.2g} ms of it to cross; an inference would take "
            f"{self.whole_ms:.3g} ms if the GPU took all. No figure for synchronisation is published, so none is in it"
        )


class MeasurementRecord(Record):
    """How long one inference of one artifact takes on the target; `low_ms`..`high_ms` is the median's interval."""

    format: str
    target: str
    runner: str
    runtime: str
    n: Annotated[int, Field(ge=1)]
    median_ms: Annotated[float, Field(gt=0)]
    p90_ms: Milliseconds
    low_ms: Milliseconds
    high_ms: Milliseconds
    instructions: Count | None
    cycles: Annotated[float, Field(ge=0)] | None
    artifact_sha256: Sha256
    bytes: Count
    file: str | None = None
    """Path of the artifact, relative to the run directory."""
    confidence_percent: Percent | None = None
    """Confidence level of the interval; None where it is not a statistical one."""
    threads: Annotated[int, Field(ge=1)] = 1
    """Of the runtime, each on a core of its own."""
    split: SplitRecord | None = None
    """Of a modelled inference that the GPU does not run whole."""


class GpuWorkRecord(Record):
    """What one inference asks of a mobile GPU, counted as the delegate drives `driver`; no time follows from it alone.

    Attributes:
        target: the profile aimed at.
        gpu: that the delegate saw: that of the target, one of its family, or `software`.
    """

    target: str
    gpu: str
    driver: str
    precision: Literal["fp16", "fp32"]
    dispatches: Count
    kernels: Count
    workgroups: Count
    invocations: Count
    barriers: Count
    submits: Count
    allocated_bytes: Count


class OperatorRecord(Record):
    """One operator of an inference on an emulated target; the last one of an inference is the runtime's own work.

    `share` is of the inference's time, `macs` of one sample. `bound` is what most of its cycles went to. The peak is
    of the cores it ran on, in its precision; None where that is unknown.
    """

    name: str
    kind: str
    module: str
    shape: str
    out_shape: tuple[int, ...]
    share: Annotated[float, Field(ge=0)]
    milliseconds: Milliseconds
    cycles: Annotated[float, Field(ge=0)]
    instructions: Count
    macs: Count
    flop_per_cycle: Annotated[float, Field(ge=0)]
    peak_flop_per_cycle: Annotated[float, Field(gt=0)] | None
    bound: Literal["compute", "branches", "L1", "L2", "L3", "DRAM", "threads"]

    @property
    def peak_share(self) -> float | None:
        """FLOP a cycle of the most that is possible."""
        return self.flop_per_cycle / self.peak_flop_per_cycle if self.peak_flop_per_cycle else None


class QualityRecord(Record):
    """How good a candidate is at its task, with a 95 % interval, and what it lost against the original.

    Attributes:
        metric: `top-1`, `agreement with the original`, or the name of the user's own.
        value, low, high: in `unit`, which is empty where a metric of the user's has none that is known.
        higher_is_better: the metric's direction.
        lost, lost_low, lost_high: what the original has more (less, where lower is better), on the same samples, with
            the interval of the paired difference; None for the original.
    """

    metric: str
    value: float
    low: float
    high: float
    unit: Literal["%", ""] = "%"
    higher_is_better: bool = True
    samples: Annotated[int, Field(ge=1)]
    evaluated_on: Literal["artifact", "network"]
    lost: float | None = None
    lost_low: float | None = None
    lost_high: float | None = None

    @property
    def change(self) -> float | None:
        """The value less the original's; None for the original."""
        return None if self.lost is None else -self.lost if self.higher_is_better else self.lost

    @property
    def change_interval(self) -> tuple[float, float] | None:
        """The interval of `change`."""
        if self.lost_low is None or self.lost_high is None:
            return None
        return (-self.lost_high, -self.lost_low) if self.higher_is_better else (self.lost_low, self.lost_high)

    @property
    def original(self) -> float:
        """The original's value on the same samples."""
        return self.value - (self.change or 0.0)

    def least_allowed(self, max_drop: float) -> float:
        """The floor: the least value (the most, where lower is better) when `max_drop` may be lost."""
        floor = self.original - max_drop if self.higher_is_better else self.original + max_drop
        return max(0.0, floor) if self.unit == "%" else floor

    def exceeds(self, max_drop: float) -> bool:
        """Whether more than `max_drop` was lost; a difference of rounding is none."""
        return self.lost is not None and self.lost > max_drop + _ROUNDING

    def straddles(self, max_drop: float) -> bool:
        """Whether these samples cannot tell if more than `max_drop` was lost."""
        return self.lost_low is not None and self.lost_high is not None and self.lost_low <= max_drop < self.lost_high

    @classmethod
    def of_counts(
        cls,
        metric: Literal["top-1", "agreement with the original"],
        correct: int,
        samples: int,
        evaluated_on: Literal["artifact", "network"],
    ) -> QualityRecord:
        """From counts. Interval: Wilson 1927, score interval at z = 1.96; it stays sensible at 0 % and 100 %."""
        share, z = correct / samples, 1.959964
        spread = 1 + z * z / samples
        centre = (share + z * z / (2 * samples)) / spread
        half = z * math.sqrt(share * (1 - share) / samples + z * z / (4 * samples * samples)) / spread
        return cls(
            metric=metric,
            value=100 * share,
            low=100 * max(0.0, min(share, centre - half)),
            high=100 * min(1.0, max(share, centre + half)),
            samples=samples,
            evaluated_on=evaluated_on,
        )
