"""EASIER in rounds: the fewest that a budget asks for, as far as the accuracy lasts, each resumable."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from ingested import network_of
from networks.small import small
from torch import Tensor, nn

import pipeline.compress.descent as descent
from calibration.statistics import collect
from pipeline.compress.analysis import run
from pipeline.compress.easier import POLICIES, Easing
from pipeline.compress.easing import EasedPlan, EasierRounds
from pipeline.compress.linearize import channel_dims, sites
from pipeline.compress.methods import planner
from pipeline.compress.realising import realise
from pipeline.compress.segments import segments
from pipeline.compress.split import with_own_rectifiers
from pipeline.compress.subject import Subject
from pipeline.model.edits import replay
from pipeline.model.ingest import export_program
from pipeline.model.network import ChannelAffine, Network
from pipeline.model.operators import milliseconds
from pipeline.recipe import Recipe
from pipeline.stages import Stages
from pipeline.store.run_directory import RunDirectory
from targets.cache import cache_root
from targets.cost import CostTable
from targets.profile import load_profile

pytestmark = pytest.mark.usefixtures("seeded")


class Perceptron(nn.Sequential):
    """Three activations between layers whose merges all save time; input [N, 3, 12, 12]."""

    def __init__(self, act: nn.Module | None = None) -> None:
        widths = [432, 512, 256, 256]
        super().__init__(nn.Flatten())
        for before, after in zip(widths, widths[1:]):
            self.extend([nn.Linear(before, after), act or nn.ReLU()])
        self.append(nn.Linear(widths[-1], 5))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def costs() -> CostTable:
    return CostTable.load(load_profile("pixel-4-cpu"), "tflite")


class Trainer:
    """Stands in for the training of the rounds: tells accuracies, and moves the head a little each time."""

    def __init__(self, accuracies: Sequence[float]) -> None:
        self.accuracies, self.numbers = accuracies, []

    def __call__(self, network: Network, number: int) -> tuple[Network, float]:
        self.numbers.append(number)
        trained = network.copy()
        with torch.no_grad():
            next(reversed(trained.layers().values())).bias += torch.arange(5) * 0.1
        return trained, self.accuracies[number]


def asked(
    module: nn.Module, x: Tensor, costs: CostTable, accuracies: Sequence[float], drop: float = 1.0, linearize: int = 0
) -> tuple[EasierRounds, Trainer]:
    base, trainer = network_of(module, x), Trainer(accuracies)
    statistics = collect(base.graph, sites(base), [x], channel_dims=channel_dims(base))
    subject = Subject(base, statistics, [x], costs, True, linearize=linearize, easing=Easing(trainer, drop))
    found = planner("easier", subject)
    assert isinstance(found, EasierRounds)
    return found, trainer


def floors(rounds: EasierRounds) -> list[float]:
    """Predicted milliseconds after 0, 1, 2 ... rounds."""
    rounds.plan(0.0)
    return [plan.predicted_ms for plan in rounds._plans]


def require_keeps(rounds: EasierRounds, plan: EasedPlan, x: Tensor) -> Network:
    """The plan's network takes what the plan predicts, does the damage that it says, and replays on the base."""
    network = realise(rounds.start(plan), plan.options, [x])
    assert sum(milliseconds(network, rounds.subject.costs).values()) == pytest.approx(plan.predicted_ms, rel=1e-9)
    assert rounds.subject.divergence_of(network) == pytest.approx(plan.damage, rel=1e-6, abs=1e-9)
    assert plan.reachable == (plan.predicted_ms <= plan.budget_ms + 1e-12)
    again = replay(rounds.subject.base, network.edits)
    assert again.graph.state_dict().keys() == network.graph.state_dict().keys()
    return network


def test_a_budget_takes_the_fewest_rounds_that_meet_it(x, costs) -> None:
    times = floors(asked(Perceptron(), x, costs, [90.0] * 4)[0])
    assert len(times) == 4 and all(after < before for before, after in zip(times, times[1:]))
    rounds, trainer = asked(Perceptron(), x, costs, [90.0] * 4)
    untouched = rounds.plan(times[0])
    assert untouched.options == () and untouched.reachable and trainer.numbers == []  # nothing trains for it
    for count in (1, 2, 3):
        plan = rounds.plan(times[count])
        assert plan.reachable and len(plan.removed) == count and trainer.numbers == list(range(count + 1))
        assert set(plan.sites) == {site for option in plan.options for site in option.sites}
        assert {edit.kind for edit in plan.edits} == {"merge"}
        require_keeps(rounds, plan, x)
    assert len(rounds.plan(times[1]).removed) == 1 and not rounds.plan(times[3] - 1e-6).reachable
    assert trainer.numbers == [0, 1, 2, 3]  # each round once, whatever is asked
    assert rounds.rejected == ()


def test_the_lowest_entropy_goes_first_in_the_network_as_it_then_is(x, costs) -> None:
    rounds, _ = asked(Perceptron(), x, costs, [90.0] * 4)
    removed = rounds.plan(0.0).removed
    network = rounds.subject.base
    for count, gone in enumerate(removed):
        seen = collect(network.graph, sites(network), [x], channel_dims=channel_dims(network))
        entropies = {site: seen[site].entropy() for site in sites(network)}
        assert gone.site == min(entropies, key=entropies.get) and gone.entropy_bits == entropies[gone.site]
        network = rounds._plans[count + 1].trained
        assert isinstance(network.layer(gone.site), ChannelAffine)


def test_the_tolerated_drop_ends_the_rounds_and_says_so(x, costs) -> None:
    rounds, trainer = asked(Perceptron(), x, costs, [90.0, 89.2, 88.9, 90.0])
    plan = rounds.plan(0.0)
    assert not plan.reachable and len(plan.removed) == 1 and trainer.numbers == [0, 1, 2]
    require_keeps(rounds, plan, x)
    unlimited = asked(Perceptron(), x, costs, [90.0] * 4)[0].plan(0.0)
    assert plan.sites == unlimited.sites[:1]
    ((kind, site, reason),) = rounds.rejected
    assert (kind, site) == ("linearize", unlimited.sites[1])
    assert "1.10 points" in reason and "1 are tolerated" in reason
    assert rounds.plan(0.0) == plan and trainer.numbers == [0, 1, 2]


def test_nothing_is_removed_where_the_first_round_costs_too_much(x, costs) -> None:
    rounds, trainer = asked(Perceptron(), x, costs, [90.0, 70.0])
    plan = rounds.plan(0.0)
    assert (plan.options, plan.removed, plan.reachable, plan.damage) == ((), (), False, 0.0)
    assert rounds.start(plan) is rounds.subject.base and trainer.numbers == [0, 1]


def test_at_least_so_many_activations_are_removed_as_the_recipe_wants(x, costs) -> None:
    rounds, trainer = asked(Perceptron(), x, costs, [90.0] * 4, linearize=2)
    plan = rounds.plan(rounds.subject.base_ms)
    assert len(plan.removed) == 2 and plan.reachable and trainer.numbers == [0, 1, 2]
    rounds, _ = asked(Perceptron(), x, costs, [90.0, 90.0, 50.0], linearize=2)
    assert len(rounds.plan(rounds.subject.base_ms).removed) == 1  # as far as the accuracy lasts


def test_damage_is_counted_from_the_original_with_what_training_changed(x, costs) -> None:
    rounds, _ = asked(Perceptron(), x, costs, [90.0] * 4)
    plan = rounds.plan(0.0)
    trained = rounds.subject.divergence_of(plan.trained)
    (option,) = plan.options  # everything is one layer by then, exactly the trained network
    assert trained > 0 and [option.damage, plan.damage] == pytest.approx([trained] * 2, rel=1e-4)
    assert torch.allclose(run(require_keeps(rounds, plan, x), [x]), run(plan.trained, [x]), atol=1e-5)


def test_only_what_a_faster_segment_holds_is_removed(x, costs) -> None:
    rounds, trainer = asked(small(), x, costs, [90.0] * 9)
    faster = [segment for segment in segments(rounds.subject.base, costs) if segment.saving_ms > 0]
    plan = rounds.plan(0.0)
    assert set(plan.sites) == {site for segment in faster for site in segment.sites} < set(sites(rounds.subject.base))
    assert len(trainer.numbers) == len(plan.sites) + 1
    ((kind, site, reason),) = rounds.rejected
    assert (kind, site) == ("merge", "basic.conv1") and "ms" in reason
    require_keeps(rounds, plan, x)


def test_without_anything_to_gain_nothing_trains_and_that_is_told(x, costs) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(800, 5))
    rounds, trainer = asked(model, x, costs, [])
    assert rounds.plan(0.0).removed == () and trainer.numbers == []
    ((kind, site, reason),) = rounds.rejected
    assert (kind, site) == ("merge", "the network") and "no two layers" in reason


def test_a_shared_activation_is_split_and_goes_call_by_call(x, costs) -> None:
    rounds, _ = asked(Perceptron(nn.PReLU()), x, costs, [90.0] * 4)
    assert sites(rounds.subject.base) == []
    plan = rounds.plan(0.0)
    assert len(plan.sites) == 3 and set(plan.sites) == set(sites(with_own_rectifiers(rounds.subject.base)))
    require_keeps(rounds, plan, x)


# --- in a run -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(x: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: a network and labelled samples."""
    torch.export.save(export_program(Perceptron().eval(), (x[:2],)), tmp_path / "net.pt2")
    np.savez(tmp_path / "labelled.npz", x=x.numpy(), y=(x.mean((1, 2, 3)) > 0).long().numpy())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stages(folder: Path, name: str, told: Callable[[str], None] = lambda text: None, **fields: object) -> Stages:
    """A run whose rounds are four steps each; no accuracy is too low."""
    given = {"model": "net.pt2", "data": "labelled.npz", "target": "pixel-4-cpu", "latency": "60%", "recover_steps": 2}
    given |= {"method": "easier", "removal": "rounds", "easier_policy": "transfer", "train_epochs": 2.0}
    recipe = Recipe(**{**given, "tolerated_drop": 100.0, **fields})
    root = folder / name
    directory = RunDirectory.resume(root) if root.exists() else RunDirectory.create(root, recipe.to_toml())
    return Stages(directory, recipe, [load_profile("pixel-4-cpu")], told)


def test_the_recipe_knows_the_papers_policies() -> None:
    assert set(get_args(Recipe.model_fields["easier_policy"].annotation)) == set(POLICIES)


def test_without_rounds_all_go_at_once_and_nothing_trains(folder: Path) -> None:
    once = stages(folder, "run", removal="one-shot")
    assert once.training.easing is None and once.training.settings == {} and not hasattr(once.planner, "easing")


def test_rounds_train_by_the_recipes_policy_on_what_they_are_not_judged_on(folder: Path) -> None:
    training = stages(folder, "run", augment=True, seed=3, train_epochs=10.0).training
    expected = replace(POLICIES["transfer"], epochs=10.0, augment=True, seed=3)
    assert training.easing_policy == expected
    seen, held = training._apart
    together = sorted([*seen._indices, *held._indices])
    assert (len(seen), len(held)) == (46, 5) and together == sorted(training.samples._indices)
    shown: list[int] = []
    training.told = lambda text: shown.append(1) if ": step " in text else None
    network, accuracy = training.retrained(training.base, 0)
    (x, y), *_ = held.batches(5)
    assert accuracy == pytest.approx(100 * (run(network, [x]).argmax(1) == y).double().mean().item())
    assert len(shown) == expected.steps(seen) == 20


def test_a_candidate_of_rounds_reports_them_and_loads_from_its_edits_and_weights(folder: Path, x) -> None:
    told: list[str] = []
    made_by = stages(folder, "run", told.append)
    made = made_by.compressed(1, 0.0)
    assert made.result["smallest"] and made.result["predicted_ms"] < 0.5 * made_by.planner.subject.base_ms
    removed = [row for row in made.result["edits"] if row["kind"] == "linearize"]
    assert sorted(row["site"] for row in removed) == ["2", "4", "6"] == sorted(sites(made_by.base))
    assert all(0 <= row["entropy_bits"] <= 1 and "held-out" in row["summary"] for row in removed)
    assert [row["summary"].partition(":")[0] for row in removed] == ["round 1", "round 2", "round 3"]
    (merge,) = [row for row in made.result["edits"] if row["kind"] == "merge"]
    assert merge["predicted_saving_ms"] > 0 and merge["damage"] > 0 and merge["entropy_bits"] is None
    assert sum("of the held-out samples right" in text for text in told) == 4
    network = made_by.load(made)
    stored = torch.export.load(made_by.run.root / made.folder / "network" / "network.pt2").module()
    with torch.no_grad():
        assert torch.allclose(network(x), stored(x), atol=1e-5)
    assert network.parameters() == made.result["parameters"] == 432 * 5 + 5
    taught = made_by.recovered(2, made)
    assert [row["kind"] for row in taught.result["edits"]] == ["linearize"] * 3 + ["merge", "recover"]
    made_by.run.close()
    again = stages(folder, "run")
    assert again.compressed(1, 0.0) == made and "planner" not in vars(again)


def test_a_round_that_was_killed_resumes_to_the_same_bits(folder: Path, monkeypatch) -> None:
    told: list[str] = []
    whole = stages(folder, "whole", told.append, seed=5)
    expected = whole.compressed(1, 0.0).result
    shutil.rmtree(cache_root() / "store")  # or the run that is killed would find all of it there
    steps = [text.split(",")[0] for text in told if ": step " in text]
    assert steps[:4] == [f"training before removal: step {step} of 4" for step in (1, 2, 3, 4)] and len(steps) == 16
    monkeypatch.setattr(descent, "CHECKPOINT_SECONDS", 0.0)

    def die(text: str) -> None:
        if "round 2 of removal: step 3 of" in text:
            raise KeyboardInterrupt

    killed = stages(folder, "killed", die, seed=5)
    with pytest.raises(KeyboardInterrupt):
        killed.compressed(1, 0.0)
    killed.run.close()
    told.clear()
    resumed = stages(folder, "killed", told.append, seed=5)
    assert resumed.compressed(1, 0.0).result == expected
    steps = [text.split(",")[0] for text in told if ": step " in text]
    assert steps[:2] == [f"round 2 of removal: step {step} of 4" for step in (3, 4)] and len(steps) == 6
    assert not (resumed.run.root / "scratch").exists()


@pytest.mark.parametrize("other", [{"seed": 1}, {"augment": True}, {"easier_policy": "domainbed"}], ids=str)
def test_other_settings_are_another_round(other: dict[str, object], folder: Path) -> None:
    networks = []
    for name, fields in (("one", {}), ("other", other)):
        training = stages(folder, name, train_epochs=1.0, **fields).training
        networks.append(training.retrained(training.base, 0)[0].fingerprint())
    assert networks[0] != networks[1]
