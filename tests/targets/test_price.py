"""One price that stands for several limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.cost import CostTable
from targets.operator import convolution, linear, pointwise
from targets.price import LEAST_NEED, StoredBytes, needs, surrogate
from targets.profile import load_profile

NETWORK = [convolution(3, 16, 3, 1, 32), convolution(16, 32, 3, 2, 32), pointwise("add", 32, (16, 16)), linear(32, 10)]


@pytest.fixture(scope="module")
def tables() -> list[CostTable]:
    return [CostTable.load(load_profile(name)) for name in ("pixel-4-cpu", "raspberry-pi-4")]


def test_a_single_price_stands_for_itself(tables: list[CostTable]) -> None:
    assert surrogate(tables[:1], (1.0,), NETWORK) is tables[0]


def test_the_whole_original_costs_what_it_costs_by_the_first_price(tables: list[CostTable]) -> None:
    price = surrogate([*tables, StoredBytes()], needs([1.5, 2.0, 1.1]), NETWORK)
    total = sum(map(price.milliseconds, NETWORK))
    assert total == pytest.approx(sum(map(tables[0].milliseconds, NETWORK)))
    assert all(price.milliseconds(op) > 0 for op in NETWORK)


def test_a_limit_that_needs_all_decides_almost_alone(tables: list[CostTable]) -> None:
    """What saves time on the target that is met anyway is worth little."""
    met, missed = needs([0.5, 3.0])
    assert met == pytest.approx(1 / 21) and missed == pytest.approx(20 / 21)
    price = surrogate(tables, (met, missed), NETWORK)
    alone = [tables[1].milliseconds(op) for op in NETWORK]
    scale = sum(map(tables[0].milliseconds, NETWORK)) / sum(alone)
    for op, own in zip(NETWORK, alone, strict=True):
        assert price.milliseconds(op) == pytest.approx(scale * own, rel=0.2)


@given(st.lists(st.floats(0.1, 20), min_size=1, max_size=5))
def test_needs_add_up_to_one_and_none_is_forgotten(ratios: list[float]) -> None:
    found = needs(ratios)
    assert sum(found) == pytest.approx(1) and min(found) > 0
    assert needs([1 - LEAST_NEED] * 2) == (0.5, 0.5)


def test_the_bytes_of_an_operator_are_its_weights_and_biases() -> None:
    stored = StoredBytes()
    assert stored.milliseconds(convolution(16, 32, 3, 1, 8)) == 4 * (32 * 16 * 9 + 32)
    assert stored.milliseconds(convolution(16, 16, 3, 1, 8, groups=16)) == 4 * (16 * 9 + 16)
    assert stored.milliseconds(pointwise("add", 32, (16, 16))) == 0
