"""What a difference in numbers costs at the task: right answers of artifact and network on the same samples."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from reports.records import QualityRecord

_Z = 1.959964


@dataclass(frozen=True)
class TaskParity:
    """Top-1 of artifact and network on the same labelled samples, and the paired difference.

    Attributes:
        artifact, network: share of right answers, with the Wilson interval of each.
        lost, gained: samples that only the network, or only the artifact, answers rightly.
        difference_points: artifact minus network, percentage points.
        low_points, high_points: its 95 % interval (`paired_interval`).
        p_value: of the exact McNemar test (McNemar 1947): how likely so uneven a split of lost and gained is when the
            two are equally good.
    """

    artifact: QualityRecord
    network: QualityRecord
    lost: int
    gained: int
    difference_points: float
    low_points: float
    high_points: float
    p_value: float

    @classmethod
    def of(cls, actual: np.ndarray, reference: np.ndarray, labels: np.ndarray) -> TaskParity:
        """From class scores [N, K] of both and the right classes [N]."""
        from scipy.stats import binomtest  # a second to import, which a run that is done already need not wait for

        artifact, network = (scores.argmax(axis=1) == labels for scores in (actual, reference))
        lost, gained = int((network & ~artifact).sum()), int((artifact & ~network).sum())
        low, high = paired_interval(lost, gained, len(labels))
        return cls(
            QualityRecord.of_counts("top-1", int(artifact.sum()), len(labels), "artifact"),
            QualityRecord.of_counts("top-1", int(network.sum()), len(labels), "network"),
            lost,
            gained,
            100 * (gained - lost) / len(labels),
            100 * low,
            100 * high,
            float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "artifact": self.artifact.model_dump(mode="json"),
            "network": self.network.model_dump(mode="json"),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TaskParity:
        records = {name: QualityRecord.model_validate(data[name]) for name in ("artifact", "network")}
        return cls(**{**data, **records})


def paired_interval(lost: int, gained: int, samples: int) -> tuple[float, float]:
    """95 % interval of `(gained - lost) / samples`, a difference of two proportions on the same samples.

    Wald's after half a sample has been added to each cell of the 2x2 table (Agresti and Min 2005), so that two alike on
    few samples are not thought alike for certain. Like every difference of shares it lies within -1 and 1.
    """
    lost_, gained_, samples_ = lost + 0.5, gained + 0.5, samples + 2
    difference = (gained_ - lost_) / samples_
    half = _Z * math.sqrt(lost_ + gained_ - samples_ * difference**2) / samples_
    return max(-1.0, difference - half), min(1.0, difference + half)
