"""The budget search against targets whose true latency differs from the prediction."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.search import Probe, good_enough, next_budget


def search(true_ms, goal_ms: float, base: float, smallest: float, most: int = 12) -> list[Probe]:
    probes = [Probe(base, true_ms(base), true_ms(base) <= goal_ms)]
    while (budget := next_budget(probes, goal_ms, 0.03)) is not None and len(probes) < most:
        planned = max(budget, smallest)
        probes.append(Probe(planned, true_ms(planned), true_ms(planned) <= goal_ms, planned > budget))
    return probes


@settings(max_examples=200)
@given(st.floats(0.3, 3), st.floats(0, 0.5), st.floats(0.3, 0.95))
def test_a_smooth_target_is_met_within_the_tolerance_in_four_measured_candidates(scale, offset, share) -> None:
    def true_ms(predicted: float) -> float:
        return scale * predicted + offset

    goal = max(share * true_ms(10.0), 1.2 * true_ms(1.0))
    probes = search(true_ms, goal, 10.0, 0.5)
    assert good_enough(probes, goal, 0.03)
    assert len(probes) <= 5


def test_a_network_that_is_fast_enough_is_left_alone() -> None:
    assert next_budget([Probe(10, 4.0, True)], 5.0, 0.03) is None


def test_an_unreachable_goal_ends_after_the_smallest_candidate() -> None:
    probes = search(lambda predicted: predicted, 0.01, 10.0, 2.0)
    assert [probe.smallest for probe in probes] == [False, True]


def test_a_jump_in_the_latency_ends_the_search() -> None:
    probes = search(lambda predicted: 10.0 if predicted > 5 else 5.0, 7.0, 10.0, 1.0)
    assert any(probe.met for probe in probes) and len(probes) <= 12


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=1, max_size=6))
def test_the_next_budget_lies_between_what_met_and_what_did_not(rows) -> None:
    probes = [Probe(predicted, measured, measured <= 5) for predicted, measured in rows]
    budget = next_budget(probes, 5.0, 0.03)
    if budget is not None:
        assert budget < min(probe.predicted_ms for probe in probes if not probe.met)
        assert all(budget > probe.predicted_ms for probe in probes if probe.met)
