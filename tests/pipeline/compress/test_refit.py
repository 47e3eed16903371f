"""Refitting: what is linear is recovered, residuals are what the data shows, edits replay and follow one another."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks.small import randomise_norms, small
from torch import Tensor, nn

import pipeline.compress.refit as refit_module
from calibration.regression import RegressionMoments, RegressionRows
from calibration.statistics import collect
from pipeline.compress.algebra import LinearOperator
from pipeline.compress.analysis import analyse, divergence, run
from pipeline.compress.linearize import channel_dims, sites
from pipeline.compress.options import Option
from pipeline.compress.realising import realise
from pipeline.compress.refit import Fit, Fitter, Form, Shape, forms, operators, refit, shape_of
from pipeline.compress.refitting import refit_options
from pipeline.compress.regions import Region, regions
from pipeline.compress.taps import Taps
from pipeline.compress.through import Cut, fit_through
from pipeline.model.edits import load, replay, save
from pipeline.model.ingest import export_program, from_program
from pipeline.model.network import Network
from pipeline.model.operators import milliseconds, node_shapes
from targets.cost import CostTable
from targets.profile import load_profile


def network_of(module: nn.Module, x: Tensor) -> Network:
    """The module with weights and norms drawn anew, the same ones for the same layers."""
    torch.manual_seed(0)
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    return from_program(export_program(randomise_norms(module), (x[:2],)))


def region_of(network: Network, *layers: str) -> Region:
    return next(region for region in regions(network) if region.layers == layers)


def values(network: Network, x: Tensor, *names: str) -> list[Tensor]:
    seen: dict[str, Tensor] = {}
    Taps(network, set(names), lambda name, value: seen.update({name: value.clone()})).show(x)
    return [seen[name] for name in names]


def fitter_of(network: Network, region: Region, x: Tensor) -> Fitter:
    shape = shape_of(region, node_shapes(network))
    moments = RegressionMoments(shape.kernel, shape.stride, tokens=shape.tokens)
    moments.add(*values(network, x, region.source, region.end))
    return Fitter(moments.regression, shape)


def edited(network: Network, region: Region, fit: Fit, form: Form) -> Network:
    return replay(network, [refit(region, fit.layers, skip=form.skip)])


def through(layers: tuple[LinearOperator, ...], x: Tensor, *, skip: bool = False) -> Tensor:
    """What a form gives, in float64."""
    y = x.double()
    for layer in layers:
        if layer.tokens:
            y = F.linear(y, layer.weight[:, :, 0, 0], layer.bias)
        else:
            y = F.conv2d(y, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    return y + x.double() if skip else y


def squared_error(one: Tensor, other: Tensor) -> float:
    """Mean over observations, all channels together."""
    channel = 1 if one.ndim == 4 else -1
    return (one.double() - other.double()).square().sum(channel).mean().item()


def energy(value: Tensor) -> float:
    return squared_error(value, torch.zeros_like(value))


class Chain(nn.Module):
    """A stretch under test between two layers and rectifiers."""

    def __init__(self, stretch: nn.Module, channels: int, outputs: int | None = None) -> None:
        super().__init__()
        self.stem, self.stretch = nn.Conv2d(3, channels, 3, padding=1), stretch
        self.head = nn.Conv2d(outputs or channels, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.stretch(F.relu(self.stem(x)))))


class Skip(nn.Module):
    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class InPlace(nn.Module):
    """The sum writes over the branch, or over the input."""

    def __init__(self, branch: nn.Module, *, over_input: bool) -> None:
        super().__init__()
        self.branch, self.over_input = branch, over_input

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        if self.over_input:
            x += y
            return x
        y += x
        return y


def conv(inputs: int, outputs: int, kernel: int, padding: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(outputs)
    )


# What is linear, the kernel that holds it, and its input's side: the inner layers pad nothing, so borders agree too.
LINEAR = {
    "3x3 then 1x1": (lambda: nn.Sequential(conv(6, 9, 3, 1), conv(9, 7, 1, 0)), 3, 9),
    "3x3 then 3x3": (lambda: nn.Sequential(conv(6, 8, 3, 2), conv(8, 7, 3, 0)), 5, 9),
    "5x5 at stride 2": (lambda: nn.Sequential(conv(6, 8, 5, 2, 2), conv(8, 7, 1, 0)), 5, 8),
    "5x5 at stride 2, odd": (lambda: nn.Sequential(conv(6, 8, 5, 2, 2), conv(8, 7, 1, 0)), 5, 11),
    "with a skip": (lambda: Skip(nn.Sequential(conv(6, 9, 3, 1), conv(9, 6, 1, 0))), 3, 9),
    "two skips": (lambda: nn.Sequential(Skip(conv(6, 6, 1, 0)), Skip(conv(6, 6, 1, 0))), 1, 6),
    "two paths": (lambda: Paths(), 3, 9),
}


class Paths(nn.Module):
    """Two branches of one input that are summed."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = conv(6, 7, 3, 1), conv(6, 7, 1, 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) + self.right(x)


def largest(network: Network, prefix: str) -> Region:
    """The region of all the layers whose names begin so."""
    return max(
        (region for region in regions(network) if all(name.startswith(prefix) for name in region.layers)),
        key=lambda region: len(region.layers),
    )


@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_region_is_recovered_borders_and_all(name) -> None:
    build, kernel, side = LINEAR[name]
    x = torch.randn(96, 3, side, side, generator=torch.Generator().manual_seed(1))
    network = network_of(Chain(build(), 6, 6 if "skip" in name else 7), x)
    region = largest(network, "stretch")
    fitter, form = fitter_of(network, region, x), Form("dense", kernel)
    fit = fitter.fit(form)
    (wanted,) = values(network, x, region.end)
    assert fit.residual < 1e-8 * energy(wanted)
    (given_out,) = values(edited(network, region, fit, form), x, region.end)
    assert (given_out - wanted).abs().max() < 3e-4 * wanted.abs().max()
    other = torch.randn(8, 3, side, side, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(edited(network, region, fit, form)(other), network(other), rtol=1e-3, atol=1e-3)


def test_a_depthwise_separable_stage_is_recovered() -> None:
    x = torch.randn(96, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    stage = nn.Sequential(conv(6, 6, 3, 1, 2, groups=6), conv(6, 7, 1, 0))
    network = network_of(Chain(stage, 6, 7), x)
    region, form = largest(network, "stretch"), Form("separable", 3)
    fit = fitter_of(network, region, x).fit(form)
    (wanted,) = values(network, x, region.end)
    assert [layer.groups for layer in fit.layers] == [6, 1] and fit.residual < 1e-7 * energy(wanted)
    torch.testing.assert_close(edited(network, region, fit, form)(x), network(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("over_input", [False, True])
def test_a_thin_pair_beside_a_skip_is_recovered_where_sums_work_in_place(over_input) -> None:
    """The value that goes in must be kept as it was before the sum wrote over it."""
    x = torch.randn(96, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    branch = nn.Sequential(conv(6, 3, 3, 1), conv(3, 6, 1, 0))
    network = network_of(Chain(InPlace(branch, over_input=over_input), 6), x)
    region, form = largest(network, "stretch"), Form("thin", 3, 3, skip=True)
    fit = fitter_of(network, region, x).fit(form)
    assert fit.residual < 1e-8 * energy(values(network, x, region.end)[0])
    torch.testing.assert_close(edited(network, region, fit, form)(x), network(x), rtol=1e-3, atol=1e-3)


class Bent(nn.Module):
    """What no linear layer is; keeps the shape where `outputs` and the stride allow."""

    def __init__(self, channels: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = conv(channels, 8, 3, 1, stride), conv(8, outputs, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x)))


class Mixer(nn.Module):
    """Input [N, T, C]: two layers with a GELU between them, and a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.wide, self.narrow = nn.Linear(width, width), nn.Linear(width, 9), nn.Linear(9, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.narrow(F.gelu(self.wide(x)))


def bent(kind: str) -> tuple[Network, Region, Tensor]:
    generator = torch.Generator().manual_seed(3)
    if kind == "tokens":
        x = torch.randn(40, 7, 5, generator=generator)
        network = network_of(Mixer(5), x)
        return network, region_of(network, "wide", "narrow"), x
    outputs, stride = {"kept": (4, 1), "strided": (6, 2), "sum": (4, 1)}[kind]
    stretch = Skip(Bent(4, outputs, stride)) if kind == "sum" else Bent(4, outputs, stride)
    x = torch.randn(24, 3, 7, 7, generator=generator)
    network = network_of(Chain(stretch, 4, outputs), x)
    return network, largest(network, "stretch"), x


BENT = ("kept", "strided", "sum", "tokens")


@pytest.mark.parametrize("kind", BENT)
def test_the_residual_of_every_form_is_its_error_on_the_data(kind) -> None:
    network, region, x = bent(kind)
    fitter = fitter_of(network, region, x)
    before, wanted = values(network, x, region.source, region.end)
    full = min(fitter.shape.in_channels, fitter.shape.out_channels)
    offered = list(forms(fitter.shape, list(range(1, full))))
    assert {form.kind for form in offered} == {"dense", "thin"} | ({"separable"} if kind != "tokens" else set()) | (
        {"identity"} if kind != "strided" else set()
    )
    for form in offered:
        fit = fitter.fit(form)
        given_out = through(fit.layers, before, skip=form.skip) if fit.layers else before
        assert given_out.shape == wanted.shape
        assert fit.residual == pytest.approx(squared_error(given_out, wanted), rel=1e-6)
        assert fitter.residual(form) == pytest.approx(fit.residual, rel=2e-3)  # the ridge apart
        if form.kind != "identity":
            (there,) = values(edited(network, region, fit, form), x, region.end)
            torch.testing.assert_close(there.double(), given_out, rtol=1e-4, atol=1e-5)
        for layer, blank in zip(fit.layers, operators(form, fitter.shape), strict=True):
            assert (layer.weight.shape, layer.stride, layer.padding, layer.groups) == (
                blank.weight.shape,
                blank.stride,
                blank.padding,
                blank.groups,
            )


@pytest.mark.parametrize("kind", BENT)
def test_more_freedom_leaves_less(kind) -> None:
    network, region, x = bent(kind)
    fitter = fitter_of(network, region, x)
    slack = 1 + 1e-6  # of the ridge
    for kernel in (k for k in (1, 3, 5) if k <= fitter.shape.kernel):
        dense = fitter.residual(Form("dense", kernel))
        assert dense <= fitter.residual(Form("dense", max(kernel - 2, 1))) * slack
        full = min(fitter.shape.in_channels * kernel**2, fitter.shape.out_channels)
        thin = [fitter.residual(Form("thin", kernel, rank)) for rank in range(1, full + 1)]
        assert thin == sorted(thin, reverse=True) and thin[-1] == pytest.approx(dense, rel=1e-9)
        if fitter.shape.kept:
            assert fitter.residual(Form("thin", kernel, full, skip=True)) == pytest.approx(dense, rel=1e-4)
        if kernel > 1:
            assert dense <= fitter.residual(Form("separable", kernel)) * slack


def random_fitter(seed: int, inputs: int, outputs: int, rows: int = 60) -> tuple[Fitter, Tensor, Tensor]:
    """Tokens whose features are correlated, and what they explain of a noisy output."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.eye(inputs).double() + 0.4 * torch.rand(inputs, inputs, generator=generator, dtype=torch.float64)
    x = torch.randn(rows, inputs, generator=generator, dtype=torch.float64) @ mix + 1
    y = x @ torch.randn(inputs, outputs, generator=generator, dtype=torch.float64)
    y = y + torch.randn(rows, outputs, generator=generator, dtype=torch.float64)
    moments = RegressionMoments(1, 1, tokens=True)
    moments.add(x, y)
    return Fitter(moments.regression, Shape(inputs, outputs, (1, 1), (1, 1), True, 1)), x, y


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(2, 5), st.data())
def test_no_pair_of_thin_layers_leaves_less(seed, inputs, outputs, data) -> None:
    """Reduced-rank regression in one step, beside alternating least squares from somewhere."""
    fitter, x, y = random_fitter(seed, inputs, outputs)
    rank = data.draw(st.integers(1, min(inputs, outputs)))
    fit = fitter.fit(Form("thin", 1, rank))
    assert fit.residual == pytest.approx(squared_error(through(fit.layers, x), y), rel=1e-8)
    x, y = x - x.mean(0), y - y.mean(0)
    generator = torch.Generator().manual_seed(seed + 1)
    down = torch.randn(inputs, rank, generator=generator, dtype=torch.float64)
    for _ in range(200):
        up = torch.linalg.lstsq(x @ down, y).solution
        down = torch.linalg.lstsq(x, y).solution @ torch.linalg.pinv(up)
    alternated = squared_error(x @ down @ up, y)
    assert fit.residual <= alternated * (1 + 1e-3)  # the ridge apart


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(2, 6))
def test_thin_layers_of_full_rank_are_the_dense_one(seed, inputs, outputs) -> None:
    fitter, x, _ = random_fitter(seed, inputs, outputs)
    dense, thin = fitter.fit(Form("dense")), fitter.fit(Form("thin", 1, min(inputs, outputs)))
    torch.testing.assert_close(through(thin.layers, x), through(dense.layers, x), rtol=1e-7, atol=1e-7)
    assert thin.residual == pytest.approx(dense.residual, rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5))
def test_nothing_in_the_place_leaves_the_difference(seed, channels) -> None:
    fitter, x, y = random_fitter(seed, channels, channels)
    fit = fitter.fit(Form("identity"))
    assert fit.layers == () and fit.residual == pytest.approx(squared_error(x, y), rel=1e-8)


def test_a_channel_that_never_moves_does_no_harm() -> None:
    x = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 2.0
    moments = RegressionMoments(1, 1, tokens=True)
    moments.add(x, x @ torch.ones(3, 2, dtype=torch.float64))
    fit = Fitter(moments.regression, Shape(3, 2, (1, 1), (1, 1), True, 1)).fit(Form("dense"))
    torch.testing.assert_close(through(fit.layers, x), x @ torch.ones(3, 2, dtype=torch.float64), rtol=1e-4, atol=1e-4)


def test_where_no_linear_layer_fits_the_shape_there_is_none() -> None:
    network, _, _ = bent("kept")
    region = replace(region_of(network, "stretch.first.0"), source="a", end="b")
    assert shape_of(region, {"a": (2, 4, 4, 4), "b": (2, 4, 8, 8)}) is None  # grows
    assert shape_of(region, {"a": (2, 4, 8, 8), "b": (2, 4, 4, 8)}) is None  # by halves in one direction
    assert shape_of(region, {"a": (2, 4, 8, 8), "b": (2, 10)}) is None  # maps become vectors
    tokens = replace(region, tokens=True)
    assert shape_of(tokens, {"a": (2, 9, 4), "b": (2, 1, 4)}) is None  # tokens are pooled
    halved = shape_of(region, {"a": (2, 4, 9, 7), "b": (2, 6, 5, 4)})
    assert (halved.stride, halved.kernel, halved.kept) == (2, 3, False)
    assert shape_of(region, {"a": (2, 300, 8, 8), "b": (2, 300, 8, 8)}).kernel == 1  # too many features for 3 x 3
    assert shape_of(tokens, {"a": (2, 9, 4), "b": (2, 9, 6)}) == Shape(4, 6, (9, 1), (9, 1), True, 1)
    assert shape_of(tokens, {"a": (2, 3, 3, 4), "b": (2, 3, 3, 6)}) == Shape(4, 6, (9, 1), (9, 1), True, 1)
    assert shape_of(replace(region, tokens=None), {"a": (2, 4, 8, 8), "b": (2, 4, 8, 8)}) is None  # maps and tokens


@pytest.mark.parametrize("kind", BENT)
def test_saved_edits_replay_bit_for_bit(kind, tmp_path: Path) -> None:
    network, region, x = bent(kind)
    fitter = fitter_of(network, region, x)
    for number, form in enumerate(forms(fitter.shape, [2])):
        (there := tmp_path / str(number)).mkdir()
        made = edited(network, region, fitter.fit(form), form)
        save(made.edits, there)
        again = replay(network, load(there))
        assert again.fingerprint() == made.fingerprint() and again.edits == made.edits
        assert made(x).shape == network(x).shape
        gone = set(region.nodes) - {region.end}
        assert gone.isdisjoint(node.name for node in made.graph.graph.nodes)
        assert set(region.layers).isdisjoint(made.layers())
    assert network.edits == ()


class Residual(nn.Module):
    """Input [N, 3, 8, 8], output [N, 4]: three blocks that bend, each with a skip, the last over its own input."""

    def __init__(self, *, in_place: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(Bent(8, 8, 1) for _ in range(3))
        self.last = conv(8, 16, 3, 1, 2)
        self.head = nn.Linear(16, 4)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for number, block in enumerate(self.blocks):
            y = block(x)
            if not self.in_place:
                x = x + y
            elif number < 2:
                y += x
                x = y
            else:
                x += y
            x = F.relu(x)
        return self.head(F.relu(self.last(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def x() -> Tensor:
    """Patterns of four classes in noise."""
    generator = torch.Generator().manual_seed(5)
    patterns = F.interpolate(torch.randn(4, 3, 3, 3, generator=generator), (8, 8), mode="bilinear")
    labels = torch.arange(256) % 4
    return patterns[labels] + 0.7 * torch.randn(256, 3, 8, 8, generator=generator)


def trained(module: nn.Module, x: Tensor) -> Network:
    """The module after a minute's worth of steps in a second: its classes are told apart."""
    labels = torch.arange(len(x)) % 4
    torch.manual_seed(0)
    module.train()
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    for step in range(40):
        chosen = torch.arange(step * 64, (step + 1) * 64) % len(x)
        loss = F.cross_entropy(module(x[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return from_program(export_program(module.eval(), (x[:2],)))


@pytest.fixture(scope="module")
def base(x) -> Network:
    torch.manual_seed(0)
    network = trained(Residual(), x)
    assert (run(network, [x]).argmax(1) == torch.arange(len(x)) % 4).double().mean() > 0.9
    return network


def block(network: Network, number: int) -> Region:
    return region_of(network, f"blocks.{number}.first.0", f"blocks.{number}.second.0")


def chosen(network: Network, region: Region, form: Form, x: Tensor) -> Option:
    edit = refit(region, fitter_of(network, region, x).fit(form).layers, skip=form.skip)
    return Option("refit", region.site, region.span, 1.0, 0.0, (edit,), "", region=region, form=form)


@pytest.mark.parametrize(
    "form", [Form("dense", 3), Form("thin", 1, 4, skip=True), Form("separable", 3), Form("identity")]
)
def test_a_region_whose_source_was_replaced_still_applies(base, x, form) -> None:
    """Names of nodes stay, whatever computes them by now."""
    options = [chosen(base, block(base, 0), form, x), chosen(base, block(base, 1), Form("dense", 3), x)]
    network = realise(base, options, [x])
    assert not any(
        name.startswith(("blocks.0.first", "blocks.1.second.0")) for name in network.layers() if "refit" not in name
    )
    assert run(network, [x]).shape == run(base, [x]).shape
    assert replay(base, network.edits).fingerprint() == network.fingerprint()


def test_a_region_that_begins_where_another_went_is_fed_by_what_feeds_that(x) -> None:
    """Between two such regions stands nothing: the end of the first is the source of the second."""
    stretch = nn.Sequential(Skip(Bent(6, 6, 1)), Skip(Bent(6, 6, 1)))
    network = network_of(Chain(stretch, 6), x)
    first = region_of(network, "stretch.0.branch.first.0", "stretch.0.branch.second.0")
    second = region_of(network, "stretch.1.branch.first.0", "stretch.1.branch.second.0")
    assert second.source == first.end
    options = [chosen(network, first, Form("identity"), x), chosen(network, second, Form("dense", 3), x)]
    made = realise(network, options, [x])
    assert set(made.layers()) == {"stem", "relu", "stretch.1.branch.first.0_refit", "head"} | {
        name for name in made.layers() if isinstance(made.layer(name), nn.ReLU)
    }
    assert replay(network, made.edits).fingerprint() == made.fingerprint()
    both = chosen(network, first, Form("identity"), x), chosen(network, second, Form("identity"), x)
    assert set(realise(network, both, [x]).layers()) <= set(made.layers())


@pytest.mark.parametrize("form", [Form("dense", 1), Form("thin", 1, 4, skip=True), Form("identity")])
@pytest.mark.parametrize("number", [1, 2])
def test_nothing_is_left_of_a_region_that_ends_with_a_sum_in_place(x, form, number) -> None:
    """A sum that writes over a value would go on doing so after it is of no use."""
    network = network_of(Residual(in_place=True), x)
    plain = network_of(Residual(), x)
    torch.testing.assert_close(run(network, [x]), run(plain, [x]))
    results = [run(realise(n, [chosen(n, block(n, number), form, x)], [x]), [x]) for n in (network, plain)]
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    made = realise(network, [chosen(network, block(network, number), form, x)], [x])
    assert not any(name.startswith(f"blocks.{number}.second") for name in made.layers())


def test_nothing_is_left_of_a_region_with_a_sum_in_place_inside(x) -> None:
    network = network_of(Residual(in_place=True), x)
    layers = [f"blocks.{number}.{part}.0" for number in (1, 2) for part in ("first", "second")]
    made = realise(network, [chosen(network, region_of(network, *layers), Form("dense", 3), x)], [x])
    assert not any(name.startswith(("blocks.1.second", "blocks.2")) for name in made.layers())


def three(base: Network, x: Tensor) -> list[Option]:
    return [chosen(base, block(base, number), Form("dense", 1), x) for number in range(3)]


def test_a_fit_behind_the_others_mends_what_they_broke(base, x) -> None:
    options, reference = three(base, x), run(base, [x])
    alone = replay(base, [edit for option in options for edit in option.edits])
    behind = realise(base, options, [x])
    losses = [divergence(reference, run(network, [x]), True) for network in (behind, alone)]
    assert 0 < losses[0] < losses[1]
    end = block(base, 2).end
    wanted, *got = (values(network, x, end)[0] for network in (base, behind, alone))
    assert squared_error(got[0], wanted) < squared_error(got[1], wanted)


def test_fitting_twice_gives_the_same_bits_and_leaves_the_original(base, x) -> None:
    before, options = base.fingerprint(), three(base, x)
    batches = list(x.split(100))
    assert realise(base, options, batches).fingerprint() == realise(base, options, batches).fingerprint()
    assert base.fingerprint() == before


def test_nothing_chosen_gives_a_copy(base, x) -> None:
    made = realise(base, [], [x])
    assert made.fingerprint() == base.fingerprint() and made.graph is not base.graph


@pytest.fixture(scope="module")
def costs() -> CostTable:
    return CostTable.load(load_profile("pixel-4-cpu"), "tflite")


def test_merges_and_refits_are_applied_together(x, costs) -> None:
    """One block of the small network is merged, exactly but for its linear activation, and the next is refitted."""
    wide = torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    network = from_program(export_program(small(), (wide[:2],)))
    statistics = collect(network.graph, sites(network), [wide], channel_dims=channel_dims(network))
    merges = analyse(network, statistics, [wide], costs, classes=True, kinds=("merge",)).options
    fused = next(option for option in merges if option.site == "fused.expand")
    refitted = chosen(network, region_of(network, "basic.conv1", "basic.conv2"), Form("dense", 3), wide)
    made = realise(network, [fused, refitted], [wide])
    assert [edit.kind for edit in made.edits] == ["linearize", "merge", "refit"]
    assert {"fused.expand", "basic.conv1_refit"} <= set(made.layers())
    assert not {"fused.project", "basic.conv1", "basic.conv2"} & set(made.layers())
    (entering,), (wanted,), (got,) = (
        values(n, wide, name)
        for n, name in ((made, refitted.region.source), (network, refitted.region.end), (made, refitted.region.end))
    )
    shape = shape_of(refitted.region, node_shapes(network))
    rows = RegressionRows(shape.kernel, shape.stride, tokens=shape.tokens)
    rows.add(entering, wanted)
    (best,) = fit_through(rows, shape, Form("dense", 3), Cut(0.0, math.inf))  # a rectifier reads the sum of the block
    torch.testing.assert_close(got, best.module()(entering), rtol=1e-4, atol=1e-4)  # behind the merge, to the original


class Plain(nn.Module):
    """Rectifiers behind layers and behind sums, and a sum that has none behind it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.before, self.behind = (nn.Conv2d(i, width, 3, padding=1) for i in (3, width, width))
        self.first, self.second = (
            nn.Sequential(conv(width, width, 3, 1), nn.ReLU(), conv(width, width, 3, 1)) for _ in range(2)
        )
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.before(F.relu(self.stem(x))))
        x = F.relu(x + self.first(x))
        x = F.relu(self.behind(x))
        x = x + self.second(x)
        return self.head(x.mean((2, 3)))


def test_refits_save_what_they_say(x, costs, monkeypatch) -> None:
    """A rectifier costs nothing behind a layer, and something behind a sum: it counts where a form moves it."""
    monkeypatch.setattr(refit_module, "ROUNDS", 1)  # how well they fit is not the question here
    network = network_of(Plain(56), x)
    times = milliseconds(network, costs)
    base_ms = sum(times.values())
    found = refit_options(network, [x[:8]], lambda edited, place: 1.0, costs, times, [], lambda text: None)
    kinds = {(option.site, option.form.kind) for option in found}
    assert kinds >= {("first.0.0", "dense"), ("first.0.0", "identity"), ("behind", "identity")}
    assert any(option.form.skip for option in found)
    wrong = []
    for option in {(one.region, one.form.kind, one.form.skip): one for one in found}.values():
        saved = base_ms - sum(milliseconds(replay(network, option.edits), costs).values())
        if saved != pytest.approx(option.saving_ms, abs=1e-6 * base_ms):
            wrong.append((option.summary, option.saving_ms / base_ms, saved / base_ms))
    assert wrong == []


def test_offered_refits_are_not_dominated_and_damage_rises_with_the_residual(base, x, costs) -> None:
    x = x[:64]
    reference = run(base, [x])
    times = milliseconds(base, costs)

    def damage_of(network: Network, place: int = 0) -> float:
        return divergence(reference, run(network, [x]), True)

    found = refit_options(base, [x], damage_of, costs, times, [], lambda text: None)
    by_region: dict[Region, list[Option]] = {}
    for option in found:
        by_region.setdefault(option.region, []).append(option)
    assert len(by_region) > 3 and any(len(options) > 2 for options in by_region.values())
    for region, options in by_region.items():
        fitter = fitter_of(base, region, x)
        options.sort(key=lambda option: fitter.residual(option.form))
        damages = [option.damage for option in options]
        savings = [option.saving_ms for option in options]
        assert damages == sorted(damages) and savings == sorted(savings)
        worst = damage_of(replay(base, options[-1].edits))
        assert options[-1].damage == pytest.approx(worst, rel=1e-6)
