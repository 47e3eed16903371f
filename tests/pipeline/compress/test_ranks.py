"""Ranks: published counts and ratios, break-even, budgets that are kept, and ALDS's allocation against brute force."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from networks.resnet import CifarResNet
from networks.small import small
from torch import nn

from pipeline.compress.algebra import composed, operator_of
from pipeline.compress.grouped import (
    alds_grouped,
    forms_of,
    grouped_factors,
    grouped_truncations,
    truncate_grouped,
)
from pipeline.compress.ranks import (
    Ranks,
    Spectrum,
    alds,
    greedy,
    largest_error,
    local,
    pooled,
    pooled_ranks,
    spectrum_of,
    total_cost,
    truncations,
    uniform,
    within,
)
from pipeline.compress.truncate import factors, truncatable
from pipeline.model.edits import replay
from pipeline.model.ingest import export_program, from_program
from pipeline.model.network import Network

WEIGHTS, CIFAR10 = os.environ.get("PLANISH_RESNET20"), os.environ.get("PLANISH_CIFAR10")
SELECTORS = [local, uniform, pooled, partial(pooled, linear=True)]


def falling(count: int, seed: int) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).gamma(0.6, size=count))[::-1]


@pytest.fixture(scope="module")
def base() -> Network:
    return from_program(export_program(small(), (torch.randn(2, 3, 12, 12),)))


@pytest.fixture(scope="module")
def spectra(base) -> dict[str, Spectrum]:
    return {name: spectrum_of(module) for name, module in base.layers().items() if truncatable(module)}


@st.composite
def layers(draw) -> dict[str, Spectrum]:
    """A few layers, some priced in milliseconds that rise with the rank in steps and dips, some ranks not on offer."""
    found = {}
    for i in range(draw(st.integers(1, 5))):
        rows, columns = draw(st.integers(1, 24)), draw(st.integers(1, 40))
        full = min(rows, columns)
        spectrum = Spectrum(falling(full, draw(st.integers(0, 999))), rows, columns, draw(st.booleans()))
        if draw(st.booleans()):
            price = st.one_of(st.floats(1.0, 600.0), st.just(float("inf")))
            costs = draw(st.lists(price, min_size=full, max_size=full))
            spectrum = replace(spectrum, costs=np.array([*costs, draw(st.floats(1.0, 600.0))]))
        found[str(i)] = spectrum
    return found


def test_the_error_of_a_truncation_is_the_tail_of_the_spectrum() -> None:
    """T4.2, on a matrix whose tails are the published ones."""
    tails = {0: 6.0, 2: 1.358928, 4: 0.553432, 6: 0.131610, 8: 0.0}
    halves = [((tails[r] ** 2 - tails[r + 2] ** 2) / 2) ** 0.5 for r in (0, 2, 4, 6)]
    values = torch.tensor([s for s in halves for _ in range(2)], dtype=torch.float64)
    torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, 8, dtype=torch.float64))[0] for n in (10, 27))
    layer = nn.Conv2d(3, 10, 3).double()
    with torch.no_grad():
        layer.weight.copy_(((left * values) @ right.T).view(10, 3, 3, 3))
    spectrum = spectrum_of(layer)
    for rank in (2, 4, 6):
        reduce, expand = factors(operator_of(layer), rank)
        error = (composed(reduce, expand).weight - layer.weight).norm().item()
        assert error == pytest.approx(tails[rank], abs=1e-5)
        assert error == pytest.approx(np.sqrt((spectrum.values[rank:] ** 2).sum()), abs=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("layer", [nn.Conv2d(5, 12, 3, 2, 1), nn.Conv2d(6, 9, 1, 2, bias=False), nn.Linear(10, 8)])
def test_two_thin_layers_equal_the_truncated_dense_one(layer) -> None:
    """T4.3, stride and border included; full rank gives the original."""
    operator = operator_of(layer)
    matrix = operator.weight.flatten(1)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    x = torch.randn(3, 10) if isinstance(layer, nn.Linear) else torch.randn(3, layer.in_channels, 9, 9)
    for rank in (1, 4, len(values)):
        cut = (left[:, :rank] * values[:rank]) @ right[:rank]
        dense = replace(operator, weight=cut.view_as(operator.weight)).module()
        reduce, expand = (part.module() for part in factors(operator, rank))
        assert (expand(reduce(x)) - dense(x)).abs().max() <= 1e-5
    assert (expand(reduce(x)) - layer(x)).abs().max() <= 1e-5


def test_parameters_are_counted_and_a_layer_that_would_not_shrink_stays_whole(base, spectra) -> None:
    """T4.4. 16 x 72: 88 a rank, so 13 ranks are fewer than the 1152 of the layer and 14 are not."""
    layer = spectra["basic.conv1"]
    assert (layer.rows, layer.columns, layer.full) == (16, 72, 16)
    assert [layer.cost(rank) for rank in (1, 13, None)] == [88, 13 * 88, 1152]
    assert [layer.settled(rank) for rank in (0, 1, 13, 14, 16, 17)] == [1, 1, 13, None, None, None]
    for keep in (0.2, 0.5, 0.75):
        ranks = local(spectra, keep)
        edited = replay(base, truncations(ranks)).layers().values()
        assert sum(layer.weight.numel() for layer in edited if truncatable(layer)) == total_cost(spectra, ranks)


def test_a_rank_that_a_higher_one_undercuts_is_not_taken() -> None:
    """Vector units: 5 to 8 channels take the time of 8; 2 is not on offer; above 12 the layer itself is faster."""
    costs = np.array([1.0, np.inf, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 5, 5, 5, 5, 4.0])
    layer = Spectrum(falling(16, 0), 16, 144, costs=costs)
    assert [layer.settled(rank) for rank in (1, 2, 5, 8, 9, 12, 13)] == [4, 4, 8, 8, 12, 12, None]
    dear = Spectrum(falling(3, 0), 3, 9, costs=np.array([7.0, 8.0, 9.0, 6.0]))
    assert dear.settled(1) is None


def test_milliseconds_decide_whether_a_convolution_becomes_two(base) -> None:
    """The same layer on a target where two launches cost more than they save, and on one where they do not."""
    module = base.layer("basic.conv1")
    launch_bound = spectrum_of(module, lambda rank: 1.0 if rank is None else 1.2 + 0.01 * rank)
    work_bound = spectrum_of(module, lambda rank: 1.0 if rank is None else 0.1 * rank)
    assert local({"a": launch_bound}, 0.1) == {"a": None}
    assert local({"a": work_bound}, 0.5) == {"a": 8}


def test_local_keeps_the_same_share_rounded_down() -> None:
    layers = {"a": Spectrum(falling(16, 0), 16, 999), "b": Spectrum(falling(10, 1), 999, 10)}
    assert local(layers, 0.97) == {"a": 15, "b": 9}
    assert local(layers, 1 - 0.7) == {"a": 4, "b": 3}
    assert local(layers, 0.0) == {"a": 1, "b": 1}


def test_uniform_keeps_the_same_share_of_the_cost() -> None:
    layers = {"a": Spectrum(falling(64, 0), 64, 576), "b": Spectrum(falling(16, 1), 16, 144)}
    assert uniform(layers, 0.5) == {"a": 28, "b": 7}  # 28 * 640 of 36864, 7 * 160 of 2304
    assert uniform(layers, 1.0) == {"a": None, "b": None}


def test_pooled_selection_by_hand() -> None:
    """T4.5: relative to its layer's largest, the small layer is as strong as the large one; linear layers are apart."""
    layers = {
        "large": Spectrum(np.array([10.0, 9.0, 0.5, 0.1]), 4, 999),
        "small": Spectrum(np.array([0.1, 0.06, 0.03, 0.0002]), 4, 999),
        "flat": Spectrum(np.array([5.0, 5.0, 5.0]), 3, 999),
        "head": Spectrum(np.array([100.0, 1.0, 0.9, 0.8]), 4, 999, linear=True),
    }
    # Falling: 1 (x5) .9 .6 .3 .05 .01 .002
    assert pooled_ranks({k: layers[k] for k in ("large", "small", "flat")}, 0.5) == {"large": 2, "small": 1, "flat": 3}
    assert pooled(layers, 8 / 11) == {"large": 2, "small": 3, "flat": None, "head": None}
    assert pooled(layers, 0.75, linear=True) == {"large": 3, "small": 3, "flat": None, "head": 3}
    assert pooled(layers, 0.0, linear=True) == {"large": 1, "small": 1, "flat": 1, "head": 1}


@pytest.fixture(scope="module")
def resnet20() -> Network:
    if WEIGHTS is None:
        pytest.skip("PLANISH_RESNET20 does not name the weights of the public CIFAR-10 ResNet-20")
    model = CifarResNet(3)
    state = torch.load(WEIGHTS, map_location="cpu", weights_only=False)["state_dict"]
    model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    return from_program(export_program(model.eval(), (torch.randn(2, 3, 32, 32),)))


def convolutions(network: Network) -> dict[str, Spectrum]:
    return {name: spectrum_of(module) for name, module in network.layers().items() if isinstance(module, nn.Conv2d)}


def test_pooled_selection_on_resnet20_has_the_known_sizes(resnet20) -> None:
    """T4.5 and the plain column of 4.6: 688 values, 670 above 1 %, and these parameter ratios of 269,722."""
    layers = convolutions(resnet20)
    pool = np.concatenate([s.values / s.values[0] for s in layers.values()])
    assert (len(pool), int((pool > 0.01).sum()), resnet20.parameters()) == (688, 670, 269_722)
    known = {0.1: 1.009, 0.3: 0.795, 0.5: 0.569, 0.6: 0.456, 0.7: 0.344, 0.8: 0.228, 0.9: 0.112}
    for removed, ratio in known.items():
        raw = pooled_ranks(layers, 1 - removed)
        assert sum(raw.values()) == 688 - int(688 * removed)
        rest = 269_722 - total_cost(layers, dict.fromkeys(layers))
        factorized = rest + total_cost(layers, raw)  # all of them, break-even or not, as in the table
        assert factorized / 269_722 == pytest.approx(ratio, abs=1.1e-3)
        settled = rest + total_cost(layers, pooled(layers, 1 - removed))
        assert settled <= min(factorized, 269_722)


@pytest.mark.skipif(CIFAR10 is None, reason="PLANISH_CIFAR10 does not name an .npz of the data")
@pytest.mark.parametrize(("removed", "top1", "slack"), [(0.0, 91.73, 0.1), (0.1, 90.74, 2.0), (0.3, 68.80, 2.0)])
@torch.no_grad()
def test_accuracy_after_truncation_is_the_known_one(resnet20, removed: float, top1: float, slack: float) -> None:
    """T4.6, plain column. Truncated layers count whether they shrink or not."""
    raw = pooled_ranks(convolutions(resnet20), 1 - removed) if removed else {}
    network = replay(resnet20, truncations(raw))
    with np.load(Path(CIFAR10)) as data:
        x, y = torch.from_numpy(data["test_x"]).permute(0, 3, 1, 2), torch.from_numpy(data["test_y"].astype(np.int64))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    right = 0
    for shown, labels in zip(x.split(500), y.split(500), strict=True):
        shown = (shown.float() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        right += int((network(shown).argmax(1) == labels).sum())
    assert 100 * right / len(y) == pytest.approx(top1, abs=slack)


@settings(max_examples=80, deadline=None)
@given(layers(), st.floats(0, 1), st.floats(0, 1), st.sampled_from(SELECTORS))
def test_more_that_is_kept_costs_more_and_never_more_than_the_layers_themselves(found, one, other, select) -> None:
    less, more = (select(found, keep) for keep in sorted((one, other)))
    whole = dict.fromkeys(found)
    assert total_cost(found, less) <= total_cost(found, more) <= total_cost(found, whole)
    for name, spectrum in found.items():
        assert less[name] is None or spectrum.cost(less[name]) < spectrum.cost(None)
        assert spectrum.cost(less[name]) <= spectrum.cost(more[name])


@settings(max_examples=60, deadline=None)
@given(layers(), st.floats(0.02, 1.1), st.sampled_from([*SELECTORS, alds]))
def test_budgets_are_kept_unless_nothing_keeps_them(found, share, select) -> None:
    budget = share * total_cost(found, dict.fromkeys(found))

    def chosen(budget: float) -> Ranks:
        return alds(found, budget) if select is alds else within(partial(select, found), found, budget)

    ranks, wider = chosen(budget), chosen(1.2 * budget)
    strongest = alds(found, 0.0) if select is alds else select(found, 0.0)
    assert total_cost(found, ranks) <= max(budget, total_cost(found, strongest))
    assert total_cost(found, ranks) <= total_cost(found, wider)


def test_within_lands_on_the_mildest_share_that_fits(spectra) -> None:
    """One rank more anywhere would pass the budget, as shares go."""
    whole = total_cost(spectra, dict.fromkeys(spectra))
    for select in SELECTORS:
        budget = 0.7 * whole
        found = total_cost(spectra, within(partial(select, spectra), spectra, budget))
        grid = [total_cost(spectra, select(spectra, keep)) for keep in np.linspace(0, 1, 2001)]
        assert max((cost for cost in grid if cost <= budget), default=min(grid)) <= found <= max(budget, min(grid))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(2, 5), st.integers(3, 9), st.integers(0, 99)), min_size=1, max_size=3),
    st.floats(0.2, 1.0),
)
def test_alds_has_the_least_largest_error_of_all_choices(rows, share) -> None:
    found = {str(i): Spectrum(falling(min(a, b), seed), a, b) for i, (a, b, seed) in enumerate(rows)}
    budget = share * total_cost(found, dict.fromkeys(found))
    choices = [
        dict(zip(found, ranks, strict=True))
        for ranks in itertools.product(*([*range(1, s.full + 1), None] for s in found.values()))
    ]
    feasible = [ranks for ranks in choices if total_cost(found, ranks) <= budget]
    assume(feasible)
    least = min(largest_error(found, ranks) for ranks in feasible)
    assert largest_error(found, alds(found, budget)) == pytest.approx(least, abs=1e-12)


def test_alds_gives_rank_to_the_layer_that_needs_it() -> None:
    steep = np.array([1.0, 0.1, 0.01, 0.001, 1e-4, 1e-5, 1e-6, 1e-7])
    layers = {"steep": Spectrum(steep, 8, 72), "flat": Spectrum(np.linspace(1, 0.5, 8), 8, 72)}
    assert alds(layers, 0.6 * 2 * 8 * 72) == {"steep": 1, "flat": None}
    assert alds(layers, 0.8 * 2 * 8 * 72) == {"steep": 4, "flat": None}
    assert alds(layers, 0.0) == {"steep": 1, "flat": 1}
    assert alds(layers, 2 * 8 * 72) == {"steep": None, "flat": None}


def squared_tails(found: dict[str, Spectrum]):
    def loss(ranks: Ranks) -> float:
        return sum(float((s.values[ranks[n] :] ** 2).sum()) for n, s in found.items() if ranks[n] is not None)

    return loss


@settings(max_examples=40, deadline=None)
@given(layers(), st.floats(0.3, 1.0), st.sampled_from([1, 4, 8]))
def test_greedy_keeps_its_budget_where_its_floor_allows_it(found, share, grid) -> None:
    budget = share * total_cost(found, dict.fromkeys(found))
    ranks = greedy(found, squared_tails(found), budget=budget, grid=grid)
    floor = {name: spectrum.settled(min(2, spectrum.full)) for name, spectrum in found.items()}
    assert total_cost(found, ranks) <= max(budget, total_cost(found, floor))
    assert all(rank is None or rank >= min(2, found[name].full) for name, rank in ranks.items())


def test_greedy_takes_from_the_layer_whose_loss_grows_least() -> None:
    found = {"weak": Spectrum(falling(16, 0) * 0.01, 16, 144), "strong": Spectrum(falling(16, 1), 16, 144)}
    ranks = greedy(found, squared_tails(found), budget=0.6 * 2 * 16 * 144, grid=4)
    assert ranks["weak"] <= 4 and (ranks["strong"] is None or ranks["strong"] > 10)


def test_greedy_lands_closer_with_halved_steps_and_each_step_is_tuned() -> None:
    found = {"a": Spectrum(falling(32, 0), 32, 288)}
    budget = 17.5 * 320
    steps: list[Ranks] = []
    assert greedy(found, squared_tails(found), budget=budget, grid=8, tune=steps.append) == {"a": 17}
    assert steps[0] == {"a": 24} and steps[-1] == {"a": 17}


def test_greedy_gives_up_after_four_choices_that_are_not_good_enough() -> None:
    found = {"a": Spectrum(falling(32, 0), 32, 288)}
    asked: list[int | None] = []

    def acceptable(ranks: Ranks) -> bool:
        asked.append(ranks["a"])
        return ranks["a"] is None or ranks["a"] >= 20

    assert greedy(found, squared_tails(found), grid=1, acceptable=acceptable) == {"a": 20}
    assert asked[-5:] == [20, 19, 18, 17, 16]


def conv(channels: int, outputs: int, kernel: int = 3, seed: int = 0) -> nn.Conv2d:
    torch.manual_seed(seed)
    return nn.Conv2d(channels, outputs, kernel, 1, kernel // 2)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_relative_error_of_groups_bounds_the_true_one(groups: int) -> None:
    """5.1: the authors' error is the true one for one group, else a lower bound, and sqrt(k) times it an upper one."""
    operator = operator_of(conv(8, 12))
    form, norm = forms_of(conv(8, 12))[groups], torch.linalg.matrix_norm(operator.weight.flatten(1), ord=2)
    gaps = []
    for rank in range(1, form.full):
        cut = composed(*grouped_factors(operator, rank, groups)).weight.flatten(1)
        true = (torch.linalg.matrix_norm(cut - operator.weight.flatten(1), ord=2) / norm).item()
        lower, upper = form.errors(bound=False)[rank], form.errors()[rank]
        assert lower - 1e-12 <= true <= upper + 1e-12 and upper == pytest.approx(groups**0.5 * lower)
        gaps.append(true - lower)
    assert (max(gaps) < 1e-9) == (groups == 1)


@torch.no_grad()
@pytest.mark.parametrize("layer", ["fused.expand", "basic.conv1"])
def test_a_grouped_truncation_counts_j_times_k_f_plus_c_and_full_rank_is_the_identity(base, layer: str) -> None:
    x, module = torch.randn(4, 3, 12, 12), base.layer(layer)
    form = forms_of(module)[4]
    edited = replay(base, [truncate_grouped(layer, form.full, 4)])
    assert (edited(x) - base(x)).abs().max() <= 1e-5
    thin = replay(base, [truncate_grouped(layer, 2, 4)])
    assert thin.layer(f"{layer}_reduce").groups == 4 and thin.layer(f"{layer}_reduce").out_channels == 8
    weights = [thin.layer(f"{layer}_{part}").weight.numel() for part in ("reduce", "expand")]
    assert sum(weights) == form.cost(2) == 2 * (4 * module.out_channels + module.weight[0].numel())


def test_groups_are_divisors_that_can_save_something() -> None:
    assert list(forms_of(conv(12, 8))) == [1, 2, 3, 4, 6, 12]
    assert list(forms_of(conv(12, 8, 1))) == [1, 2, 3, 4, 6]  # 12 groups: 12 * 8 + 12 is more than 96
    assert list(forms_of(nn.Linear(12, 8))) == [1]


def test_choosing_groups_is_never_worse_than_one_group_and_keeps_the_budget() -> None:
    """A layer whose channel groups are each of rank one: one rank for all of them pays for it four times."""
    torch.manual_seed(0)
    blocks = conv(8, 32)
    with torch.no_grad():
        blocks.weight.copy_(torch.cat([torch.randn(32, 1) @ torch.randn(1, 18) for _ in range(4)], 1).view(32, 8, 3, 3))
        blocks.weight.add_(1e-3 * torch.randn(32, 8, 3, 3))
    forms = {"blocks": forms_of(blocks), "plain": forms_of(conv(8, 16, seed=1)), "head": forms_of(nn.Linear(16, 12))}
    single = {name: own[1] for name, own in forms.items()}
    whole = total_cost(single, dict.fromkeys(single))
    found = []
    for share in (0.2, 0.3, 0.4, 0.7):
        choice = alds_grouped(forms, share * whole)
        spectra = {name: forms[name][1 if chosen is None else chosen[1]] for name, chosen in choice.items()}
        ranks = {name: None if chosen is None else chosen[0] for name, chosen in choice.items()}
        assert total_cost(spectra, ranks) <= share * whole
        error, plain = largest_error(spectra, ranks), largest_error(single, alds(single, share * whole))
        assert error <= plain
        found.append((choice["blocks"], error < plain))
        assert alds_grouped(forms, share * whole) == choice
    assert ((1, 4), True) in found


def test_a_choice_of_groups_becomes_edits(base) -> None:
    edits = grouped_truncations({"basic.conv1": (2, 4), "basic.conv2": (3, 1), "hidden": None})
    assert [(edit.kind, edit.site) for edit in edits] == [
        ("truncate_grouped", "basic.conv1"),
        ("truncate", "basic.conv2"),
    ]
    edited = replay(base, edits)
    assert edited.fingerprint() == replay(base, edits).fingerprint() != base.fingerprint()
