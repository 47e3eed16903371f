"""The quality of a candidate: top-1 or a metric of the user's, with what was lost on the same samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.quality import Accuracy, own_metric
from targets.errors import UsageError

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 5, 500)
METRIC = """
import numpy as np

def error(outputs, labels):
    return np.abs(outputs[:, 0] - labels).mean()

def words(outputs, labels):
    return "good"

def nothing(outputs, labels):
    return float("nan")

def broken(outputs, labels):
    return labels.missing
"""


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    (tmp_path / "metric.py").write_text(METRIC)
    return tmp_path / "metric.py"


def scores(right: np.ndarray) -> np.ndarray:
    """Class scores [N, 5] that are right where told."""
    return np.eye(5)[np.where(right, LABELS, (LABELS + 1) % 5)]


def test_what_was_lost_is_counted_on_pairs() -> None:
    """40 of 500 were lost and 10 gained: 6 points, far more certain than the two intervals of 500 samples each."""
    before = np.ones(500, bool)
    before[:100] = False
    after = before.copy()
    after[100:140], after[:10] = False, True
    accuracy = Accuracy("top-1", LABELS)
    original, kept = accuracy.kept(scores(before)), accuracy.kept(scores(after))
    record = accuracy.judged(kept, original, "artifact")
    assert record.value == pytest.approx(74.0) and record.lost == pytest.approx(6.0)
    assert 3.0 < record.lost_low < 6.0 < record.lost_high < 9.0
    assert accuracy.judged(original, None, "artifact").lost is None


def test_a_metric_of_the_users_has_its_own_direction_and_interval(metrics: Path) -> None:
    metric = own_metric(f"{metrics}:error", LABELS, lower_is_better=True)
    exact = LABELS[:, None] + RNG.normal(0, 1.0, (500, 1))
    worse = exact + RNG.normal(0, 0.05, (500, 1)) + 0.2 * np.sign(exact - LABELS[:, None])
    record = metric.judged(metric.kept(worse), metric.kept(exact), "artifact")
    assert (record.metric, record.unit, record.higher_is_better) == ("error", "", False)
    assert record.low < record.value < record.high
    assert record.lost == pytest.approx(0.2, abs=0.02)  # more error is a loss
    assert record.lost_low < record.lost < record.lost_high
    assert record.lost_high - record.lost_low < (record.high - record.low) / 5  # pairs tell far more


def test_the_same_outputs_lose_nothing_and_say_the_same_twice(metrics: Path) -> None:
    metric = own_metric(f"{metrics}:error", LABELS, lower_is_better=True)
    outputs = RNG.normal(0, 1.0, (500, 1))
    record = metric.judged(outputs, outputs, "network")
    assert (record.lost, record.lost_low, record.lost_high) == (0, 0, 0)
    assert metric.judged(outputs, outputs, "network") == record


@pytest.mark.parametrize(
    ("name", "said"),
    [("words", "it returned str"), ("nothing", "it returned nan"), ("broken", "has no attribute 'missing'")],
)
def test_a_metric_that_gives_no_number_is_an_error_of_the_users(metrics: Path, name: str, said: str) -> None:
    metric = own_metric(f"{metrics}:{name}", LABELS, lower_is_better=False)
    with pytest.raises(UsageError, match=said) as caught:
        metric.judged(np.zeros((500, 1)), None, "network")
    assert caught.value.code == "METRIC_CALLABLE" and "metric.py" in caught.value.where


def test_a_metric_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        own_metric(f"{tmp_path / 'metric.py'}:error", None, lower_is_better=False)
    assert caught.value.code == "METRIC_MISSING"
