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

import pipeline.compress.recover as recover_module
from calibration.dataset import open_samples
from calibration.statistics import collect
from pipeline.compress.analysis import Truncation, analyse, divergence, run
from pipeline.compress.linearize import channel_dims, sites
from pipeline.compress.plan import _least_damage, plan
from pipeline.compress.recover import Recovery, recover
from pipeline.compress.segments import segments
from pipeline.compress.truncate import truncate
from pipeline.model.edits import replay
from pipeline.model.ingest import export_program, from_program
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
    return analyse(base, statistics, [x], costs, classes=True)


def test_macs_of_mobilenet_v2_are_the_published_three_hundred_million() -> None:
    network = from_program(export_program(randomised_mobilenet_v2(), (torch.randn(2, 3, 224, 224),)))
    assert sum(row.macs for row in operators(network)) == pytest.approx(300.8e6, rel=2e-3)


def test_a_fused_block_is_a_segment_with_its_skip_and_cheaper_merged(base, costs) -> None:
    found = {segment.layers: segment for segment in segments(base, costs)}
    fused = found["fused.expand", "fused.norm", "fused.act", "fused.project", "fused.out"]
    assert fused.skip and not fused.moves_padding and fused.sites == ("fused.act",)
    assert fused.saving_ms > 0 and fused.becomes.startswith("conv 3×3, 8 → 8")
    times = milliseconds(base, costs)
    assert fused.before_ms == pytest.approx(sum(times[n] for n in ("fused.expand", "fused.project", "add_1")), rel=1e-9)


def test_a_fold_that_is_not_cheaper_is_rejected_with_its_price(analysis) -> None:
    """Two 3x3 convolutions become a 5x5 one: more work, so it is never offered."""
    reasons = [reason for kind, site, reason in analysis.rejected if kind == "merge" and site == "basic.conv1"]
    assert reasons and all("would take" in reason for reason in reasons)
    assert all(segment.saving_ms > 0 for level in analysis.levels for segment in level.segments)


def test_levels_linearise_the_lowest_entropy_first(analysis, base, x) -> None:
    statistics = collect(base.graph, sites(base), [x], channel_dims=channel_dims(base))
    linear = {s for level in analysis.levels for s in level.sites}
    order = sorted(linear, key=lambda site: statistics[site].entropy())
    for level in analysis.levels:
        assert set(level.sites) == set(order[: len(level.sites)])


def test_a_plan_keeps_its_budget_and_costs_what_it_predicts(base, analysis, costs) -> None:
    damages = []
    for share in (0.9, 0.8, 0.7):
        chosen = plan(analysis, share * analysis.base_ms)
        assert chosen.reachable and chosen.predicted_ms <= share * analysis.base_ms
        edited = replay(base, chosen.edits)
        assert sum(milliseconds(edited, costs).values()) == pytest.approx(chosen.predicted_ms, rel=1e-6)
        damages.append(chosen.damage)
    assert damages == sorted(damages)


def test_what_cannot_be_reached_is_said_and_the_smallest_is_given(analysis) -> None:
    chosen = plan(analysis, 0.0)
    assert not chosen.reachable
    assert chosen.predicted_ms < plan(analysis, 0.8 * analysis.base_ms).predicted_ms


def test_at_least_so_many_sites_are_linear_when_asked(analysis) -> None:
    assert plan(analysis, analysis.base_ms).edits == ()
    assert len(plan(analysis, analysis.base_ms, least_sites=1).level.sites) >= 1


choices = st.lists(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 100)), min_size=1, max_size=3), min_size=1, max_size=4
)


@settings(max_examples=100, deadline=None)
@given(choices, st.integers(1, 150))
def test_the_knapsack_equals_brute_force(rows, needed) -> None:
    options = [
        [Truncation(str(i), r, float(s), float(d), truncate(str(i), r)) for r, (s, d) in enumerate(layer)]
        for i, layer in enumerate(rows)
    ]
    feasible = [
        chosen
        for chosen in itertools.product(*([None, *layer] for layer in options))
        if sum(o.saving_ms for o in chosen if o) >= needed
    ]
    found = _least_damage(options, needed)
    if feasible:
        best = min(sum(o.damage for o in chosen if o) for chosen in feasible)
        # Savings are rounded down to 1/2000 of what is needed: a choice that saves exactly enough may be passed over.
        slack = [chosen for chosen in feasible if sum(o.saving_ms for o in chosen if o) >= needed * 1.002]
        assert sum(o.saving_ms for o in found) >= needed
        bound = min((sum(o.damage for o in chosen if o) for chosen in slack), default=float("inf"))
        assert best <= sum(o.damage for o in found) <= max(bound, best) or bound == float("inf")


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
    compressed = replay(base, plan(analysis, 0.5 * analysis.base_ms).edits)
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


def test_a_killed_recovery_resumes_to_the_same_bits(base, analysis, samples, tmp_path: Path, monkeypatch) -> None:
    compressed = replay(base, plan(analysis, 0.5 * analysis.base_ms).edits)
    settings_ = Recovery(steps=12, batch=32)
    whole = recover(compressed, base, samples, settings_)
    monkeypatch.setattr(recover_module, "CHECKPOINT_SECONDS", 0.0)

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
    analyse(base, statistics, [x], costs, classes=True)
    assert base.fingerprint() == before
