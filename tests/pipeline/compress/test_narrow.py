"""Narrowing: idle channels go for nothing, the order is that of brute force, edits replay, plans and prices agree."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from ingested import network_of
from networks.mobilenet import InvertedResidual
from networks.resnet import BasicBlock
from torch import Tensor, nn

from calibration.regression import RegressionMoments
from pipeline.compress.analysis import analyse, run
from pipeline.compress.narrow import Narrower, Stretch, narrow, stretches
from pipeline.compress.narrowing import narrow_options, shape_of
from pipeline.compress.observation import moments_between
from pipeline.compress.realising import realise
from pipeline.compress.taps import Taps
from pipeline.model.edits import load, replay, save
from pipeline.model.network import Network
from pipeline.model.operators import milliseconds, node_shapes
from targets.cost import CostTable
from targets.profile import load_profile


class Mlp(nn.Module):
    """[N, 3, 12, 12] to [N, 5]: blocks of convolutions, then tokens through an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.mobile, self.basic = InvertedResidual(16, 16, 1, 4), BasicBlock(16, 16, 1)
        self.fc1, self.fc2, self.head = nn.Linear(16, 64), nn.Linear(64, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.basic(self.mobile(F.relu(self.stem(x))))
        tokens = x.flatten(2).transpose(1, 2)
        return self.head((tokens + self.fc2(F.gelu(self.fc1(tokens)))).mean(1))


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(96, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def base(x: Tensor) -> Network:
    return network_of(Mlp(), x)


@pytest.fixture(scope="module")
def costs() -> CostTable:
    return CostTable.load(load_profile("pixel-4-cpu"), "tflite")


def narrower_of(network: Network, stretch: Stretch, x: Tensor) -> Narrower:
    seen: dict[str, Tensor] = {}
    Taps(network, {stretch.source, stretch.end}, lambda name, value: seen.update({name: value.clone()})).show(x)
    kernel = 1 if stretch.tokens else network.layer(stretch.last).kernel_size[0]
    moments = RegressionMoments(kernel, 1, tokens=stretch.tokens)
    moments.add(seen[stretch.source], seen[stretch.end])
    return Narrower(moments.regression, stretch.channels)


def test_stretches_are_two_layers_and_what_treats_channels_apart(base: Network) -> None:
    found = {(one.first, one.last): one for one in stretches(base)}
    assert {(first, last) for first, last in found} == {
        ("mobile.conv.0.0", "mobile.conv.2"),
        ("basic.conv1", "basic.conv2"),
        ("fc1", "fc2"),
    }
    assert "mobile.conv.1.0" in found["mobile.conv.0.0", "mobile.conv.2"].inner
    assert [found["fc1", "fc2"].tokens, found["basic.conv1", "basic.conv2"].channels] == [True, 16]


def test_nothing_is_lost_with_all_channels_or_with_copies_and_idle_ones_gone(base: Network, x: Tensor) -> None:
    network = base.copy()
    fc1 = network.layer("fc1")
    with torch.no_grad():
        fc1.weight[:16], fc1.bias[:16] = fc1.weight[16:32], fc1.bias[16:32]  # copies
        fc1.weight[40:48], fc1.bias[40:48] = 0.0, -100.0  # never on
    stretch = next(one for one in stretches(network) if one.first == "fc1")
    narrower = narrower_of(network, stretch, x)
    kept, _, _ = narrower.fit(40)
    assert not {*range(40, 48)} & {*kept.tolist()}
    assert all((channel in kept) != (channel + 16 in kept) for channel in range(16))
    for width in (64, 40):
        edited = replay(network, [narrow(stretch, *narrower.fit(width))])
        assert edited.layer("fc1").out_features == edited.layer("fc2").in_features == width
        assert (run(edited, [x]) - run(network, [x])).abs().max() < 1e-3
    assert (run(replay(network, [narrow(stretch, *narrower.fit(8))]), [x]) - run(network, [x])).abs().max() > 1e-3


@pytest.mark.parametrize("first", ["mobile.conv.0.0", "basic.conv1", "fc1"])
def test_the_residual_is_what_the_layer_misses(base: Network, x: Tensor, first: str) -> None:
    stretch = next(one for one in stretches(base) if one.first == first)
    narrower = narrower_of(base, stretch, x)
    residuals = [narrower.residual(width) for width in range(1, stretch.channels + 1)]
    assert residuals == sorted(residuals, reverse=True) and residuals[-1] < 1e-6 * residuals[0]
    width = stretch.channels // 2
    edited = replay(base, [narrow(stretch, *narrower.fit(width))])
    values = []
    for network in (base, edited):
        Taps(network, {stretch.end}, lambda name, value: values.append(value.double())).show(x)
    channels = -1 if stretch.tokens else 1
    missed = (values[0] - values[1]).square().movedim(channels, 0).flatten(1).mean(1).sum().item()
    assert missed == pytest.approx(narrower.residual(width), rel=2e-3)


def test_the_first_to_go_is_the_one_that_brute_force_finds() -> None:
    generator = torch.Generator().manual_seed(3)
    source = torch.randn(200, 6, generator=generator) @ torch.randn(6, 6, generator=generator)
    moments = RegressionMoments(1, 1, tokens=True)
    moments.add(source, source @ torch.randn(6, 4, generator=generator))
    narrower = Narrower(moments.regression, 6)

    def left(channels: tuple[int, ...]) -> float:
        target = moments.regression
        gram, cross = target.gram[list(channels)][:, list(channels)], target.cross[list(channels)]
        return target.energy - (cross * torch.linalg.solve(gram, cross)).sum().item()

    best = min(combinations(range(6), 5), key=left)
    assert narrower.fit(5)[0].tolist() == list(best)
    assert narrower.residual(5) == pytest.approx(left(best), rel=1e-3)


def test_edits_replay_from_disk(base: Network, x: Tensor, tmp_path) -> None:
    stretch = next(one for one in stretches(base) if one.first == "mobile.conv.0.0")
    edits = [narrow(stretch, *narrower_of(base, stretch, x).fit(24))]
    save(edits, tmp_path)
    assert torch.equal(run(replay(base, load(tmp_path)), [x]), run(replay(base, edits), [x]))


def test_narrowings_save_what_they_say(base: Network, x: Tensor, costs: CostTable) -> None:
    base_ms = sum(milliseconds(base, costs).values())
    found = narrow_options(base, [x], lambda edited, place: 1.0, costs, base_ms, [], lambda text: None)
    assert {option.site for option in found} >= {"mobile.conv.0.0", "fc1"}
    for option in found:
        saved = base_ms - sum(milliseconds(replay(base, option.edits), costs).values())
        assert saved == pytest.approx(option.saving_ms, abs=1e-6 * base_ms), option.summary


def test_a_plans_narrowings_are_fitted_behind_each_other(base: Network, x: Tensor, costs: CostTable) -> None:
    found = analyse(base, {}, [x], costs, classes=True, kinds=("narrow",)).options
    sites = dict.fromkeys(option.site for option in found)
    chosen = [min((o for o in found if o.site == site), key=lambda o: o.width) for site in sites]
    assert len(chosen) > 1
    *before, last = chosen
    shape = shape_of(last.stretch, base, node_shapes(base))
    fed = moments_between(realise(base, before, [x]), last.stretch.source, base, last.stretch.end, shape, [x])
    values = []
    for network in (base, realise(base, chosen, [x])):
        Taps(network, {last.stretch.end}, lambda name, value: values.append(value.double())).show(x)
    missed = (values[0] - values[1]).square().sum(-1).mean().item()
    assert missed == pytest.approx(Narrower(fed, last.stretch.channels).residual(last.width), rel=2e-3)
    apart = replay(base, [edit for option in chosen for edit in option.edits])
    assert not torch.equal(apart.layer("fc2").weight, realise(base, chosen, [x]).layer("fc2").weight)
