"""Depth compression in two stages (Kim, Jeong, Lee & Song, ICML 2023): which activations to remove, then what to merge.

Positions and segments are those of `layermerge`. Where LayerMerge ties merging to removing activations, here a segment
without activations inside may still be merged in parts:

    T_opt[i, j] = min(T[i, j], min over i < m < j of T_opt[i, m] + T[m, j])

and an importance I[i, j, a, b] also says whether the activations at its two ends are on (1) or off (0):

    I_ext[i, j, a, b] = max(I[i, j, a, b], max over m of I_ext[i, m, a, 0] + I[m, j, 0, b])
    M[m, t, b] = max over i, a of  M[i, t - T_opt[i, m], a] + I_ext[i, m, a, b]

`tables` and `choose` bind this to a network. Deviations there: importance is minus the measured output divergence, as
in `layermerge`; the merges are measured too, with the padding they move; and the states of the ends are those the
network has, written (1, 1), because no activation is added where it has none and nothing is trained.

needs: data. knob: the budget.
"""

from __future__ import annotations

import operator as python_operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from calibration.statistics import SiteStatistics
from pipeline.compress.layermerge import Line, Span, line
from pipeline.compress.linearize import channel_dims, linearize
from pipeline.compress.merge import merge
from pipeline.compress.paths import best_path
from pipeline.model.edits import Edit
from pipeline.model.network import Network
from targets.price import Price


class Ends(NamedTuple):
    """A segment, with the states of the activations at its ends: 1 on, 0 off."""

    start: int
    end: int
    start_state: int = 1
    end_state: int = 1


@dataclass(frozen=True)
class Split:
    """A value of a segment and the positions it comes from, its two ends among them."""

    value: float
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Depth:
    """A solution.

    Attributes:
        activations: positions at which the activation stays on (the paper's A), without 0.
        merges: positions between which everything becomes one layer (S, which holds A), without 0.
        importance, time_ms: of the segments between activations, summed.
    """

    activations: tuple[int, ...]
    merges: tuple[int, ...]
    importance: float
    time_ms: float


def fastest_merges(times_ms: Mapping[Span, float]) -> dict[Span, Split]:
    """T_opt: the least time of every segment, merged whole or in parts that are segments too.

    Whole where that is no slower; of equal splits the one with the earliest last cut.
    """
    best: dict[Span, Split] = {}
    for start, end in sorted(times_ms):
        split = Split(times_ms[start, end], (start, end))
        for cut in range(start + 1, end):
            if (start, cut) in best and (cut, end) in times_ms:
                before = best[start, cut]
                if before.value + times_ms[cut, end] < split.value:
                    split = Split(before.value + times_ms[cut, end], (*before.positions, end))
        best[start, end] = split
    return best


def normalised(importances: Mapping[Ends, float], alpha: float) -> dict[Ends, float]:
    """Importances less alpha times the mean over single layers, so that a sum does not favour many segments.

    The paper's alphas: 1.6 for MobileNetV2-1.0, 1.2 for MobileNetV2-1.4, 1.4 for VGG-19.
    """
    singles = [value for key, value in importances.items() if key.end - key.start == 1]
    offset = alpha * fmean(singles) if singles else 0.0
    return {key: value - offset for key, value in importances.items()}


def extended(importances: Mapping[Ends, float]) -> dict[Ends, Split]:
    """I_ext: a segment's importance, or a larger sum over parts with the activations between them off."""
    best: dict[Ends, Split] = {}
    for key in sorted(importances, key=lambda k: (k.start, k.end)):
        split = Split(importances[key], (key.start, key.end))
        for cut in range(key.start + 1, key.end):
            before = best.get(Ends(key.start, cut, key.start_state, 0))
            after = importances.get(Ends(cut, key.end, 0, key.end_state))
            if before is not None and after is not None and before.value + after > split.value:
                split = Split(before.value + after, (*before.positions, key.end))
        best[key] = split
    return best


def solve(
    depth: int,
    times_ms: Mapping[Span, Split],
    importances: Mapping[Ends, Split],
    budget_ms: float,
    *,
    grid_ms: float | None = None,
) -> Depth | None:
    """The most important activations to keep within the budget, each segment merged in its fastest way.

    Args:
        depth: position at the end of the chain, whose activation may be on or off.
        times_ms: T_opt. importances: I_ext, of segments that have a time.

    Returns:
        None when no choice fits; `paths.best_path` says how exact the choice is and how times are rounded.
    """
    rows = sorted(importances)
    path = best_path(
        [_node(row.start, row.start_state) for row in rows],
        [_node(row.end, row.end_state) for row in rows],
        [times_ms[row.start, row.end].value for row in rows],
        [importances[row].value for row in rows],
        budget_ms,
        goals=[_node(depth, 1), _node(depth, 0)],
        grid_ms=grid_ms,
    )
    if path is None:
        return None
    taken = [rows[row] for row in path.rows]
    return Depth(
        tuple(row.end for row in taken if row.end_state),
        tuple(position for row in taken for position in times_ms[row.start, row.end].positions[1:]),
        path.importance,
        path.time_ms,
    )


def _node(position: int, state: int) -> int:
    """Position and state as one number, 0 for position 0 with its activation on."""
    return 2 * position + (1 - state)


@dataclass(frozen=True)
class Tables:
    """T_opt and I of a network, with the edits that realise each span of more than one layer."""

    times_ms: Mapping[Span, Split]
    importances: Mapping[Ends, float]
    damages: Mapping[Span, float]
    edits: Mapping[Span, tuple[Edit, ...]]
    line: Line


def tables(
    network: Network,
    costs: Price,
    statistics: Mapping[str, SiteStatistics],
    damage_of: Callable[[tuple[Edit, ...]], float],
    *,
    importance_of: Callable[[float], float] = python_operator.neg,
    progress: Callable[[str], None] = lambda text: None,
) -> Tables:
    """Prices every segment and measures those that save time, with their activations linear and their parts merged.

    Args:
        statistics: the affine fits of the network's rectifiers, by site.
        damage_of: divergence, at least 0, of the network's outputs after edits of it; called once a segment.
        importance_of: of a damage, decreasing.
    """
    where, dims = line(network, costs), channel_dims(network)
    whole = {(at, at + 1): time for at, time in enumerate(where.single_ms)}
    whole |= {span: where.time_ms(span) - segment.saving_ms for span, segment in where.segments.items()}
    times = fastest_merges(whole)
    damages, edits = {(at, at + 1): 0.0 for at in range(len(where.layers))}, {}
    for span, segment in sorted(where.segments.items()):
        parts = [part for part in zip(times[span].positions, times[span].positions[1:]) if part in where.segments]
        if not parts or times[span].value >= where.time_ms(span):
            continue
        edits[span] = (
            *(
                linearize(site, statistics[site].slope, statistics[site].intercept, dims[site])
                for site in segment.sites
            ),
            *(merge(where.segments[part].layers, skip=where.segments[part].skip) for part in parts),
        )
        progress(f"measuring the damage of {segment.layers[0]} to {segment.layers[-1]} without activations between")
        damages[span] = damage_of(edits[span])
    return Tables(times, {Ends(*span): importance_of(d) for span, d in damages.items()}, damages, edits, where)


@dataclass(frozen=True)
class Choice:
    """What the dynamic programme takes from a network's tables.

    Attributes:
        spans: those of more than one layer, along the line.
        edits: theirs, in the order they apply.
        predicted_ms: the whole network's time afterwards, at most the budget.
        damage: the sum of theirs, each measured alone.
        depth: the positions on the line.
    """

    spans: tuple[Span, ...]
    edits: tuple[Edit, ...]
    predicted_ms: float
    damage: float
    depth: Depth


def choose(table: Tables, budget_ms: float, *, alpha: float = 0.0, grid_ms: float | None = None) -> Choice | None:
    """The most important choice whose predicted time is within the budget, or None when no choice is.

    Args:
        alpha: of `normalised`; without effect on the default importance, whose single layers have 0.
    """
    importances = extended(normalised(table.importances, alpha))
    depth = solve(len(table.line.layers), table.times_ms, importances, budget_ms - table.line.fixed_ms, grid_ms=grid_ms)
    if depth is None:
        return None
    spans = [span for span in zip((0, *depth.activations), depth.activations) if span in table.edits]
    return Choice(
        tuple(spans),
        tuple(edit for span in spans for edit in table.edits[span]),
        table.line.fixed_ms + depth.time_ms,
        sum(table.damages[span] for span in spans),
        depth,
    )
