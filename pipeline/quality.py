"""How good outputs are at the user's task, and what they lost against the original's on the same samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from calibration.callables import UserCallable, load_callable
from pipeline.verify.task import paired_interval
from reports.records import QualityRecord
from targets.errors import UsageError

RESAMPLES = 200  # of the bootstrap, for an interval of a metric of which nothing is known
COVERED = (2.5, 97.5)  # percentiles: 95 %


class Metric(Protocol):
    """Judges outputs. Of each candidate it keeps an array, from which it compares one with another."""

    def kept(self, outputs: np.ndarray) -> np.ndarray:
        """What has to be kept of outputs [N, ...]."""

    def judged(self, kept: np.ndarray, original: np.ndarray | None, evaluated_on: str) -> QualityRecord:
        """The quality, and what was lost against the `original`'s, None for the original itself."""


@dataclass(frozen=True)
class Accuracy:
    """Share of samples whose largest class score is the right one.

    Attributes:
        name: `top-1` against labels, else `agreement with the original`.
        truth: [N] the right class of each sample.
    """

    name: str
    truth: np.ndarray

    def kept(self, outputs: np.ndarray) -> np.ndarray:
        return outputs.argmax(1) == self.truth

    def judged(self, kept: np.ndarray, original: np.ndarray | None, evaluated_on: str) -> QualityRecord:
        record = QualityRecord.of_counts(self.name, int(kept.sum()), len(kept), evaluated_on)
        if original is None:
            return record
        lost, gained = int((original & ~kept).sum()), int((kept & ~original).sum())
        low, high = paired_interval(gained, lost, len(kept))
        found = {"lost": 100 * (lost - gained) / len(kept), "lost_low": 100 * low, "lost_high": 100 * high}
        return record.model_copy(update=found)


@dataclass(frozen=True)
class OwnMetric:
    """A metric of the user's: a function of all outputs [N, ...] and labels [N] (None where there are none).

    Its intervals are percentiles of the bootstrap (Efron 1979), for what was lost on pairs: the same samples are drawn
    of the candidate and of the original. They are as repeatable as the metric, their random numbers being fixed.
    """

    function: UserCallable
    labels: np.ndarray | None
    higher_is_better: bool

    def kept(self, outputs: np.ndarray) -> np.ndarray:
        return outputs

    def judged(self, kept: np.ndarray, original: np.ndarray | None, evaluated_on: str) -> QualityRecord:
        value = self._of(kept)
        low, high = _bootstrapped(len(kept), partial(self._of, kept))
        found = {}
        if original is not None:
            sign = 1 if self.higher_is_better else -1

            def lost(chosen: np.ndarray | None = None) -> float:
                return sign * (self._of(original, chosen) - self._of(kept, chosen))

            spread = _bootstrapped(len(kept), lost)
            found = {"lost": lost(), "lost_low": spread[0], "lost_high": spread[1]}
        return QualityRecord(
            metric=self.function.reference.rpartition(":")[2],
            value=value,
            low=min(low, value),
            high=max(high, value),
            unit="",
            higher_is_better=self.higher_is_better,
            samples=len(kept),
            evaluated_on=evaluated_on,
            **found,
        )

    def _of(self, outputs: np.ndarray, chosen: np.ndarray | None = None) -> float:
        """The metric of the chosen samples, of all where none are."""
        every = slice(None) if chosen is None else chosen
        labels = None if self.labels is None else self.labels[every]
        found = self.function(outputs[every], labels)
        try:
            value = float(found)
        except (TypeError, ValueError) as error:
            raise self._useless(f"it returned {type(found).__name__}, not a number") from error
        if not math.isfinite(value):
            raise self._useless(f"it returned {value}")
        return value

    def _useless(self, why: str) -> UsageError:
        return UsageError(
            "the metric cannot be used",
            where=self.function.reference,
            why=why,
            fix="return one finite number for any choice of samples, repeated ones included",
            code="METRIC_CALLABLE",
        )


def own_metric(reference: str, labels: np.ndarray | None, lower_is_better: bool) -> OwnMetric:
    """The metric called `file.py:callable`. UsageError METRIC_MISSING, METRIC_CALLABLE."""
    return OwnMetric(load_callable(reference, "metric"), labels, not lower_is_better)


def _bootstrapped(samples: int, of: Callable[[np.ndarray], float]) -> tuple[float, float]:
    """95 % interval of a statistic of the samples that were drawn."""
    random = np.random.default_rng(0)
    drawn = [of(random.integers(0, samples, samples)) for _ in range(RESAMPLES)]
    low, high = np.percentile(drawn, COVERED)
    return float(low), float(high)
