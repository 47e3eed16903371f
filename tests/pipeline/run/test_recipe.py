"""What a recipe asks for: targets with their latencies, sizes, shares; what does not fit together is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.recipe import differences, make_recipe, read_recipe
from targets.errors import UsageError

MODEL = {"model": "m.py:net", "data": "d.npz"}
TWO = {"target": ["pixel-4-cpu", "raspberry-pi-4"]}


def test_latencies_belong_to_targets_in_their_order() -> None:
    recipe = make_recipe(**MODEL, **TWO, latency=["12ms", "60%"], p90="15ms", size="3MB", memory="50%")
    found = [(each.quantity, each.target, each.most, each.share) for each in recipe.limits]
    assert found == [
        ("latency", "pixel-4-cpu", 12.0, None),
        ("latency", "raspberry-pi-4", None, 0.6),
        ("p90", "pixel-4-cpu", 15.0, None),
        ("p90", "raspberry-pi-4", 15.0, None),
        ("size", None, 3e6, None),
        ("memory", None, None, 0.5),
    ]


def test_one_target_alone_asks_for_its_own() -> None:
    recipe = make_recipe(**MODEL, **TWO, latency=["12ms", "20ms"], p90="25ms", size="3MB", per_target=True)
    own = recipe.for_target("raspberry-pi-4")
    assert (own.targets, own.per_target) == (("raspberry-pi-4",), False)
    assert [(each.quantity, each.most) for each in own.limits] == [("latency", 20.0), ("p90", 25.0), ("size", 3e6)]


def test_a_size_alone_is_a_goal() -> None:
    (size,) = make_recipe(**MODEL, target="pixel-4-cpu", size="300kB").limits
    assert (size.quantity, size.target, size.most, size.unit) == ("size", None, 3e5, "B")


@pytest.mark.parametrize("drop", [("0.5pt", (0.5, None)), ("2%", (None, 0.02)), ("0pt", (0.0, None))])
def test_quality_that_may_be_lost_is_points_or_a_share(drop: tuple[str, tuple]) -> None:
    recipe = make_recipe(**MODEL, target="host", latency="1ms", max_drop=drop[0])
    assert recipe.allowed_drop == drop[1]


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({**TWO, "latency": ["1ms", "2ms", "3ms"]}, "GOALS_MISMATCHED"),
        ({"target": "host", "latency": ["1ms", "2ms"]}, "GOALS_MISMATCHED"),
        ({"target": ["host", "host"], "latency": "1ms"}, "GOALS_MISMATCHED"),
        ({"target": "host"}, "GOAL_MISSING"),
        ({"target": "host", "size": "3"}, "SIZE_UNIT"),
        ({"target": "host", "memory": "3ms"}, "MEMORY_UNIT"),
        ({"target": "host", "p90": "0ms"}, "P90_VALUE"),
        ({"target": "host", "latency": "1ms", "max_drop": "0.5"}, "MAX_DROP_UNIT"),
    ],
)
def test_what_does_not_fit_together_is_refused(asked: dict[str, object], code: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_recipe(**MODEL, **asked)
    assert caught.value.code == code


def test_a_recipe_reads_back_as_it_was_written(tmp_path: Path) -> None:
    recipe = make_recipe(**MODEL, **TWO, latency=["12ms", "60%"], size="3MB", max_drop="1pt", metric="m.py:error")
    (tmp_path / "planish.toml").write_text(recipe.to_toml())
    assert read_recipe(tmp_path / "planish.toml") == recipe
    changed = read_recipe(tmp_path / "planish.toml", {"latency": "9ms", "seed": 1, "max_drop": "2pt"})
    assert differences(recipe, changed) == [
        'latency: ["12ms", "60%"] -> "9ms"',
        'max_drop: "1pt" -> "2pt"',
        "seed: 0 -> 1",
    ]
