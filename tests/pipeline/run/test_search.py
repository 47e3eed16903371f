"""The budget search against targets whose true latency differs from the prediction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.search import NOTHING_BETWEEN, Probe, good_enough, next_budget, unordered

TOLERANCE = 0.03


def search(
    ratio: Callable[[float], float], base: float, plan: Callable[[float], float], smallest: float = 0.0, most: int = 12
) -> list[Probe]:
    """The probes of a search, as `loop` runs it: `plan` gives the price of the best plan within a budget."""
    probes = [Probe(base, ratio(base), ratio(base) <= 1)]
    for _ in range(4 * most):
        budget = next_budget(probes, TOLERANCE)
        if budget is None or len(probes) > most:
            break
        predicted = max(plan(budget), smallest)
        known = [place for place, probe in enumerate(probes[1:], 1) if probe.predicted == predicted]
        if known:
            probes[known[0]] = replace(probes[known[0]], budget=max(probes[known[0]].reach, budget))
            continue
        probes.append(Probe(predicted, ratio(predicted), ratio(predicted) <= 1, predicted > budget, budget))
    return probes


@settings(max_examples=200)
@given(st.floats(0.3, 3), st.floats(0, 0.5), st.floats(0.3, 0.95))
def test_a_smooth_target_is_met_within_the_tolerance_in_four_measured_candidates(scale, offset, share) -> None:
    def milliseconds(predicted: float) -> float:
        return scale * predicted + offset

    goal = max(share * milliseconds(10.0), 1.2 * milliseconds(1.0))
    probes = search(lambda predicted: milliseconds(predicted) / goal, 10.0, lambda budget: budget, smallest=0.5)
    assert good_enough(probes, TOLERANCE)
    assert len(probes) <= 5


@settings(max_examples=200)
@given(st.lists(st.floats(1.0, 9.9), min_size=1, max_size=40), st.floats(0.2, 0.95), st.floats(0.8, 1.3))
def test_of_few_plans_the_best_is_found_without_measuring_one_twice(prices, share, scale) -> None:
    prices = sorted({round(price, 2) for price in prices})

    def plan(budget: float) -> float:
        return max((price for price in prices if price <= budget), default=prices[0])

    def ratio(price: float) -> float:
        return scale * price / (share * scale * 10.0)

    probes = search(ratio, 10.0, plan, smallest=prices[0], most=60)
    measured = [probe.predicted for probe in probes[1:]]
    assert len(set(measured)) == len(measured)
    met = [price for price in prices if ratio(price) <= 1]
    if met and not good_enough(probes, TOLERANCE):
        assert max(probe.predicted for probe in probes if probe.met) >= max(met) - NOTHING_BETWEEN * 10.0


def test_a_network_that_is_fast_enough_is_left_alone() -> None:
    assert next_budget([Probe(10, 0.8, True)], TOLERANCE) is None


def test_an_unreachable_goal_ends_after_the_smallest_candidate() -> None:
    probes = search(lambda predicted: 100 * predicted, 10.0, lambda budget: budget, smallest=2.0)
    assert [probe.smallest for probe in probes] == [False, True]


def test_a_jump_in_the_latency_ends_the_search() -> None:
    probes = search(lambda predicted: 10 / 7 if predicted > 5 else 5 / 7, 10.0, lambda budget: budget, smallest=1.0)
    assert any(probe.met for probe in probes) and len(probes) <= 12


def test_a_probe_that_was_slower_than_predicted_does_not_end_the_search() -> None:
    """One planned for less than another and measured slower: the search goes on above the one that met."""
    misled = [Probe(10.0, 2.0, False), Probe(4.0, 1.1, False, budget=4.0), Probe(5.0, 0.8, True, budget=5.0)]
    budget = next_budget(misled, TOLERANCE)
    assert budget is not None and 5.0 < budget < 10.0
    assert unordered(misled) == [(misled[1], misled[2])]
    assert unordered(misled[::2]) == []


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 2)), min_size=1, max_size=6))
def test_the_next_budget_lies_between_what_met_and_what_did_not(rows) -> None:
    probes = [Probe(predicted, ratio, ratio <= 1) for predicted, ratio in rows]
    budget = next_budget(probes, TOLERANCE)
    if budget is not None:
        met = [probe.predicted for probe in probes if probe.met]
        assert all(budget > predicted for predicted in met)
        assert any(budget < probe.predicted for probe in probes if not probe.met)
