"""The task's metric on artifact and network, and the interval of their difference."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.verify.task import TaskParity, paired_interval

COUNTS = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))


def scores(classes: np.ndarray, count: int = 10) -> np.ndarray:
    return np.eye(count)[classes]


def test_counts_and_intervals():
    labels = np.arange(100) % 10
    network, artifact = labels.copy(), labels.copy()
    network[:20] = (labels[:20] + 1) % 10  # 80 right
    artifact[:10] = (labels[:10] + 2) % 10  # ten of those mended
    artifact[50:74] = (labels[50:74] + 1) % 10  # and 24 lost: 66 right
    task = TaskParity.of(scores(artifact), scores(network), labels)
    assert (task.artifact.value, task.network.value) == (66, 80)
    assert (task.lost, task.gained, task.difference_points) == (24, 10, -14)
    assert task.low_points < -14 < task.high_points < 0
    assert task.p_value == pytest.approx(0.0243, abs=5e-4)  # twice P(X <= 10) of Bin(34, 1/2)
    assert (task.artifact.evaluated_on, task.network.evaluated_on) == ("artifact", "network")
    assert TaskParity.from_json(json.loads(json.dumps(task.to_json(), allow_nan=False))) == task


def test_alike_on_few_samples_is_not_alike_for_certain():
    labels = np.arange(10)
    few = TaskParity.of(scores(labels), scores(labels), labels)
    many = TaskParity.of(*[scores(np.tile(labels, 100))] * 2, np.tile(labels, 100))
    assert few.difference_points == many.difference_points == 0 and few.p_value == 1
    assert few.low_points < -10 < -0.3 < many.low_points < 0 < many.high_points < 0.3


@given(COUNTS)
def test_interval_holds_the_difference_and_mirrors(counts):
    lost, gained, alike = counts
    samples = lost + gained + alike + 1
    low, high = paired_interval(lost, gained, samples)
    assert -1 <= low < high <= 1
    assert low - 0.05 <= (gained - lost) / samples <= high + 0.05
    assert paired_interval(gained, lost, samples) == pytest.approx((-high, -low))
    narrow = paired_interval(10 * lost, 10 * gained, 10 * samples)
    assert narrow[1] - narrow[0] < high - low or high - low > 1


def test_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    draws = generator.multinomial(200, [0.08, 0.03, 0.89], size=2000)
    intervals = [paired_interval(lost, gained, 200) for lost, gained, _ in draws]
    covered = np.mean([low <= -0.05 <= high for low, high in intervals])
    assert 0.93 < covered < 0.98
