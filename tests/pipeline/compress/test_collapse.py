"""LayerCollapse: which pairs there are, what collapsing keeps and drops, and how melting drives the slopes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ingested import network_of
from torch import Tensor, nn

import pipeline.compress.descent as descent
from calibration.dataset import Samples, open_samples
from pipeline.compress.collapse import (
    Blend,
    collapse,
    collapse_edits,
    pairs,
    residual,
    slope_gap,
    slope_of,
    soften,
)
from pipeline.compress.descent import Policy
from pipeline.compress.distance import distance
from pipeline.compress.melt import PRESETS, Melting, melt, penalty, pull
from pipeline.model import edits as edit_log
from pipeline.model.edits import replay
from pipeline.model.ingest import from_program
from pipeline.model.network import Network
from targets.errors import UsageError

pytestmark = pytest.mark.usefixtures("seeded")


class Mlp(nn.Sequential):
    """fc1, act, norm?, fc2 of the given widths; the norm has statistics as training leaves them."""

    def __init__(self, widths: tuple[int, int, int], act: nn.Module, norm: str = "") -> None:
        inputs, hidden, outputs = widths
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        if norm == "before":
            self.norm = random_norm(hidden)
        self.act = act
        if norm == "behind":
            self.norm = random_norm(hidden)
        self.fc2 = nn.Linear(hidden, outputs)


def random_norm(channels: int) -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(channels)
    for tensor, (low, high) in (
        (norm.weight, (0.5, 1.5)),
        (norm.bias, (-0.5, 0.5)),
        (norm.running_mean, (-0.5, 0.5)),
        (norm.running_var, (0.5, 2.0)),
    ):
        nn.init.uniform_(tensor, low, high)
    return norm.eval()


class Block(nn.Module):
    """A pre-norm transformer block without its attention, on tokens [N, T, C]."""

    def __init__(self, width: int, act: nn.Module) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(width), Mlp((width, 4 * width, width), act)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


class Mixer(nn.Module):
    """An MLP across tokens, one across channels."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.tokens, self.channels = (
            Mlp((tokens, 2 * tokens, tokens), nn.GELU()),
            Mlp((width, 3 * width, width), nn.GELU()),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(x.transpose(1, 2)).transpose(1, 2)
        return x + self.channels(x)


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, then an MLP written as 1x1 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.expand, self.act, self.project = nn.Conv2d(width, 4 * width, 1), nn.GELU(), nn.Conv2d(4 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(self.act(self.expand(self.spatial(x))))


class Classifier(nn.Module):
    """Three MLP blocks and a head, [N, 5, 8] -> [N, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(8, nn.ReLU()), Block(8, nn.GELU()), Block(8, nn.GELU()))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean(1))


@pytest.fixture
def classifier() -> Network:
    return network_of(Classifier(), torch.randn(2, 5, 8))


@pytest.fixture
def samples(tmp_path: Path) -> Samples:
    x = torch.randn(96, 5, 8, generator=torch.Generator().manual_seed(1))
    np.savez(tmp_path / "x.npz", x=x.numpy(), y=(x.mean((1, 2)) > 0).long().numpy())
    return open_samples(tmp_path / "x.npz")


NORMS = ["", "before", "behind"]


@torch.no_grad()
@pytest.mark.parametrize("norm", NORMS)
def test_t3_1_at_slope_one_collapsing_is_exact(norm: str) -> None:
    x = torch.randn(64, 12)
    network = network_of(Mlp((12, 48, 12), nn.PReLU(init=1.0), norm), x)
    collapsed = collapse(network)
    assert list(collapsed.layers()) == ["fc1"]
    assert (collapsed(x) - network(x)).abs().max() <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("norm", NORMS)
def test_t3_2_otherwise_it_drops_the_papers_residual(norm: str) -> None:
    """W2 D (s - 1) min(0, z), written out with the module's own tensors."""
    x, slope = torch.randn(64, 12), 0.97
    network = network_of(Mlp((12, 48, 12), nn.PReLU(init=slope), norm), x)
    (pair,) = pairs(network)
    z = network.layer("fc1")(x)
    scale = torch.ones(48)
    if norm == "before":
        z = network.layer("norm")(z)
    elif norm == "behind":
        layer = network.layer("norm")
        scale = layer.weight / (layer.running_var + layer.eps).sqrt()
    expected = ((slope - 1) * z.clamp(max=0) * scale) @ network.layer("fc2").weight.T
    difference = network(x) - collapse(network)(x)
    assert difference.abs().max() > 1e-3
    assert (difference - expected).abs().max() <= 1e-5
    assert (residual(network, pair, x) - expected).abs().max() <= 1e-6
    bound = (
        abs(1 - slope) * torch.linalg.matrix_norm(network.layer("fc2").weight * scale, 2) * z.clamp(max=0).norm(dim=1)
    )
    assert (expected.norm(dim=1) <= bound * (1 + 1e-6)).all()


@torch.no_grad()
@settings(max_examples=25, deadline=None)
@given(
    widths=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    act=st.sampled_from([nn.ReLU(), nn.GELU(), nn.SiLU(), nn.Hardswish(), nn.ReLU6(), nn.LeakyReLU(0.3)]),
    slope=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_the_residual_is_what_any_softened_pair_loses(widths, act, slope, seed) -> None:
    torch.manual_seed(seed)
    x = torch.randn(2, 7, widths[0])
    network = replay(network_of(Mlp(widths, act), x), [soften("act", slope=slope)])
    (pair,) = pairs(network)
    lost = (network(x) - replay(network, collapse_edits(pair))(x)).double()
    assert (lost - residual(network, pair, x)).abs().max() <= 1e-5


@torch.no_grad()
def test_pairs_of_pointwise_convolutions_collapse_too() -> None:
    x = torch.randn(2, 4, 9, 9)
    network = network_of(ConvNeXtBlock(4), x)
    softened = replay(network, [soften("act", slope=0.9)])
    (pair,) = pairs(softened)
    assert (pair.layers, pair.channel_dim) == (("expand", "act", "project"), 1)
    collapsed = replay(softened, collapse_edits(pair))
    assert (collapsed.layer("expand").in_channels, collapsed.layer("expand").out_channels) == (4, 4)
    inside = network.layer("spatial")(x)
    lost = (softened(x) - collapsed(x)).movedim(1, -1)
    assert (residual(softened, pair, inside) - lost).abs().max() <= 1e-5


def test_t3_3_tolerance_and_penalty() -> None:
    x = torch.randn(4, 12)

    def with_slope(slope: float) -> Network:
        return network_of(Mlp((12, 48, 12), nn.PReLU(init=slope)), x)

    refused = with_slope(0.9)
    assert collapse(refused, tolerance=0.05) is refused
    assert slope_gap(refused, pairs(refused)[0]) == pytest.approx(0.1)
    assert len(collapse(with_slope(1.04), tolerance=0.05).layers()) == 1
    assert penalty([torch.tensor([0.9])]).item() == pytest.approx(0.01)
    assert penalty([torch.tensor([0.01])]).item() == pytest.approx(0.9801)
    assert penalty([torch.tensor([0.9]), torch.tensor([0.0, 1.0])]).item() == pytest.approx(0.51)


@pytest.mark.parametrize(
    ("widths", "norm", "before", "after"), [((12, 48, 12), "", 1212, 156), ((10, 30, 6), "behind", 516, 66)]
)
def test_t3_4_parameters(widths, norm: str, before: int, after: int) -> None:
    network = network_of(Mlp(widths, nn.PReLU(init=1.0), norm), torch.randn(4, widths[0]))
    (pair,) = pairs(network)
    assert (pair.parameters, pair.collapsed_parameters) == (before, after)
    assert collapse(network).parameters() == after
    inputs, hidden, outputs = widths
    assert (pair.macs, pair.collapsed_macs) == (hidden * (inputs + outputs), inputs * outputs)


def test_t3_5_collapsing_twice_changes_nothing() -> None:
    network = network_of(Mlp((12, 48, 12), nn.PReLU(init=0.98)), torch.randn(4, 12))
    once = collapse(network)
    assert once is not network and collapse(once) is once


@torch.no_grad()
def test_a_pair_that_would_grow_is_kept_unless_the_costs_say_otherwise() -> None:
    x = torch.randn(4, 20)
    network = network_of(Mlp((20, 8, 20), nn.PReLU(init=1.0)), x)
    (pair,) = pairs(network)
    assert not pair.shrinks and collapse(network) is network
    forced = collapse(network, cheaper=lambda pair: pair.hidden == 8)
    assert list(forced.layers()) == ["fc1"] and torch.allclose(forced(x), network(x), atol=1e-5)
    assert collapse(network, cheaper=lambda pair: False) is network


@torch.no_grad()
def test_a_classifier_head_collapses_from_its_end() -> None:
    """Three layers in a row, the pair at the end first; what that makes is part of the pair before."""
    x = torch.randn(4, 30)
    head = nn.Sequential(
        nn.Linear(30, 40), nn.PReLU(init=1.0), nn.Linear(40, 24), nn.PReLU(init=0.99), nn.Linear(24, 5)
    )
    network = network_of(head, x)
    assert [pair.layers for pair in pairs(network)] == [("0", "1", "2"), ("2", "3", "4")]
    collapsed = collapse(network)
    assert collapsed.parameters() == 30 * 5 + 5
    assert [edit.site for edit in collapsed.edits if edit.kind == "merge"] == ["2", "0"]
    # the second activation has not melted: only the first pair goes, and only because it shrinks
    replay_of = replay(network, [soften("3")])
    replay_of.layer("3").weight.fill_(0.5)
    assert [edit.site for edit in collapse(replay_of).edits if edit.kind == "merge"] == ["0"]


def test_pairs_of_transformers_and_mixers_are_found_and_what_is_no_pair_is_not(classifier) -> None:
    assert [pair.site for pair in pairs(classifier)] == [f"blocks.{i}.mlp.act" for i in range(3)]
    mixer = network_of(Mixer(6, 8), torch.randn(2, 6, 8))
    assert [(p.inputs, p.hidden, p.outputs) for p in pairs(mixer)] == [(6, 12, 6), (8, 24, 8)]

    class TwoReaders(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = Mlp((8, 32, 8), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.mlp.act(self.mlp.fc1(x))
            return self.mlp.fc2(hidden) + hidden.mean(-1, keepdim=True)

    class NormOfTokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(8, 32), random_norm(5), nn.Linear(32, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.norm(self.first(x))))

    tokens = torch.randn(2, 5, 8)
    spatial = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 3, 3))
    strided = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 3, 1, stride=2))
    no_activation = nn.Sequential(nn.Linear(8, 32), nn.Linear(32, 8))
    other = nn.Sequential(nn.Linear(8, 32), nn.Sigmoid(), nn.Linear(32, 8))
    for module, x in (
        (TwoReaders(), tokens),
        (NormOfTokens(), tokens),
        (spatial, torch.randn(2, 3, 6, 6)),
        (strided, torch.randn(2, 3, 6, 6)),
        (no_activation, tokens),
        (other, tokens),
    ):
        assert pairs(network_of(module, x)) == []


@torch.no_grad()
@pytest.mark.parametrize("act", [nn.ReLU(), nn.LeakyReLU(0.2), nn.PReLU(48), nn.GELU(), nn.SiLU(), nn.ReLU6()], ids=str)
def test_softening_starts_from_the_same_function_and_ends_at_the_identity(act: nn.Module) -> None:
    x = torch.randn(16, 12)
    network = network_of(Mlp((12, 48, 12), act), x)
    soft = replay(network, [soften("act")])
    piecewise = isinstance(act, (nn.ReLU, nn.LeakyReLU, nn.PReLU)) and not isinstance(act, nn.ReLU6)
    assert isinstance(soft.layer("act"), nn.PReLU if piecewise else Blend)
    assert torch.equal(soft(x), network(x))
    twice = replay(network, [soften("act", slope=0.5), soften("act", slope=0.5)])
    assert torch.allclose(twice(x), replay(network, [soften("act", slope=0.75)])(x), atol=1e-6)
    melted = replay(network, [soften("act", slope=1.0)])
    assert torch.allclose(melted(x), network.layer("fc2")(network.layer("fc1")(x)), atol=1e-6)
    assert torch.allclose(slope_of(melted.layer("act")), torch.ones(1))


@torch.no_grad()
def test_the_papers_softening_replaces_any_activation_by_a_prelu() -> None:
    x = torch.randn(16, 12)
    network = network_of(Mlp((12, 48, 12), nn.GELU()), x)
    soft = replay(network, [soften("act", slope=0.01, prelu=True)])
    hidden = nn.functional.leaky_relu(network.layer("fc1")(x), 0.01)
    assert torch.allclose(soft(x), network.layer("fc2")(hidden), atol=1e-6)


@torch.no_grad()
def test_collapsed_networks_replay_from_their_edits(classifier, tmp_path: Path) -> None:
    softened = replay(classifier, [soften(pair.site, slope=0.99) for pair in pairs(classifier)])
    collapsed = collapse(softened)
    edit_log.save(collapsed.edits, tmp_path)
    assert len(collapsed.edits) == 9
    assert replay(classifier, edit_log.load(tmp_path)).fingerprint() == collapsed.fingerprint()
    exported = from_program(softened.exported())
    x = torch.randn(3, 5, 8)
    assert (exported(x) - softened(x)).abs().max() <= 1e-5


SITES = [f"blocks.{i}.mlp.act" for i in range(3)]
SHORT = Policy(epochs=8, batch=16, rate=3e-3, optimizer="adamw", milestones=None, frozen_norms=True, clip=1.0)


def test_the_staircase_reaches_the_identity_while_the_outputs_are_kept(classifier, samples) -> None:
    seen: list[float] = []
    before = classifier.fingerprint()
    with torch.no_grad():
        x = next(samples.batches(96))[0]
        reference = classifier(x)
        at_once = collapse(replay(classifier, [soften(site, slope=1.0) for site in SITES]))(x)
    settings_ = Melting(SHORT)
    melted = melt(classifier, classifier, samples, settings_, SITES, progress=lambda step, loss: seen.append(loss))
    collapsed = collapse(melted)
    assert len(seen) == 48 and classifier.fingerprint() == before
    assert all(slope_gap(melted, pair) == 0 for pair in pairs(melted))
    assert pairs(collapsed) == [] and collapsed.parameters() < classifier.parameters() / 4
    with torch.no_grad():
        assert torch.allclose(collapsed(x), melted(x), atol=1e-5)
        assert distance(reference, collapsed(x), True) < 0.3 * distance(reference, at_once, True)
    assert all(p.requires_grad for p in collapsed.graph.parameters())


def test_the_staircase_holds_each_slope_for_an_equal_share(classifier, samples) -> None:
    stairs = Melting(SHORT, stairs=(0.1, 0.3, 0.7, 1.0))
    held = [stairs.stair(step, 12) for step in range(13)]
    assert held == [0.1] * 3 + [0.3] * 3 + [0.7] * 3 + [1.0] * 4
    assert [stairs.stair(step, 2) for step in range(3)] == [0.1, 0.7, 1.0]  # however short, it ends on the last stair
    site = "blocks.2.mlp.act"
    half = Melting(replace(SHORT, epochs=1), stairs=(0.25, 0.5))
    assert slope_of(melt(classifier, classifier, samples, half, [site]).layer(site)).item() == 0.5
    untrained = melt(classifier, classifier, samples, replace(half, policy=replace(SHORT, epochs=0)), [site])
    assert slope_of(untrained.layer(site)).item() == 0.25


@pytest.mark.parametrize("drive", ["penalty", "decoupled"])
def test_slopes_that_train_are_driven_to_one(drive: str, classifier, samples) -> None:
    policy = replace(SHORT, optimizer="sgd", rate=0.05, weight_decay=0.1, milestones=())
    driven = Melting(policy, drive, strength=2.0 if drive == "penalty" else 1.0)
    melted = melt(classifier, None, samples, driven, SITES)
    assert all(slope_gap(melted, pair) < 0.05 for pair in pairs(melted))
    idle = melt(classifier, None, samples, replace(driven, strength=0.0), SITES)
    assert all(slope_gap(idle, pair) > 0.5 for pair in pairs(idle))


def test_weight_decay_leaves_the_slopes_alone(classifier, samples) -> None:
    """With no drive and a teacher that is matched already, decay is all that moves anything."""
    policy = Policy(epochs=1, batch=16, rate=0.01, weight_decay=1.0)
    site = "blocks.2.mlp.act"
    half = replay(classifier, [soften(site, slope=0.5)])
    with torch.no_grad():
        half.layer("head").weight.zero_()  # what the block gives reaches no output: the slope has no gradient
    still = Melting(policy, "penalty", strength=0.0)
    melted = melt(half, half, samples, still, [site])
    assert isinstance(melted.layer(site).phi, nn.GELU)
    assert slope_of(melted.layer(site)).item() == pytest.approx(0.5, abs=1e-6)
    assert melted.layer("blocks.2.mlp.fc1").weight.norm() < 0.95 * half.layer("blocks.2.mlp.fc1").weight.norm()


def test_contraction_of_the_decoupled_rule() -> None:
    """At rate 1e-4 and strength 10 the distance shrinks by 0.998 a step: from 0.01 to within 0.05 in 1492 steps."""
    slope, steps = torch.tensor([0.01], dtype=torch.float64), 0
    while abs(slope.item() - 1) >= 0.05:
        pull(slope, 1e-4, 10.0)
        steps += 1
    assert steps == math.ceil(math.log(0.05 / 0.99) / math.log(0.998)) == 1492


@pytest.mark.parametrize("drive", ["penalty", "decoupled", "staircase"])
def test_a_killed_melting_resumes_to_the_same_bits(drive, classifier, samples, tmp_path: Path, monkeypatch) -> None:
    settings_ = Melting(replace(SHORT, epochs=2), drive)
    whole = melt(classifier, classifier, samples, settings_, SITES)
    monkeypatch.setattr(descent, "CHECKPOINT_SECONDS", 0.0)

    def die(step: int, loss: float) -> None:
        if step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        melt(classifier, classifier, samples, settings_, SITES, checkpoint=tmp_path / "state.pt", progress=die)
    assert torch.load(tmp_path / "state.pt")["step"] == 7
    resumed = melt(classifier, classifier, samples, settings_, SITES, checkpoint=tmp_path / "state.pt")
    assert resumed.fingerprint() == whole.fingerprint()
    other = replace(settings_, policy=replace(settings_.policy, seed=1))
    assert melt(classifier, classifier, samples, other, SITES).fingerprint() != whole.fingerprint()


def test_melting_needs_a_teacher_or_labels_and_something_to_melt(classifier, tmp_path: Path) -> None:
    np.savez(tmp_path / "bare.npz", x=np.zeros((4, 5, 8), np.float32))
    bare = open_samples(tmp_path / "bare.npz")
    with pytest.raises(UsageError) as caught:
        melt(classifier, None, bare, Melting(SHORT), SITES)
    assert caught.value.code == "DATA_UNLABELLED"
    assert melt(classifier, classifier, bare, Melting(SHORT), []) is classifier


def test_published_settings(samples) -> None:
    vision = PRESETS["vision"]
    assert (vision.strength, vision.initial, vision.prelu) == (0.2, 0.01, True)
    rates = [vision.policy.rate_at(epoch, samples) for epoch in (0, 75, 150, 250, 350)]  # a step an epoch
    assert rates == pytest.approx([0.005 * 0.3**i for i in range(5)])
    assert (PRESETS["language"].drive, PRESETS["language"].strength) == ("decoupled", 10.0)
    assert PRESETS["early"].stairs == (0.1, 0.3, 0.7, 1.0)
