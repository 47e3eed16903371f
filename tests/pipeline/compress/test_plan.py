"""Planning: segments are priced on the target, the knapsack is optimal, budgets are kept, recovery resumes exactly."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks.mobilenet import randomised_mobilenet_v2
from networks.small import small

from calibration.dataset import open_samples
from calibration.statistics import collect
from pipeline.compress import descent
from pipeline.compress.analysis import KINDS, analyse, divergence, run
from pipeline.compress.linearize import channel_dims, sites
from pipeline.compress.options import Option, most_saving
from pipeline.compress.plan import BINS, least_damage, plan
from pipeline.compress.realising import realise
from pipeline.compress.recover import Recovery, recover
from pipeline.compress.segments import segments
from pipeline.model.edits import replay
from pipeline.model.ingest import export_program, from_program
from pipeline.model.network import positions
from pipeline.model.operators import milliseconds, operators
from targets.cost import CostTable
from targets.profile import load_profile


@pytest.fixture(scope="module")
def costs() -> CostTable:
    return CostTable.load(load_profile("pixel-4-cpu"), "tflite")


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def base(x):
    return from_program(export_program(small(), (x[:2],)))


@pytest.fixture(scope="module")
def analysis(base, x, costs):
    statistics = collect(base.graph, sites(base), [x], channel_dims=channel_dims(base))
    return analyse(base, statistics, [x], costs, classes=True, levels=True)


def test_macs_of_mobilenet_v2_are_the_published_three_hundred_million() -> None:
    network = from_program(export_program(randomised_mobilenet_v2(), (torch.randn(2, 3, 224, 224),)))
    assert sum(row.macs for row in operators(network)) == pytest.approx(300.8e6, rel=2e-3)


def test_a_fused_block_is_a_segment_with_its_skip_and_cheaper_merged(base, costs) -> None:
    found = {segment.layers: segment for segment in segments(base, costs)}
    fused = found["fused.expand", "fused.norm", "fused.act", "fused.project", "fused.out"]
    assert fused.skip and not fused.moves_padding and fused.sites == ("fused.act",)
    assert fused.saving_ms > 0 and fused.becomes.startswith("conv 3×3, 8 → 8")
    times = milliseconds(base, costs)
    assert fused.before_ms == pytest.approx(
        sum(times[n] for n in ("fused.expand", "fused.project", "add_1", "relu_1")), rel=1e-9
    )


def test_a_fold_that_is_not_cheaper_is_rejected_with_its_price(analysis) -> None:
    """Two 3x3 convolutions become a 5x5 one: more work, so it is never offered."""
    reasons = [reason for kind, site, reason in analysis.rejected if kind == "merge" and site == "basic.conv1"]
    assert reasons and all("would take" in reason for reason in reasons)
    assert all(option.saving_ms > 0 for level in analysis.levels for option in level.options)


def test_levels_linearise_the_lowest_entropy_first(analysis, base, x) -> None:
    statistics = collect(base.graph, sites(base), [x], channel_dims=channel_dims(base))
    linear = {s for level in analysis.levels for s in level.sites}
    order = sorted(linear, key=lambda site: statistics[site].entropy())
    assert len(analysis.levels) > 1
    for level in analysis.levels:
        assert set(level.sites) == set(order[: len(level.sites)])


def test_levels_are_only_measured_when_asked(base, x, costs) -> None:
    statistics = collect(base.graph, sites(base), [x], channel_dims=channel_dims(base))
    without = analyse(base, statistics, [x], costs, classes=True, kinds=("merge",))
    assert [level.options for level in without.levels] == [()]
    assert without.levels[0].predicted_ms == without.base_ms and without.levels[0].damage == 0


@pytest.mark.parametrize("kind", KINDS)
def test_options_are_of_the_kinds_asked_for(base, x, costs, kind) -> None:
    statistics = collect(base.graph, sites(base), [x], channel_dims=channel_dims(base))
    found = analyse(base, statistics, [x], costs, classes=True, kinds=(kind,))
    assert found.options and {option.kind for option in found.options} == {kind}


def test_an_option_covers_what_its_edits_change(base, analysis) -> None:
    """A node that goes, or that is computed by another layer, lies in the span; the nodes outside stay as they are."""
    place = positions(base)
    before = {node.name: node.target for node in base.graph.graph.nodes if node.op != "get_attr"}
    for option in analysis.options:
        after = {node.name: node.target for node in replay(base, option.edits).graph.graph.nodes}
        changed = [place[name] for name, target in before.items() if after.get(name) != target]
        assert all(option.span[0] <= at <= option.span[1] for at in changed), option.summary


@pytest.mark.parametrize("kind", KINDS)
def test_an_option_saves_what_it_says(base, analysis, costs, kind) -> None:
    for option in (option for option in analysis.options if option.kind == kind):
        after = sum(milliseconds(replay(base, option.edits), costs).values())
        assert analysis.base_ms - after == pytest.approx(option.saving_ms, abs=1e-6 * analysis.base_ms), option.summary


def test_a_plan_keeps_its_budget_and_costs_what_it_predicts(base, analysis, costs, x) -> None:
    damages = []
    for share in (0.9, 0.75, 0.6):
        chosen = plan(analysis, share * analysis.base_ms)
        assert chosen.reachable and chosen.predicted_ms <= share * analysis.base_ms
        edited = realise(base, chosen.options, [x])
        assert sum(milliseconds(edited, costs).values()) == pytest.approx(chosen.predicted_ms, rel=1e-6)
        damages.append(chosen.damage)
    assert damages == sorted(damages)


def test_what_cannot_be_reached_is_said_and_the_smallest_is_given(analysis) -> None:
    chosen = plan(analysis, 0.0)
    assert not chosen.reachable
    assert chosen.predicted_ms < plan(analysis, 0.6 * analysis.base_ms).predicted_ms


def test_at_least_so_many_sites_are_linear_when_asked(analysis) -> None:
    assert plan(analysis, analysis.base_ms).options == ()
    demanded = plan(analysis, 0.6 * analysis.base_ms, least_sites=1)
    assert demanded.sites and demanded.reachable
    assert demanded.damage >= plan(analysis, 0.6 * analysis.base_ms).damage


def option(first: int, last: int, saving: float, damage: float) -> Option:
    return Option("truncate", f"{first}-{last}", (first, last), saving, damage, (), "")


intervals = st.lists(
    st.builds(
        lambda first, length, saving, damage: option(first, first + length, float(saving), float(damage)),
        st.integers(0, 9),
        st.integers(0, 4),
        st.integers(1, 50),
        st.integers(0, 100),
    ),
    max_size=9,
)


def disjoint_choices(options: list[Option]) -> list[tuple[Option, ...]]:
    return [
        chosen
        for size in range(len(options) + 1)
        for chosen in itertools.combinations(options, size)
        if not any(one.overlaps(other) for one, other in itertools.combinations(chosen, 2))
    ]


def saved(chosen: tuple[Option, ...]) -> float:
    return sum(one.saving_ms for one in chosen)


def harm(chosen: tuple[Option, ...]) -> float:
    return sum(one.damage for one in chosen)


@settings(max_examples=150, deadline=None)
@given(intervals, st.integers(1, 150))
def test_the_least_damage_is_that_of_brute_force(options, needed) -> None:
    """No disjoint choice whose savings, rounded down, suffice has less damage; none is missed that exists."""
    choices = disjoint_choices(options)
    found = least_damage(options, float(needed))
    assert found in choices or set(found) in map(set, choices)
    rounded = [c for c in choices if sum(int(one.saving_ms / (needed / BINS)) for one in c) >= BINS]
    if rounded:
        assert saved(found) >= needed
        assert harm(found) == min(map(harm, rounded))
    else:
        assert saved(found) == max(map(saved, choices))
    assert list(found) == sorted(found, key=lambda one: one.span)


@settings(max_examples=150, deadline=None)
@given(intervals)
def test_the_most_saving_is_that_of_brute_force(options) -> None:
    choices = disjoint_choices(options)
    found = most_saving(options)
    assert set(found) in map(set, choices) and saved(found) == max(map(saved, choices))


def test_nothing_is_chosen_where_nothing_is_needed() -> None:
    assert least_damage([option(0, 1, 1.0, 0.0)], 0.0) == ()


def test_divergence_is_zero_for_equal_outputs_and_grows() -> None:
    reference = torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    assert divergence(reference, reference, True) == pytest.approx(0, abs=1e-12)
    assert 0 < divergence(reference, reference * 1.1, True) < divergence(reference, reference * 2, True)
    maps = torch.randn(4, 3, 5, 5)
    assert divergence(maps, maps, False) == 0 and divergence(maps, maps + 1, False) > 0


@pytest.fixture
def samples(x, tmp_path: Path):
    import numpy as np

    np.savez(tmp_path / "x.npz", x=x.numpy(), y=np.arange(64) % 5)
    return open_samples(tmp_path / "x.npz")


def test_recovery_brings_the_outputs_back(base, analysis, samples, x) -> None:
    compressed = realise(base, plan(analysis, 0.5 * analysis.base_ms).options, [x])
    losses = []
    recovered = recover(
        compressed,
        base,
        samples,
        Recovery(steps=60, batch=32, label_weight=0.0),
        progress=lambda step, loss: losses.append(loss),
    )
    reference = run(base, [x])
    assert divergence(reference, run(recovered, [x]), True) < 0.7 * divergence(reference, run(compressed, [x]), True)
    assert len(losses) == 60
    assert recover(compressed, base, samples, Recovery(steps=0)) is compressed


def test_a_killed_recovery_resumes_to_the_same_bits(base, analysis, samples, x, tmp_path: Path, monkeypatch) -> None:
    compressed = realise(base, plan(analysis, 0.5 * analysis.base_ms).options, [x])
    settings_ = Recovery(steps=12, batch=32)
    whole = recover(compressed, base, samples, settings_)
    monkeypatch.setattr(descent, "CHECKPOINT_SECONDS", 0.0)

    def die_at_seven(step: int, loss: float) -> None:
        if step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recover(compressed, base, samples, settings_, checkpoint=tmp_path / "state.pt", progress=die_at_seven)
    assert torch.load(tmp_path / "state.pt")["step"] == 7
    resumed = recover(compressed, base, samples, settings_, checkpoint=tmp_path / "state.pt")
    assert resumed.fingerprint() == whole.fingerprint()
    assert replace(settings_, seed=1) != settings_
    assert recover(compressed, base, samples, replace(settings_, seed=1)).fingerprint() != whole.fingerprint()


def test_analysis_leaves_the_network_as_it_was(base, x, costs) -> None:
    """The original is the teacher later on: planning must not touch its weights or norm statistics."""
    before = base.fingerprint()
    statistics = collect(base.graph, sites(base), [x], channel_dims=channel_dims(base))
    analyse(base, statistics, [x], costs, classes=True, levels=True)
    assert base.fingerprint() == before


def test_a_layer_that_the_samples_are_too_few_to_fit_is_left_alone_and_said_so(costs) -> None:
    """With fewer observations than features least squares repeats the samples, and on others it is noise."""
    torch.manual_seed(3)
    wide = torch.nn.Sequential(torch.nn.Linear(128, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64)).eval()
    few, many = torch.randn(96, 128), torch.randn(2400, 128)
    network = from_program(export_program(wide, (few[:2],)))
    statistics = collect(network.graph, sites(network), [many], channel_dims=channel_dims(network))
    assert not analyse(network, statistics, [few], costs, classes=False, kinds=("refit",)).options
    rejected = analyse(network, statistics, [few], costs, classes=False, kinds=("refit",)).rejected
    assert {"0", "2"} <= {site for _, site, _ in rejected}
    offered = analyse(network, statistics, [many], costs, classes=False, kinds=("refit",)).options
    reference, others = run(network, [fresh := torch.randn(2000, 128)]), []
    for option in offered:
        damage = divergence(reference, run(replay(network, option.edits), [fresh]), False)
        others.append(damage / max(option.damage, 1e-9))
    assert offered and 0.4 < min(others) and max(others) < 2.5
