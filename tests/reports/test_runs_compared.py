"""Two runs beside each other: what differs is told, and nothing is put against what it does not compare with."""

from __future__ import annotations

import io

import pytest
import rich.console
from report_runs import PI, all_runs, base, layers, probe, run_of

from reports.records import RunRecord
from reports.runs_compared import RunsComparedRecord, compare_runs
from reports.side_by_side import runs_side_by_side

RECIPE = {"model": "m.py:net", "data": "d.npz", "test": None, "metric": None, "seed": 0, "latency": "60%"}


def run(median_ms: float, correct: int, **changes) -> RunRecord:
    """A run whose one candidate met the goal."""
    return run_of(
        (probe(1, median_ms, "met", correct, budget_ms=8.05),), "met", winner=1, best=1, headline="It fits.", **changes
    )


def compared(a: RunRecord, b: RunRecord, **recipe_of_b) -> RunsComparedRecord:
    return compare_runs(a, b, ("runs/a", "runs/b"), (RECIPE, {**RECIPE, **recipe_of_b}))


def text(record: RunsComparedRecord, width: int = 160) -> str:
    console = rich.console.Console(file=io.StringIO(), width=width, no_color=True)
    for part in runs_side_by_side(record):
        console.print(part)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def faster() -> RunsComparedRecord:
    """The second run is faster, less accurate, and was made by another torch."""
    a = run(8.3, 1827)
    b = run(6.64, 1806, environment={**a.environment, "torch": "2.14.0"}, seconds=1354.0)
    return compared(a, b, latency="45%")


def test_a_run_beside_itself_has_no_difference():
    one = run(8.3, 1827)
    same = compared(one, one)
    assert same.recipe == same.environment == same.layers == same.only_a == same.only_b == ()
    assert not same.unlike and same.quality_change == 0 and same.quality_overlap
    assert [(each.ratio, each.overlap) for each in same.latencies] == [(1.0, True)] * 2
    assert "same speed, intervals overlap" in text(same) and "recipe" not in text(same)


def test_only_what_differs_of_recipe_and_tools_is_told(faster):
    assert [(each.key, each.a, each.b) for each in faster.recipe] == [("latency", "60%", "45%")]
    assert [(each.key, each.a, each.b) for each in faster.environment] == [("torch", "2.13.0", "2.14.0")]


def test_latencies_are_compared_by_target_and_format(faster):
    tflite, onnx = faster.latencies
    assert (tflite.target, tflite.format, onnx.format) == ("pixel-4-cpu", "tflite", "onnx")
    assert tflite.ratio == pytest.approx(0.8) and tflite.overlap is False and not tflite.why_not
    nearly = compared(run(8.3, 1827), run(8.33, 1827)).latencies[0]
    assert nearly.ratio > 1 and nearly.overlap


def test_quality_comes_with_its_intervals_and_the_sign_of_what_was_lost(faster):
    assert faster.quality_change == pytest.approx(-1.05) and faster.quality_overlap is True
    page = text(faster)
    assert "−1.05 pt, intervals overlap" in page
    assert "−0.35 pt [−0.95, +0.25], may be nothing" in page
    assert "−1.40 pt [−2.00, −0.80]" in page and "−1.40 pt [−2.00, −0.80], may" not in page


def test_goals_show_what_was_asked_and_reached(faster):
    (goal,) = faster.goals
    assert (goal.quantity, goal.target, goal.a.limit) == ("latency", "pixel-4-cpu", 8.5)
    assert goal.reached_a.value == 8.3 and goal.reached_b.value == 6.64
    assert "≤ 8.50 ms  ● 2.4 % under" in text(faster) and "≤ 8.50 ms  ● 22 % under" in text(faster)


def test_edits_and_layers_of_one_run_alone():
    a = run(8.3, 1827)
    merge, *others = a.candidates[0].edits
    reworded = others[0].model_copy(update=dict(predicted_saving_ms=0.5, damage=0.25))
    wide = layers(6, kept=5)
    b = a.model_copy(
        update=dict(candidates=(a.candidates[0].model_copy(update=dict(edits=(reworded, *others[1:]), layers=wide)),))
    )
    found = compared(a, b)
    assert found.only_a == (merge,) and found.only_b == ()
    assert {pair.name for pair in found.layers if pair.a is None} == {"layer1.3.conv2", "layer2.0.conv2"}
    assert {(pair.a[:8], pair.b[:8]) for pair in found.layers if pair.a} == {("conv 5×5", "conv 3×3")}
    assert f"edits that only A has: 1\n  linearize {merge.site}: {merge.summary}" in text(found)


def test_sizes_parameters_and_time(faster):
    assert [(each.format, each.a, each.b) for each in faster.sizes] == [
        (name, 1_205_432, 1_205_432) for name in ("tflite", "onnx", "coreml")
    ]
    assert (faster.a.parameters, faster.b.seconds) == (231_002, 1354.0)
    assert "unchanged" in text(faster) and "22 min 34 s" in text(faster)


def test_latencies_of_other_networks_are_shown_and_not_compared():
    found = compared(run(8.3, 1827), run(6.64, 1806, original=base(blocks=5), model="other.py:net"))
    assert found.unlike.startswith("the originals are not the same network: 20 layers")
    assert [(each.ratio, each.overlap) for each in found.latencies] == [(None, None)] * 2
    assert all(each.a and each.b and each.why_not == found.unlike for each in found.latencies)
    page = text(found)
    assert "Latencies are not compared: the originals" in page and "faster" not in page and "6.64 ms" in page


def test_other_targets_stand_beside_each_other_uncompared():
    one = run(8.3, 1827)
    (candidate,) = one.candidates
    elsewhere = tuple(each.model_copy(update=dict(target=PI.name)) for each in candidate.measurements)
    other = one.model_copy(
        update=dict(targets=(PI,), candidates=(candidate.model_copy(update=dict(measurements=elsewhere)),))
    )
    found = compared(one, other)
    assert [(each.target, each.a is None, each.b is None, each.ratio) for each in found.latencies] == [
        ("pixel-4-cpu", False, True, None),
        ("pixel-4-cpu", False, True, None),
        ("raspberry-pi-4", True, False, None),
        ("raspberry-pi-4", True, False, None),
    ]
    assert (found.a.targets, found.b.targets) == (("pixel-4-cpu",), ("raspberry-pi-4",))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"runner": "host"}, "measured by emulator and by host"),
        ({"threads": 2}, "measured on 1 and on 2 threads"),
    ],
)
def test_latencies_measured_otherwise_are_not_compared(change, why):
    one = run(8.3, 1827)
    (candidate,) = one.candidates
    measured = tuple(each.model_copy(update=change) for each in candidate.measurements)
    other = one.model_copy(update=dict(candidates=(candidate.model_copy(update=dict(measurements=measured)),)))
    assert [(each.ratio, each.why_not) for each in compared(one, other).latencies] == [(None, why)] * 2


def test_a_target_described_otherwise_is_another_one():
    one = run(8.3, 1827)
    again = one.model_copy(update=dict(targets=(one.target.model_copy(update=dict(profile_version="2")),)))
    assert compared(one, again).latencies[0].why_not == "pixel-4-cpu was described otherwise"


@pytest.mark.parametrize(
    ("other", "recipe", "why"),
    [
        (lambda: run_of((), "undecided"), {}, "not both runs judged it"),
        (lambda: run(8.3, 1827), {"test": "t.npz"}, "the recipes differ in test"),
        (
            lambda: run_of((probe(1, 8.3, "met", 1990, budget_ms=8.0, labelled=False),), "met", winner=1, best=1),
            {},
            "one is top-1, the other agreement with the original",
        ),
    ],
)
def test_qualities_that_mean_other_things_are_not_compared(other, recipe, why):
    found = compared(run(8.3, 1827), other(), **recipe)
    assert found.quality_change is None and found.quality_overlap is None and why in found.quality_why_not
    assert "not compared:" in text(found)


@pytest.mark.parametrize("width", [50, 160])
@pytest.mark.parametrize("name", sorted(all_runs()))
def test_every_run_stands_beside_every_other(runs, met, name, width):
    found = compared(met, runs[name])
    assert RunsComparedRecord.model_validate_json(found.model_dump_json()) == found
    assert all(len(line) <= width for line in text(found, width).splitlines())
