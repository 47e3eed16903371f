"""The methods a recipe can name: every one answers budgets, says what it cannot touch, and trains resumably."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from networks.small import small
from torch import Tensor, nn

import pipeline.compress.descent as descent
from calibration.statistics import collect
from pipeline.compress.analysis import run
from pipeline.compress.collapse import Blend, pairs, soften
from pipeline.compress.collapsing import TOLERANCE
from pipeline.compress.linearize import channel_dims, sites
from pipeline.compress.melt import PRESETS as MELTINGS
from pipeline.compress.methods import PLANNERS, planner
from pipeline.compress.plan import Plan
from pipeline.compress.realising import realise
from pipeline.compress.subject import Planner, Selector, Subject
from pipeline.model.edits import replay
from pipeline.model.ingest import export_program, from_program
from pipeline.model.network import Network
from pipeline.model.operators import milliseconds
from pipeline.recipe import Method, Recipe
from pipeline.stages import Stages
from pipeline.store.run_directory import RunDirectory
from targets.cache import cache_root
from targets.cost import CostTable
from targets.errors import UsageError
from targets.profile import load_profile

SELECTORS = get_args(Selector)


class Attention(nn.Module):
    """One head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out((q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ v)


class Encoder(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.attention, self.norm = nn.LayerNorm(width), Attention(width), nn.LayerNorm(width)
        self.fc1, self.act, self.fc2 = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before(x))
        return x + self.fc2(self.act(self.fc1(self.norm(x))))


class TinyViT(nn.Module):
    """Input [N, 3, 12, 12] in nine patches, two blocks of width 32, output [N, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, 4)
        self.blocks = nn.Sequential(Encoder(32), Encoder(32))
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def perceptron() -> nn.Module:
    """A classifier head: three linear layers in a row."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(432, 512), nn.ReLU(), nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 5)
    )


def vit() -> nn.Module:
    torch.manual_seed(0)
    return TinyViT()


MODELS: dict[str, Callable[[], nn.Module]] = {"small": small, "vit": vit, "perceptron": perceptron}


@pytest.fixture(scope="module")
def costs() -> CostTable:
    return CostTable.load(load_profile("pixel-4-cpu"), "tflite")


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def subjects(x: Tensor, costs: CostTable) -> dict[str, Subject]:
    found = {}
    for name, make in MODELS.items():
        base = from_program(export_program(make().eval(), (x[:2],)))
        statistics = collect(base.graph, sites(base), [x], channel_dims=channel_dims(base))
        found[name] = Subject(base, statistics, [x], costs, classes=True)
    return found


def realised(asked: Planner, chosen: Plan, x: Tensor) -> Network:
    return realise(asked.start(chosen), chosen.options, [x])


def require_keeps(asked: Planner, subject: Subject, chosen: Plan, x: Tensor) -> None:
    """The plan's network runs, takes what the plan predicts, and is on budget where the plan says so."""
    assert chosen.reachable == (chosen.predicted_ms <= chosen.budget_ms + 1e-9)
    network = realised(asked, chosen, x)
    assert run(network, [x]).isfinite().all()
    predicted = sum(milliseconds(network, subject.costs).values())
    assert predicted == pytest.approx(chosen.predicted_ms, rel=1e-6)
    if not chosen.reachable:
        assert asked.plan(0.0).predicted_ms == pytest.approx(chosen.predicted_ms, rel=1e-6)
    assert chosen.damage == 0 if not chosen.options else chosen.damage >= 0


def test_the_recipe_names_every_method_and_every_option() -> None:
    assert set(get_args(Method)) == set(PLANNERS)
    fields = Recipe.model_fields
    assert get_args(fields["ranks"].annotation) == SELECTORS
    assert set(get_args(fields["melting"].annotation)) == set(MELTINGS)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", PLANNERS)
def test_every_method_answers_every_budget(method: str, model: str, subjects, x) -> None:
    subject = subjects[model]
    before = subject.base.fingerprint()
    asked = planner(method, subject)
    assert asked.plan(subject.base_ms).options == () and asked.plan(subject.base_ms).reachable
    for share in (0.9, 0.6, 0.01):
        require_keeps(asked, subject, asked.plan(share * subject.base_ms), x)
    assert not asked.plan(0.01 * subject.base_ms).reachable
    assert all(kind and site and reason for kind, site, reason in asked.rejected)
    assert subject.base.fingerprint() == before


@pytest.mark.parametrize("model", ["small", "vit"])
@pytest.mark.parametrize("selector", SELECTORS)
def test_every_selector_of_ranks_keeps_a_budget(selector: str, model: str, subjects, x) -> None:
    subject = replace(subjects[model], ranks=selector)
    asked = planner("svd", subject)
    chosen = asked.plan(0.9 * subject.base_ms)
    assert chosen.reachable and chosen.options and {option.kind for option in chosen.options} == {"truncate"}
    require_keeps(asked, subject, chosen, x)


def test_selectors_choose_differently(subjects) -> None:
    plans = {
        s: planner("svd", replace(subjects["vit"], ranks=s)).plan(0.8 * subjects["vit"].base_ms) for s in SELECTORS
    }
    assert len({tuple(option.summary for option in plan.options) for plan in plans.values()}) > 2


def test_what_has_no_mlp_is_told_so(x, costs) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(800, 5))
    base = from_program(export_program(model.eval(), (x[:2],)))
    subject = Subject(base, collect(base.graph, sites(base), [x], channel_dims=channel_dims(base)), [x], costs, True)
    asked = planner("layercollapse", subject)
    chosen = asked.plan(0.5 * subject.base_ms)
    assert chosen.options == () and not chosen.reachable and chosen.predicted_ms == subject.base_ms
    ((kind, site, reason),) = asked.rejected
    assert (kind, site) == ("collapse", "the network") and "no two linear layers" in reason


class TestLayerCollapse:
    def test_takes_the_fewest_pairs_from_the_last(self, subjects) -> None:
        subject = subjects["vit"]
        asked = planner("layercollapse", subject)
        (last, with_last), (first, with_both) = asked.turns
        assert (last, first) == ("blocks.1.act", "blocks.0.act") and with_both < with_last < subject.base_ms
        assert asked.plan(with_last).sites == (last,)
        assert asked.plan(with_last - 1e-6).sites == (first, last)
        assert asked.plan(with_both).reachable and not asked.plan(with_both - 1e-6).reachable

    def test_melts_a_set_once(self, subjects) -> None:
        asked_for: list[Sequence[str]] = []

        def melted(network: Network, chosen: Sequence[str]) -> Network:
            asked_for.append(chosen)
            return replay(network, [soften(site, slope=1.0) for site in chosen])

        asked = planner("layercollapse", replace(subjects["vit"], melted=melted))
        for _ in range(2):
            asked.plan(0.0)
        assert asked_for == [["blocks.0.act", "blocks.1.act"]]

    def test_layers_in_a_row_become_one(self, subjects, x) -> None:
        asked = planner("layercollapse", subjects["perceptron"])
        chosen = asked.plan(0.0)
        (option,) = chosen.options
        assert option.sites == ("2", "4") and option.site == "1"
        layers = [m for m in realised(asked, chosen, x).layers().values() if isinstance(m, nn.Linear)]
        assert [(m.in_features, m.out_features) for m in layers] == [(432, 5)]

    def test_a_slope_of_one_is_merged_exactly(self, subjects, x) -> None:
        asked = planner("layercollapse", subjects["vit"])
        chosen = asked.plan(0.0)
        assert {option.kind for option in chosen.options} == {"collapse"}
        assert torch.allclose(run(realised(asked, chosen, x), [x]), run(chosen.melted, [x]), atol=1e-5)

    @pytest.mark.parametrize("model", ["vit", "perceptron"])
    def test_what_a_slope_lacks_is_fitted_and_not_dropped(self, model: str, subjects, x) -> None:
        def melted(network: Network, chosen: Sequence[str]) -> Network:
            return replay(network, [soften(site, slope=1 - 0.9 * TOLERANCE) for site in chosen])

        asked = planner("layercollapse", replace(subjects[model], melted=melted))
        chosen = asked.plan(0.0)
        assert {option.kind for option in chosen.options} == {"refit"}
        network, reference = realised(asked, chosen, x), run(chosen.melted, [x])
        exact = planner("layercollapse", replace(subjects[model], melted=melted))
        exact._better_fit = lambda *_: None
        merges = exact.plan(0.0)
        assert {option.kind for option in merges.options} == {"collapse"}
        left = [(run(found, [x]) - reference).square().mean() for found in (network, realised(exact, merges, x))]
        assert left[0] < 0.7 * left[1]
        again = replay(subjects[model].base, network.edits)
        assert again.graph.state_dict().keys() == network.graph.state_dict().keys()

    def test_a_slope_that_stays_away_is_kept_and_told(self, subjects, x) -> None:
        def melted(network: Network, chosen: Sequence[str]) -> Network:
            return replay(network, [soften(site, slope=0.5 if site == "blocks.1.act" else 1.0) for site in chosen])

        subject = replace(subjects["vit"], melted=melted)
        asked = planner("layercollapse", subject)
        chosen = asked.plan(asked.turns[0][1])  # one pair would do, but it is the one that does not melt
        assert chosen.sites == ("blocks.0.act",)
        assert isinstance(realised(asked, chosen, x).layer("blocks.1.act"), Blend)
        assert [row[:2] for row in asked.rejected if "its slope" in row[2]] == [("collapse", "blocks.1.act")]

    def test_pairs_that_would_grow_are_told(self, x, costs) -> None:
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(432, 4), nn.ReLU(), nn.Linear(4, 400), nn.ReLU(), nn.Linear(400, 300)
        )
        base = from_program(export_program(model.eval(), (x[:2],)))
        statistics = collect(base.graph, sites(base), [x], channel_dims=channel_dims(base))
        asked = planner("layercollapse", Subject(base, statistics, [x], costs, True))
        assert [site for site, _ in asked.turns] == ["4"]
        ((kind, site, reason),) = asked.rejected
        assert (kind, site) == ("collapse", "1") and "multiply-accumulates" in reason
        assert [pair.site for pair in pairs(base)] == ["2", "4"]


@pytest.fixture
def folder(x: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: a ViT and samples, with labels and without."""
    (tmp_path / "net.pt2").write_bytes(b"")
    torch.export.save(export_program(vit().eval(), (x[:2],)), tmp_path / "net.pt2")
    labels = (x.mean((1, 2, 3)) > 0).long().numpy()
    np.savez(tmp_path / "labelled.npz", x=x.numpy(), y=labels)
    np.savez(tmp_path / "bare.npz", x=x.numpy())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stages(folder: Path, name: str, told: Callable[[str], None] = lambda text: None, **fields: object) -> Stages:
    given = {"model": "net.pt2", "data": "labelled.npz", "target": "pixel-4-cpu", "latency": "60%"}
    recipe = Recipe(**{**given, "train_epochs": 0.5, "recover_steps": 2, **fields})
    root = folder / name
    directory = RunDirectory.resume(root) if root.exists() else RunDirectory.create(root, recipe.to_toml())
    return Stages(directory, recipe, [load_profile("pixel-4-cpu")], told)


TRAINED = [("lorita", 12.0), ("layercollapse", 6.0)]


@pytest.mark.parametrize(("method", "epochs"), TRAINED)
def test_a_trained_candidate_loads_from_its_edits_and_weights(method: str, epochs: float, folder: Path, x) -> None:
    made_by = stages(folder, "run", method=method, train_epochs=epochs)
    base_ms = sum(milliseconds(made_by.base, made_by.costs).values())
    made = made_by.compressed(1, 0.8 * base_ms)
    assert made.result["predicted_ms"] <= 0.8 * base_ms and not made.result["smallest"] and made.result["edits"]
    network = made_by.load(made)
    stored = torch.export.load(made_by.run.root / made.folder / "network" / "network.pt2").module()
    with torch.no_grad():
        assert torch.allclose(network(x), stored(x), atol=1e-5)
    assert network.parameters() == made.result["parameters"] < made_by.base.parameters()
    taught = made_by.recovered(2, made)
    assert taught.result["network_sha256"] != made.result["network_sha256"]
    assert taught.result["edits"][-1]["kind"] == "recover"
    made_by.run.close()
    again = stages(folder, "run", method=method, train_epochs=epochs)
    assert again.compressed(1, 0.8 * base_ms) == made and "planner" not in vars(again)


@pytest.mark.parametrize(("method", "epochs"), TRAINED)
def test_a_killed_training_resumes_to_the_same_bits(method, epochs, folder: Path, monkeypatch) -> None:
    told: list[str] = []
    fields = {"method": method, "train_epochs": epochs, "seed": 5}
    whole = stages(folder, "whole", told.append, **fields)
    base_ms = sum(milliseconds(whole.base, whole.costs).values())
    expected = whole.compressed(1, 0.8 * base_ms).result
    shutil.rmtree(cache_root() / "store")  # or the run that is killed would find all of it there
    steps = [text for text in told if ": step " in text]
    assert len(steps) == epochs and steps[-1].split(",")[0].endswith(f"step {epochs:.0f} of {epochs:.0f}")
    monkeypatch.setattr(descent, "CHECKPOINT_SECONDS", 0.0)

    def die(text: str) -> None:
        if ": step 4 of" in text:
            raise KeyboardInterrupt

    killed = stages(folder, "killed", die, **fields)
    with pytest.raises(KeyboardInterrupt):
        killed.compressed(1, 0.8 * base_ms)
    killed.run.close()
    told.clear()
    resumed = stages(folder, "killed", told.append, **fields)
    assert resumed.compressed(1, 0.8 * base_ms).result == expected
    assert len([text for text in told if ": step " in text]) == epochs - 3
    assert not (resumed.run.root / "scratch").exists()


def test_a_time_for_recovery_becomes_a_number_of_steps_that_a_resumed_run_keeps(folder: Path) -> None:
    told: list[str] = []
    asked = stages(folder, "run", told.append, recover="2s")
    steps = asked.training.recovery.steps
    assert steps > 8 and told.count("timing 8 steps of recovery") == 1
    asked.run.close()
    again = stages(folder, "run", told.append, recover="2s")
    assert again.training.recovery.steps == steps and told.count("timing 8 steps of recovery") == 1
    assert stages(folder, "none", recover="0s").training.recovery.steps == 0


def test_other_settings_are_another_training(folder: Path) -> None:
    asked = {"method": "lorita", "train_epochs": 2.0}
    found = {
        name: stages(folder, name, **asked, **other).training.factorized().fingerprint()
        for name, other in {"a": {}, "b": {"lorita_factors": 3}, "c": {"seed": 1}, "d": {"augment": True}}.items()
    }
    assert len(set(found.values())) == 4


LABELLED = [
    {"method": "lorita"},
    {"method": "layercollapse", "melting": "vision"},
    {"method": "easier", "removal": "rounds"},
]


@pytest.mark.parametrize("fields", LABELLED, ids=str)
def test_training_on_labels_needs_them_and_classes(fields, folder: Path) -> None:
    with pytest.raises(UsageError) as caught:
        stages(folder, "bare", data="bare.npz", **fields).samples  # noqa: B018
    assert caught.value.code == "DATA_UNLABELLED" and list(fields.values())[-1] in caught.value.what
    with pytest.raises(UsageError) as caught:
        stages(folder, "values", output="values", **fields).samples  # noqa: B018
    assert caught.value.code == "METHOD_OUTPUT"


def test_what_another_method_would_train_on_needs_no_labels(folder: Path) -> None:
    assert not stages(folder, "run", data="bare.npz", method="svd", removal="rounds").samples.training.has_labels


def test_melting_by_the_original_needs_no_labels(folder: Path) -> None:
    made_by = stages(folder, "run", data="bare.npz", method="layercollapse")
    assert made_by.compressed(1, 0.0).result["smallest"]
