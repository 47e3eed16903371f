"""LoRITa: factors multiply to the layer exactly, decay on them is a Schatten penalty, training resumes exactly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks.small import small
from torch import nn

import pipeline.compress.descent as descent
from calibration.dataset import Samples, open_samples
from pipeline.compress.algebra import operator_of
from pipeline.compress.descent import Plateau, Policy, augmented, train
from pipeline.compress.factorize import PRESETS, FactorChain, factorized, merged
from pipeline.compress.truncate import full_rank, truncatable, truncate
from pipeline.model.edits import replay
from pipeline.model.ingest import export_program, from_program
from pipeline.model.network import Network
from targets.errors import UsageError


def network_of(layer: nn.Module, *shape: int) -> Network:
    """A network of one layer, called `0`."""
    return from_program(export_program(nn.Sequential(layer).eval(), (torch.randn(2, *shape),)))


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def base(x) -> Network:
    return from_program(export_program(small(), (x[:2],)))


@pytest.fixture
def samples(x, tmp_path: Path) -> Samples:
    np.savez(tmp_path / "x.npz", x=x.numpy(), y=np.arange(64) % 5)
    return open_samples(tmp_path / "x.npz")


SHORT = Policy(epochs=6, batch=16, rate=0.01, weight_decay=1e-3, label_smoothing=0.1, seed=42)
LAYERS = [
    (nn.Linear(12, 7), (5, 12), 3),
    (nn.Conv2d(5, 8, 3, 2, 1), (5, 11, 11), 3),
    (nn.Conv2d(6, 9, 1, 2, bias=False), (6, 10, 10), 2),
    (nn.Conv2d(4, 30, 3, 1, 2, 2, bias=False), (4, 9, 9), 2),
    (nn.Conv2d(6, 5, (1, 3), (1, 2), (0, 1)), (6, 7, 8), 4),
    (nn.Conv2d(5, 5, 1, 1, 1), (5, 6, 6), 3),
]


@torch.no_grad()
@pytest.mark.parametrize("width", ["paper", "least"])
@pytest.mark.parametrize("start", ["trained", "random"])
@pytest.mark.parametrize(("layer", "shape", "factors"), LAYERS, ids=lambda value: str(value))
def test_the_merged_layer_equals_the_chain_of_factors(layer, shape, factors, start, width) -> None:
    """T4.1, borders included."""
    network = network_of(layer, *shape)
    chain = factorized(network, factors, width=width, start=start)
    whole = merged(chain)
    x = torch.randn(4, *shape)
    assert len(chain.layer("0")) == factors and chain.layer("0").__class__ is FactorChain
    assert (whole(x) - chain(x)).abs().max() <= 1e-5
    assert (whole.layer("0").bias is None) == (layer.bias is None)
    assert type(whole.layer("0")) is type(layer)
    assert torch.allclose(chain(x), network(x), atol=1e-5) == (start == "trained")


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Linear(12, 7), (12,), [(12, 12), (12, 12), (7, 12)]),
        (nn.Conv2d(5, 8, 3, 2, 1), (5, 9, 9), [(8, 5, 3, 3), (8, 8, 1, 1), (8, 8, 1, 1)]),
        (nn.Conv2d(6, 9, 1, 2), (6, 9, 9), [(6, 6, 1, 1), (6, 6, 1, 1), (9, 6, 1, 1)]),
    ],
    ids=["linear", "conv", "shortcut"],
)
def test_the_layouts_are_the_papers(layer, shape, expected) -> None:
    chain = factorized(network_of(layer, *shape), 3).layer("0")
    assert [tuple(part.weight.shape) for part in chain] == expected
    assert [part.bias is None for part in chain] == [True, True, False]
    if isinstance(layer, nn.Conv2d):
        kept = 0 if layer.kernel_size == (3, 3) else 2
        assert [part.stride for part in chain] == [(2, 2) if i == kept else (1, 1) for i in range(3)]


def test_least_width_is_the_full_rank(base) -> None:
    chains = factorized(base, 3, width="least")
    for name, module in base.layers().items():
        if truncatable(module):
            assert {len(part.weight) for part in chains.layer(name)[:-1]} == {full_rank(module)}


@torch.no_grad()
@pytest.mark.parametrize("factors", [1, 2, 3])
def test_a_trained_network_is_factorized_and_merged_without_a_change(base, x, factors: int) -> None:
    before = base.fingerprint()
    chains = factorized(base, factors)
    again = merged(chains)
    assert (chains(x) - base(x)).abs().max() <= 1e-5
    assert (again(x) - base(x)).abs().max() <= 1e-5
    assert again.graph.state_dict().keys() == base.graph.state_dict().keys()
    assert again.edits == base.edits and base.fingerprint() == before
    assert (factors == 1) == (chains.fingerprint() == before)


def test_only_the_layers_asked_for_become_chains(base) -> None:
    chains = factorized(base, 2, layers=["hidden"])
    assert [name for name, module in chains.layers().items() if isinstance(module, FactorChain)] == ["hidden"]
    with pytest.raises(KeyError):
        factorized(base, 2, layers=["fused.norm"])


def test_a_random_start_is_of_its_seed_and_resets_the_norms(base) -> None:
    one, same, other = (factorized(base, 2, start="random", seed=seed) for seed in (1, 1, 2))
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()
    norm = one.layer("fused.norm")
    assert torch.equal(norm.weight, torch.ones(24)) and torch.equal(norm.running_mean, torch.zeros(24))


@torch.no_grad()
@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.05, 4.0), min_size=2, max_size=6), st.integers(2, 4))
def test_weight_decay_on_balanced_factors_is_the_schatten_penalty(values, factors) -> None:
    """T4.7: half the squared norms of the factors are N/2 times the sum of s^(2/N), and no rescaling has less."""
    layer = nn.Linear(len(values), len(values), bias=False)
    layer.weight.copy_(torch.diag(torch.tensor(values)))
    chain = factorized(network_of(layer, len(values)), factors).layer("0")
    decay = [part.weight.double().square().sum().item() for part in chain]
    assert sum(decay) / 2 == pytest.approx(factors / 2 * sum(s ** (2 / factors) for s in values), rel=1e-5)
    assert sum(decay) <= 4 * decay[0] + decay[1] / 4 + sum(decay[2:]) + 1e-9


def low_rank_task(path: Path) -> Samples:
    """Four classes that two directions of twelve decide, and noise in the rest."""
    chance = np.random.default_rng(0)
    x = chance.normal(size=(512, 12)).astype(np.float32)
    np.savez(path, x=x, y=2 * (x[:, 0] > 0) + (x[:, 1] > 0))
    return open_samples(path)


def live_directions(network: Network, layer: str) -> int:
    values = torch.linalg.svdvals(operator_of(network.layer(layer)).weight.flatten(1))
    return int((values > 0.01 * values[0]).sum())


def test_more_factors_leave_fewer_directions_and_truncation_is_then_free(tmp_path: Path) -> None:
    """4.6: the mechanism, with the N = 1 control under the same weight decay."""
    samples = low_rank_task(tmp_path / "task.npz")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4))
    base = from_program(export_program(model.eval(), (torch.randn(2, 12),)))
    recipe = Policy(200, 128, 0.05, weight_decay=1e-2, plateau=Plateau(40), seed=42)
    trained = {n: merged(train(factorized(base, n), samples, recipe)) for n in (1, 3)}
    live = {n: live_directions(network, "2") for n, network in trained.items()}
    assert live[3] < 0.5 * live[1]
    x, y = next(samples.batches(512))
    cut = replay(trained[3], [truncate("2", live[3])])
    right = [(network(x).argmax(1) == y).float().mean().item() for network in (trained[1], trained[3], cut)]
    assert min(right[:2]) > 0.98 and right[2] == pytest.approx(right[1], abs=0.01)


def test_training_moves_norms_and_every_factor_and_keeps_the_original(base, samples) -> None:
    before, losses = base.fingerprint(), []
    chains = factorized(base, 2)
    trained = train(chains, samples, replace(SHORT, epochs=4), progress=lambda step, loss: losses.append(loss))
    assert len(losses) == 16 and base.fingerprint() == before and not trained.graph.training
    changed = {k: not torch.equal(v, chains.graph.state_dict()[k]) for k, v in trained.graph.state_dict().items()}
    assert all(changed.values()), [k for k, moved in changed.items() if not moved]


def test_a_killed_training_resumes_to_the_same_bits(base, samples, tmp_path: Path, monkeypatch) -> None:
    """In the middle of an epoch, with the count of right answers that the plateau rule needs."""
    chains = factorized(base, 2)
    recipe = replace(SHORT, augment=True, plateau=Plateau(0), rate=0.05)
    whole = train(chains, samples, recipe)
    monkeypatch.setattr(descent, "CHECKPOINT_SECONDS", 0.0)

    def die_at_fifteen(step: int, loss: float) -> None:
        if step == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(chains, samples, recipe, checkpoint=tmp_path / "state.pt", progress=die_at_fifteen)
    assert torch.load(tmp_path / "state.pt")["step"] == 14
    resumed = train(chains, samples, recipe, checkpoint=tmp_path / "state.pt")
    assert resumed.fingerprint() == whole.fingerprint()
    assert train(chains, samples, replace(recipe, augment=False)).fingerprint() != whole.fingerprint()


def test_training_ends_when_the_rate_has_become_nothing(base, samples) -> None:
    """A constant network never gets better: the rate falls by ten an epoch."""
    steps = []
    recipe = replace(SHORT, epochs=50, batch=32, rate=1e-5, plateau=Plateau(0, least_rate=1e-7))
    train(base, samples, recipe, progress=lambda step, loss: steps.append(step))
    assert 2 * 3 <= steps[-1] < 50 * 2
    assert train(base, samples, replace(SHORT, epochs=0)).fingerprint() == base.fingerprint()


def test_augmented_images_are_flipped_crops() -> None:
    x = torch.rand(40, 3, 9, 10) + 1  # no zeros but the border's
    found = augmented(x, torch.Generator().manual_seed(3))
    assert found.shape == x.shape
    padded = nn.functional.pad(x, (4,) * 4)
    flips, moves = set(), set()
    for i in range(40):
        matches = [
            (flip, top, left)
            for flip, image in ((False, padded[i]), (True, padded[i].flip(2)))
            for top in range(9)
            for left in range(9)
            if torch.equal(found[i], image[:, top : top + 9, left : left + 10])
        ]
        assert len(matches) == 1
        flips.add(matches[0][0])
        moves.add(matches[0][1:])
    assert flips == {False, True} and len(moves) > 20
    assert torch.equal(found, augmented(x, torch.Generator().manual_seed(3)))


def test_of_photographs_a_part_is_shown_in_the_size_of_the_whole() -> None:
    height, width = 64, 96
    place = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")).float()
    found = augmented(place.expand(60, 2, height, width), torch.Generator().manual_seed(3))
    assert found.shape == (60, 2, height, width) and found.min() >= 0
    assert torch.equal(found, augmented(place.expand(60, 2, height, width), torch.Generator().manual_seed(3)))
    rows, columns = found[:, 0, :, 0], found[:, 1, 0, :]
    assert torch.allclose(found[:, 0], rows[:, :, None].expand(-1, -1, width), atol=1e-3)  # axes stay axes
    down, across = (rows[:, -1] - rows[:, 0]) / (height - 1), (columns[:, -1] - columns[:, 0]) / (width - 1)
    assert {bool(each < 0) for each in across} == {False, True} and (down > 0).all()
    area, ratio = down * across.abs(), across.abs() / down
    assert 0.3 < area.min() < 0.5 and 0.8 < area.max() <= 1 + 1e-4
    assert 0.74 < ratio.min() < 0.9 and 1.1 < ratio.max() < 1.34
    assert len({round(each.item()) for each in rows[:, 0]}) > 10


def test_the_published_recipe_is_a_preset() -> None:
    recipe = PRESETS["lorita-cifar10"]
    assert (recipe.rate, recipe.momentum, recipe.batch, recipe.weight_decay) == (0.01, 0.9, 128, 1e-3)
    assert (recipe.label_smoothing, recipe.plateau, recipe.epochs) == (0.1, Plateau(15, 0.1, 1e-6), 300)
    assert recipe.augment and recipe.seed == 42


def test_data_that_cannot_be_trained_on_is_refused(base, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((8, 3, 12, 12), np.float32))
    with pytest.raises(UsageError) as caught:
        train(base, open_samples(tmp_path / "x.npz"), SHORT)
    assert caught.value.code == "DATA_UNLABELLED"
    with pytest.raises(UsageError) as caught:
        train(base, low_rank_task(tmp_path / "task.npz"), replace(SHORT, augment=True))
    assert caught.value.code == "DATA_SHAPE"
