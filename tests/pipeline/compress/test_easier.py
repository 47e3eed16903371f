"""EASIER: ranking, removal that is exact on the data, shared modules, rounds that stop as they should, its policies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ingested import network_of
from networks.small import small
from torch import Tensor, fx, nn

import pipeline.compress.descent as descent
from calibration.dataset import Samples, open_samples
from calibration.statistics import collect
from pipeline.compress.descent import Policy, train
from pipeline.compress.easier import (
    POLICIES,
    Easing,
    Removal,
    Round,
    egp_budgets,
    idle_line,
    iterate,
    ranking,
    removal,
    remove_lowest,
)
from pipeline.compress.linearize import channel_dims, sites
from pipeline.compress.split import shared, split, with_own_rectifiers
from pipeline.model import edits as edit_log
from pipeline.model.edits import replay
from pipeline.model.network import ChannelAffine, Network
from targets.errors import UsageError

pytestmark = pytest.mark.usefixtures("seeded")

SHORT = Policy(epochs=2, batch=16, rate=0.01, weight_decay=1e-4, milestones=(1,))


class OneActivation(nn.Module):
    """Linear, activation, Linear: the activation's input is the first layer's output."""

    def __init__(self, act: nn.Module, bias: Tensor) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Linear(4, len(bias)), act, nn.Linear(len(bias), 3)
        self.first.bias = nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.first(x)))


class SharedPReLU(nn.Module):
    """One PReLU, with weights, at three places whose inputs have nothing in common."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.act = nn.PReLU(6)
        self.layers[1].bias = nn.Parameter(torch.full((6,), 20.0))
        self.layers[2].bias = nn.Parameter(torch.full((6,), -90.0))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:3]:
            x = self.act(layer(x))
        return self.layers[3](x)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def samples(x: Tensor, tmp_path: Path) -> Samples:
    np.savez(tmp_path / "x.npz", x=x.numpy(), y=np.arange(64) % 5)
    return open_samples(tmp_path / "x.npz")


@pytest.fixture
def base(x: Tensor) -> Network:
    return network_of(small(), x)


def test_the_ranking_has_every_rectifier_that_was_looked_at_lowest_entropy_first(base, x) -> None:
    dims = channel_dims(base)
    seen = collect(base.graph, sites(base), [x], channel_dims=dims)
    ranked = ranking(base, seen)
    assert {site for site, _ in ranked} == set(sites(base))
    assert [entropy for _, entropy in ranked] == sorted(seen[site].entropy() for site in sites(base))
    some = sites(base)[1:3]
    assert ranking(base, collect(base.graph, some, [x], channel_dims=dims)) == [row for row in ranked if row[0] in some]
    # every position a neuron: the mean over positions is not above the pooled entropy (T1.5)
    by_position = dict(ranking(base, collect(base.graph, sites(base), [x], channel_dims=dims, pool="none")))
    assert all(by_position[site] <= entropy + 1e-12 for site, entropy in ranked)


def test_the_lowest_of_those_allowed_becomes_its_best_line(base, x) -> None:
    dims = channel_dims(base)
    seen = collect(base.graph, sites(base), [x], channel_dims=dims)
    (lowest, _), *rest = ranking(base, seen)
    allowed = [site for site, _ in rest]
    gone = remove_lowest(base, [x], allowed)
    assert (gone.site, gone.entropy_bits) == rest[0] and sites(gone.network) == [
        site for site in sites(base) if site != gone.site
    ]
    line = gone.network.layer(gone.site)
    assert isinstance(line, ChannelAffine) and torch.equal(line.scale, seen[gone.site].slope.float())
    assert remove_lowest(base, [x], sites(base)).site == lowest
    assert remove_lowest(base, [x], []) is None


@torch.no_grad()
def test_t1_7_the_identity_changes_no_bit_where_every_channel_is_on() -> None:
    x = torch.rand(16, 4)
    for act in (nn.ReLU(), nn.PReLU(8), nn.LeakyReLU(0.1)):
        network = network_of(OneActivation(act, torch.full((8,), 50.0)), x)
        seen = collect(network.graph, ["act"], [x])["act"]
        assert seen.entropy() == 0 and not seen.off.any()
        edit = removal("act", network.layer("act"), seen, -1, "identity")
        assert torch.equal(edit.tensors["scale"], torch.ones(8)) and not edit.tensors["shift"].any()
        assert torch.equal(replay(network, [edit])(x), network(x))


@torch.no_grad()
@pytest.mark.parametrize("act", [nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.2), nn.PReLU(6), nn.PReLU()], ids=str)
@pytest.mark.parametrize("replacement", ["identity", "affine"])
def test_decided_channels_are_replaced_exactly(act: nn.Module, replacement: str) -> None:
    """Always on, always off and, for ReLU6, always saturated: the paper's identity alone would fail on the others."""
    x = torch.rand(32, 4) * 0.1
    network = network_of(OneActivation(act, torch.tensor([3.0, -3.0, 3.0, -9.0, 50.0, -50.0])), x)
    seen = collect(network.graph, ["act"], [x])["act"]
    assert seen.entropy() == 0
    edited = replay(network, [removal("act", network.layer("act"), seen, -1, replacement)])
    assert torch.allclose(edited(x), network(x), rtol=1e-4, atol=1e-5)
    plain = network.copy()
    plain.graph.set_submodule("act", nn.Identity())
    assert (plain(x) - network(x)).abs().max() > 0.1


def test_what_is_undecided_becomes_the_identity_in_the_papers_way_and_the_best_line_in_ours(base, x) -> None:
    site = "basic.relu"
    seen = collect(base.graph, [site], [x], channel_dims=channel_dims(base))[site]
    scale, shift = idle_line(base.layer(site), seen)
    undecided = (seen.on > 0) & (seen.off > 0)
    assert undecided.any() and (scale[undecided] == 1).all() and not shift.any()
    fitted = removal(site, base.layer(site), seen, 1, "affine").tensors["scale"]
    assert ((fitted[undecided] > 0) & (fitted[undecided] < 1)).all()


def test_t1_8_an_activation_that_works_in_place_ranks_like_one_that_does_not(x) -> None:
    def graph(inplace: bool) -> Network:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace), nn.Conv2d(4, 4, 3), nn.ReLU6(inplace))
        return Network(fx.symbolic_trace(module).eval(), (x[:2],))

    rankings = []
    for network in (graph(True), graph(False)):
        rankings.append(ranking(network, collect(network.graph, sites(network), [x])))
    assert rankings[0] == rankings[1] and all(entropy > 0 for _, entropy in rankings[0])


@torch.no_grad()
def test_t1_9_a_shared_module_has_one_score_a_call() -> None:
    x = torch.randn(40, 6)
    network = network_of(SharedPReLU(), x)
    assert shared(network) == ["act"] and sites(network) == []
    with pytest.raises(UsageError) as caught:
        collect(network.graph, ["act"], [x])
    assert caught.value.code == "SITE_SHARED"
    own = with_own_rectifiers(network)
    assert sites(own) == ["act", "act_1", "act_2"] and shared(own) == []
    assert torch.equal(own(x), network(x))
    seen = collect(own.graph, sites(own), [x])
    assert (seen["act_1"].entropy(), seen["act_2"].entropy()) == (0, 0) and seen["act"].entropy() > 0.5
    # always on, and always off with a slope below zero: both are lines already
    lines = [removal(name, own.layer(name), seen[name], -1, "identity") for name in ("act_1", "act_2")]
    assert torch.allclose(replay(own, lines)(x), network(x), rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_a_split_replays_and_avoids_names_that_are_taken(tmp_path: Path) -> None:
    x = torch.randn(4, 6)
    traced = Network(fx.symbolic_trace(SharedPReLU()).eval(), (x[:2],))
    traced.graph.add_submodule("act_1", nn.Linear(6, 6))
    edit = split(traced, "act")
    assert edit.arguments["names"] == ["act", "act_2", "act_3"]
    edited = replay(traced, [edit])
    edit_log.save(edited.edits, tmp_path)
    assert replay(traced, edit_log.load(tmp_path)).fingerprint() == edited.fingerprint()
    edited.layer("act_2").weight.fill_(0.9)
    assert (edited.layer("act").weight == 0.25).all()
    assert with_own_rectifiers(edited) is edited


def rounds_with(base: Network, accuracies: Sequence[float], drop: float) -> tuple[list[Round], list[int]]:
    """`iterate`, with identities in the order of execution, and the accuracies that it is told; and when it trained."""
    trained: list[int] = []

    def remove(network: Network) -> Removal | None:
        left = network.copy()
        for site in sites(left)[:1]:
            left.graph.set_submodule(site, ChannelAffine(torch.ones(1), torch.zeros(1), -1))
            return Removal(site, 0.25, left)
        return None

    def retrained(network: Network, number: int) -> tuple[Network, float]:
        trained.append(number)
        return network, accuracies[number]

    return list(iterate(base, remove, Easing(retrained, drop))), trained


def test_rounds_stop_when_more_than_the_tolerated_drop_is_lost(base) -> None:
    order = sites(base)
    rounds, trained = rounds_with(base, [90.0, 91.0, 89.5, 88.9, 90.0], 1.0)
    assert [r.tolerated for r in rounds] == [True, True, True, False] and trained == [0, 1, 2, 3]
    assert [[gone.site for gone in r.removed] for r in rounds] == [order[:count] for count in range(4)]
    assert [len(sites(r.network)) for r in rounds] == [len(order) - n for n in range(4)]
    assert [r.drop for r in rounds] == pytest.approx([0.0, -1.0, 0.5, 1.1])
    assert [gone.accuracy for gone in rounds[-1].removed] == [91.0, 89.5, 88.9]


def test_a_drop_of_exactly_what_is_tolerated_is_tolerated(base) -> None:
    rounds, _ = rounds_with(base, [100 * 0.9, 100 * 0.6, 100 * 0.3], 30.0)
    assert [r.tolerated for r in rounds] == [True, True, False]


def test_without_a_limit_everything_is_removed(base) -> None:
    rounds, trained = rounds_with(base, [0.0] * 99, math.inf)
    assert [gone.site for gone in rounds[-1].removed] == sites(base) and trained == list(range(len(sites(base)) + 1))
    assert sites(rounds[-1].network) == []


def test_training_by_a_policy_learns_the_labels_with_batch_statistics(base, samples, x) -> None:
    losses: list[float] = []
    policy = Policy(epochs=12, batch=32, rate=0.05, weight_decay=1e-4, milestones=(10,))
    before = base.fingerprint()
    trained = train(base, samples, policy, progress=lambda step, loss: losses.append(loss))
    assert len(losses) == 24 and losses[-1] < 0.7 * losses[0]
    assert not trained.graph.training and base.fingerprint() == before
    norm = "fused.norm"
    assert not torch.equal(trained.layer(norm).running_mean, base.layer(norm).running_mean)


@pytest.mark.parametrize("augment", [False, True])
def test_training_that_was_killed_resumes_to_the_same_bits(
    augment: bool, base, samples, tmp_path: Path, monkeypatch
) -> None:
    policy = replace(SHORT, augment=augment)
    whole = train(base, samples, policy)
    assert train(base, samples, replace(policy, augment=not augment)).fingerprint() != whole.fingerprint()
    monkeypatch.setattr(descent, "CHECKPOINT_SECONDS", 0.0)

    def die(step: int, loss: float) -> None:
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(base, samples, policy, checkpoint=tmp_path / "state.pt", progress=die)
    assert torch.load(tmp_path / "state.pt")["step"] == 5
    assert train(base, samples, policy, checkpoint=tmp_path / "state.pt").fingerprint() == whole.fingerprint()


def test_training_by_a_policy_needs_labels(base, x, tmp_path: Path) -> None:
    np.savez(tmp_path / "bare.npz", x=x.numpy())
    with pytest.raises(UsageError) as caught:
        train(base, open_samples(tmp_path / "bare.npz"), SHORT)
    assert caught.value.code == "DATA_UNLABELLED"


def test_policies_drop_the_rate_at_their_milestones(samples) -> None:
    policy = POLICIES["cifar-resnet18"]  # 64 samples: a step an epoch
    rates = [policy.rate_at(epoch, samples) for epoch in (0, 79, 80, 119, 120, 159)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001]) and policy.steps(samples) == 160
    assert POLICIES["transfer"].rate_at(199, samples) == 1e-4 and POLICIES["transfer"].steps(samples) == 200
    assert Policy(epochs=0.5, batch=16, rate=1.0).steps(samples) == 2


@pytest.mark.parametrize(
    ("entropies", "magnitudes", "remaining", "expected"),
    [
        # I = 1, 1/2: softmax(1.5, 3) = .1824, .8176 of 100
        ([1.0, 0.5], [1.0, 1.0], [100, 100], [18, 81]),
        # the second gives its ten, the other 45 come from the first
        ([1.0, 0.5], [1.0, 1.0], [100, 10], [45, 10]),
        # a layer without entropy neither gives nor counts
        ([1.0, 0.0, 1.0], [0.3, 9.0, 0.3], [10, 1000, 10], [5, 0, 5]),
        # I = .9, .1, .001: the ratio of the last is a thousand, so all of 150 is asked of it, then 49.99 of the second
        ([0.9, 0.1, 0.001], [1.0, 1.0, 1.0], [100, 100, 100], [0, 49, 100]),
        ([0.0, 0.0], [1.0, 1.0], [5, 5], [0, 0]),
    ],
)
def test_t1_10_egp_budgets(entropies, magnitudes, remaining, expected) -> None:
    assert egp_budgets(entropies, magnitudes, remaining, 0.5) == expected


def test_a_policy_over_other_epochs_takes_its_milestones_along(samples) -> None:
    published = POLICIES["cifar-resnet18"]
    short = published.lasting(16)
    assert short.milestones == (8, 12) and short == replace(published, epochs=16, milestones=(8, 12))
    a_pass = short.steps_of_a_pass(samples)
    assert [short.rate_at(epoch * a_pass, samples) for epoch in (7, 8, 12)] == pytest.approx([0.1, 0.01, 0.001])
    assert replace(published, milestones=None).lasting(3).milestones is None
