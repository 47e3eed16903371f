"""Candidates held against their limits: on an emulator, by the clock, by size; the worst one tells."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from made_up import artifact, limit, measurement, outcome

from pipeline.limits import judged_limits, limits_of, verdict_of, worst
from pipeline.recipe import make_recipe
from targets.judgement import Goal, Judgement
from targets.quantiles import Interval

EMULATED = SimpleNamespace(name="pixel-4-cpu", kind="emulator")
HOST = SimpleNamespace(name="host", kind="host")
MODEL = {"model": "m.py:net", "data": "d.npz"}


def judgement(median: tuple[float, float, float], ratio: tuple[float, float, float], **fields: object) -> Judgement:
    """By the clock: intervals (value, low, high) of the candidate's median and of its share of the original's."""
    found = {
        "verdict": "met",
        "reason": "",
        "goal": Goal(median_ms=1.0),
        "confidence": 0.95,
        "looks": 1,
        "candidate": measurement(median[1], median[2], "host", "host"),
        "baseline": measurement(20.0, 20.0, "host", "host"),
        "median": Interval(*median),
        "p90": Interval(median[0] + 1, median[0], float("inf")),
        "ratio": Interval(*ratio),
        "invalid": (),
    }
    return Judgement(**{**found, **fields})


def by_the_clock(found: Judgement, **asked: str) -> tuple[list, list[Goal]]:
    """Outcomes of a candidate that was judged so, and what was asked of the judge."""
    goals: list[Goal] = []

    def judged(made, artifact, original, profile, goal) -> Judgement:
        goals.append(goal)
        return found

    recipe = make_recipe(**MODEL, target="host", **asked)
    evidence = SimpleNamespace(recipe=recipe, profiles=[HOST], judged=judged)
    file, measured = artifact(), [measurement(9.0, 9.0, "host", "host")]
    original = SimpleNamespace(made=None, artifacts=[file], measurements=[measurement(20.0, 20.0, "host", "host")])
    limits = limits_of(evidence, None, file, original.measurements)
    candidate = SimpleNamespace(made=None, artifacts=[file], measurements=measured)
    outcomes = judged_limits(evidence, limits, candidate, original)
    assert measured[0] is found.candidate  # what the judgement measured is what is shown
    return outcomes, goals


@pytest.mark.parametrize(("value", "verdict"), [(9.0, "met"), (10.0, "met"), (10.5, "above")])
def test_an_emulated_latency_is_held_against_its_limit(value: float, verdict: str) -> None:
    recipe = make_recipe(**MODEL, target="pixel-4-cpu", latency="10ms", size="1kB")
    evidence = SimpleNamespace(recipe=recipe, profiles=[EMULATED])
    one = SimpleNamespace(made=None, artifacts=[artifact(bytes=2000)], measurements=[measurement(value, value)])
    limits = limits_of(evidence, None, one.artifacts[0], one.measurements)
    latency, size = judged_limits(evidence, limits, one, None)
    assert (latency.verdict, latency.value, latency.limit) == (verdict, value, 10.0)
    assert (size.verdict, size.value, size.limit, size.unit) == ("above", 2000, 1000, "B")
    assert size.margin_percent == pytest.approx(100)


def test_a_share_is_of_what_the_original_takes_on_each_target() -> None:
    recipe = make_recipe(**MODEL, target=["pixel-4-cpu", "raspberry-pi-4"], latency="60%", size="50%")
    measured = [measurement(10, 10), measurement(40, 40, target="raspberry-pi-4")]
    found = limits_of(SimpleNamespace(recipe=recipe, profiles=[EMULATED]), None, artifact(bytes=2000), measured)
    assert [(each.quantity, each.target, each.limit) for each in found] == [
        ("latency", "pixel-4-cpu", 6.0),
        ("latency", "raspberry-pi-4", 24.0),
        ("size", None, 1000.0),
    ]
    assert {each.asked for each in found} == {"60%", "50%"}


def test_an_absolute_limit_by_the_clock_is_of_the_candidates_own_interval() -> None:
    (latency, p90), (goal,) = by_the_clock(judgement((9.5, 9.0, 9.9), (0.5, 0.4, 0.6)), latency="10ms", p90="11ms")
    assert goal == Goal(median_ms=10.0, p90_ms=11.0)
    assert (latency.verdict, latency.low, latency.high, latency.confidence_percent) == ("met", 9.0, 9.9, 95.0)
    assert (p90.verdict, p90.high) == ("undecided", None)  # too few samples give no upper bound


def test_a_share_by_the_clock_is_of_the_original_in_the_same_session() -> None:
    (latency,), (goal,) = by_the_clock(judgement((11.0, 10.0, 12.0), (0.55, 0.52, 0.58)), latency="60%")
    assert goal == Goal(share=0.6)
    assert latency.verdict == "met" and latency.limit == pytest.approx(0.6 * 20.0)
    assert (latency.value, latency.low, latency.high) == pytest.approx((11.0, 10.4, 11.6))


def test_a_judgement_that_no_pair_counted_for_decides_nothing() -> None:
    found = judgement((9.0, 8.0, 9.5), (0.5, 0.4, 0.6), looks=0, verdict="undecided", reason="the machine changed")
    (latency,), _ = by_the_clock(found, latency="10ms")
    assert (latency.verdict, latency.reason) == ("undecided", "the machine changed")


def test_one_missed_limit_is_enough_and_the_worst_one_is_shown() -> None:
    outcomes = [outcome(9), outcome(12), outcome(3e6, 2e6, quantity="size"), outcome(10, verdict="undecided")]
    assert verdict_of(outcomes) == "above"
    assert verdict_of([outcomes[0], outcomes[3]]) == "undecided"
    assert verdict_of(outcomes[:1]) == "met"
    assert worst(outcomes).quantity == "size" and worst(outcomes[:2]).value == 12
    assert limit().limit == 10.0
