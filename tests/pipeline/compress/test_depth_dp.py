"""Two-stage depth compression: the published latency tables, both recursions against brute force, real edits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks.resnet import CifarResNet
from networks.small import randomise_norms, small
from published_chains import ByWork, published_latencies
from torch import nn

from calibration.statistics import collect
from pipeline.compress import layermerge
from pipeline.compress.analysis import divergence, run
from pipeline.compress.depth_dp import (
    Ends,
    Split,
    choose,
    extended,
    fastest_merges,
    normalised,
    solve,
    tables,
)
from pipeline.compress.layermerge import Span
from pipeline.compress.linearize import channel_dims, sites
from pipeline.model.edits import Edit, replay
from pipeline.model.ingest import export_program, from_program
from pipeline.model.operators import milliseconds

NETWORKS = {"vgg19": (16, 36, 193.084, 155.99), "mobilenet_v2": (50, 171, 33.670, 6.47)}
BLOCK_ENDS = frozenset(range(2, 51, 3))


@pytest.mark.parametrize("network", NETWORKS)
def test_fastest_merges_are_the_published_ones(network: str) -> None:
    """T_opt of every segment to 1e-9 ms, its parts, the time at full depth, and the least there is."""
    depth, segments, full, least = NETWORKS[network]
    times, faster = published_latencies(network)
    found = fastest_merges(times)
    assert len(found) == len(times) == segments
    for span, split in found.items():
        value, positions = faster.get(span, (times[span], span))
        assert split.value == pytest.approx(value, abs=1e-9 if span in faster else 0) and split.positions == positions
    assert sum(times[at, at + 1] for at in range(depth)) == pytest.approx(full, abs=1e-3)
    assert quickest(depth, times) == pytest.approx(least, abs=5e-3)


def in_states(span: Span, block_ends: frozenset[int]) -> list[Ends]:
    """A segment in the states that the paper measures: only at the end of a block may an activation be off."""
    start, end = span
    if start in block_ends:
        return [Ends(start, end), Ends(start, end, 0, 1)]
    return [Ends(start, end), Ends(start, end, 1, 0)] if start and end in block_ends else [Ends(start, end)]


def quickest(depth: int, times: Mapping[Span, float], kept: Sequence[int] = ()) -> float:
    """Least time of merges that no kept activation stands inside."""
    best = {0: 0.0}
    for (start, end), time in sorted(times.items(), key=lambda row: row[0][1]):
        if start in best and not any(start < position < end for position in kept):
            best[end] = min(best.get(end, math.inf), best[start] + time)
    return best[depth]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("share", [0.99, 0.9, 0.83])
def test_choice_on_the_published_latencies_is_within_its_budget_and_merged_as_fast_as_can_be(
    network: str, share: float
) -> None:
    depth, _, full, _ = NETWORKS[network]
    times = published_latencies(network)[0]
    noise = iter(torch.rand(1000, generator=torch.Generator().manual_seed(1)).tolist())
    blocks = BLOCK_ENDS if network == "mobilenet_v2" else frozenset()
    raw = {ends: -next(noise) * (span[1] - span[0]) for span in times for ends in in_states(span, blocks)}
    found = solve(depth, fastest_merges(times), extended(normalised(raw, 1.6)), share * full)
    assert found is not None and found.time_ms <= share * full
    assert set(found.activations) <= set(found.merges) and found.merges[-1] == depth
    assert found.time_ms == pytest.approx(sum(times[part] for part in itertools.pairwise((0, *found.merges))))
    assert found.time_ms == pytest.approx(quickest(depth, times, found.activations))


def test_budgets_below_the_least_time_have_no_choice() -> None:
    times = published_latencies("vgg19")[0]
    importances = extended({Ends(*span): 0.0 for span in times})
    assert solve(16, fastest_merges(times), importances, 155.98) is None
    assert solve(16, fastest_merges(times), importances, 156.0).time_ms == pytest.approx(155.99, abs=5e-3)
    assert solve(16, fastest_merges(times), importances, math.inf) is not None


def test_normalising_takes_off_the_mean_of_single_layers() -> None:
    raw = {Ends(0, 1): -1.0, Ends(1, 2): -3.0, Ends(0, 2): -5.0}
    assert normalised(raw, 1.5) == {Ends(0, 1): 2.0, Ends(1, 2): 0.0, Ends(0, 2): -2.0}
    assert normalised({}, 1.5) == {}


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, dict[Span, float], dict[Ends, float]]:
    """Times and importances in eighths, so that sums are exact; every single layer has both."""
    depth = draw(st.integers(1, 5))
    spans = [(i, j) for i in range(depth) for j in range(i + 1, depth + 1) if j == i + 1 or draw(st.booleans())]
    times = {span: draw(st.integers(1, 40)) / 8 for span in spans}
    blocks = frozenset(draw(st.sets(st.integers(1, depth))))
    importances = {ends: draw(st.integers(-40, 40)) / 8 for span in spans for ends in in_states(span, blocks)}
    return depth, times, importances


def partitions(start: int, end: int) -> Iterator[tuple[int, ...]]:
    for count in range(end - start):
        for inside in itertools.combinations(range(start + 1, end), count):
            yield (start, *inside, end)


@settings(max_examples=80, deadline=None)
@given(cases())
def test_both_tables_equal_brute_force(case: tuple[int, dict[Span, float], dict[Ends, float]]) -> None:
    """Over all partitions whose every beginning is a segment itself, as the recursions have it."""
    _, times, importances = case
    for (start, end), split in fastest_merges(times).items():
        found = [
            sum(times[part] for part in itertools.pairwise(cut))
            for cut in partitions(start, end)
            if all(part in times for part in itertools.pairwise(cut)) and all((start, p) in times for p in cut[1:])
        ]
        assert split.value == min(found) == sum(times[part] for part in itertools.pairwise(split.positions))
    for (start, end, first, last), split in extended(importances).items():
        found = []
        for cut in partitions(start, end):
            states = {start: first, end: last}
            parts = [Ends(i, j, states.get(i, 0), states.get(j, 0)) for i, j in itertools.pairwise(cut)]
            begins = [Ends(start, p, first, states.get(p, 0)) for p in cut[1:]]
            if all(part in importances for part in (*parts, *begins)):
                found.append(sum(importances[part] for part in parts))
        assert split.value == max(found)


@settings(max_examples=80, deadline=None)
@given(cases(), st.integers(0, 120))
def test_choice_equals_brute_force(case: tuple[int, dict[Span, float], dict[Ends, float]], eighths: int) -> None:
    depth, times, importances = case
    fastest, best, budget = fastest_merges(times), extended(importances), eighths / 8
    found: list[tuple[float, float]] = []
    for cut in partitions(0, depth):
        for states in itertools.product((0, 1), repeat=len(cut) - 1):
            on = (1, *states)
            parts = [Ends(*part, a, b) for part, (a, b) in zip(itertools.pairwise(cut), itertools.pairwise(on))]
            if all(part in best for part in parts):
                time = sum(fastest[part[:2]].value for part in parts)
                if time <= budget:
                    found.append((sum(best[part].value for part in parts), -time))
    choice = solve(depth, fastest, best, budget, grid_ms=1 / 8)
    assert (choice is None) == (not found)
    if choice is not None:
        assert (choice.importance, -choice.time_ms) == max(found)


def test_activations_may_be_off_between_segments_at_ends_of_blocks() -> None:
    """The importance of a whole is the sum of parts with the activation between them off; the time merges across it."""
    times = {(0, 1): Split(2.0, (0, 1)), (1, 2): Split(2.0, (1, 2)), (0, 2): Split(1.0, (0, 2))}
    raw = {Ends(0, 1): 1.0, Ends(0, 1, 1, 0): 0.5, Ends(1, 2): 1.0, Ends(1, 2, 0, 1): 0.25, Ends(0, 2): -3.0}
    best = extended(raw)
    assert best[Ends(0, 2)] == Split(0.75, (0, 1, 2))
    merged, kept = solve(2, times, best, 1.5), solve(2, times, best, 4.0)
    assert (merged.activations, merged.merges, merged.importance) == ((2,), (2,), 0.75)
    assert (kept.activations, kept.merges, kept.importance) == ((1, 2), (1, 2), 2.0)


@pytest.mark.parametrize("build", [small, lambda: CifarResNet(1)], ids=["small", "resnet8"])
def test_choices_of_a_network_take_the_predicted_time(build) -> None:
    torch.manual_seed(0)
    module = randomise_norms(build())
    x = torch.randn(16, 3, 12, 12)
    base, costs = from_program(export_program(module, (x[:2],))), ByWork()
    statistics = collect(base.graph, sites(base), [x], channel_dims=channel_dims(base))
    reference, before = run(base, [x]), sum(milliseconds(base, costs).values())

    def damage_of(edits: Sequence[Edit]) -> float:
        return divergence(reference, run(replay(base, edits), [x]), classes=True)

    table = tables(base, costs, statistics, damage_of)
    for span, edits in table.edits.items():
        assert table.importances[Ends(*span)] == -damage_of(edits)
        saved = before - sum(milliseconds(replay(base, edits), costs).values())
        assert saved == pytest.approx(table.line.time_ms(span) - table.times_ms[span].value, abs=1e-9) and saved > 0
    assert choose(table, math.inf).edits == () and choose(table, 0.0) is None
    fastest = min(
        share for share in (0.99, 0.95, 0.9, 0.85, 0.8) if (choice := choose(table, share * before)) is not None
    )
    choice = choose(table, fastest * before)
    assert choice.spans and choice.predicted_ms <= fastest * before * (1 + 1e-12)
    assert choice.damage == pytest.approx(sum(table.damages[span] for span in choice.spans))
    after = sum(milliseconds(replay(base, choice.edits), costs).values())
    assert after == pytest.approx(choice.predicted_ms)


def test_pruning_too_is_never_worse_than_removing_activations_alone() -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 3, 32, 32)
    base, costs = from_program(export_program(randomise_norms(CifarResNet(1)), (x[:2],))), ByWork()
    statistics = collect(base.graph, sites(base), [x], channel_dims=channel_dims(base))
    reference, before = run(base, [x]), sum(milliseconds(base, costs).values())

    def damage_of(edits: Sequence[Edit]) -> float:
        return divergence(reference, run(replay(base, edits), [x]), classes=True)

    depth = tables(base, costs, statistics, damage_of)
    both = layermerge.tables(base, costs, statistics, damage_of)
    compared = 0
    for share in (0.98, 0.93, 0.88, 0.83):
        one, other = choose(depth, share * before, grid_ms=1e-6), layermerge.choose(both, share * before, grid_ms=1e-6)
        if one is not None:
            assert other.damage <= one.damage * (1 + 1e-9)
            compared += 1
    assert compared


def test_a_network_without_segments_is_left_alone() -> None:
    base = from_program(export_program(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), (torch.randn(2, 3, 4),)))
    table = tables(base, ByWork(), {}, lambda edits: pytest.fail("there is nothing to measure"))
    before = sum(milliseconds(base, ByWork()).values())
    assert choose(table, before, alpha=1.0).edits == () and choose(table, before / 2) is None
