"""Chooses the edits that meet a predicted budget at the least measured damage.

For every level of merging (the k lowest-entropy useful sites, see `analysis`) the rest of the budget is met by
truncating layers that no merge touches: a multiple-choice knapsack over ranks, solved by dynamic programming. The
level and ranks with the least total damage win. What is not cheaper on the target was never an option.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.compress.analysis import Analysis, Level, Truncation
from pipeline.model.edits import Edit

BINS = 2000  # resolution of the knapsack: savings are rounded down to 1/2000 of what can be saved


@dataclass(frozen=True)
class Plan:
    """Edits for one budget.

    Attributes:
        edits: in the order they apply.
        budget_ms, predicted_ms: asked for and expected, both on the cost table's scale.
        damage: predicted output divergence before recovery.
        reachable: False when even the smallest network is predicted above the budget; the edits then make that one.
        level, truncations: what the edits were made from.
    """

    edits: tuple[Edit, ...]
    budget_ms: float
    predicted_ms: float
    damage: float
    reachable: bool
    level: Level
    truncations: tuple[Truncation, ...]


def plan(analysis: Analysis, budget_ms: float, least_sites: int = 0) -> Plan:
    """The least damaging plan whose predicted time is at most `budget_ms`, or the smallest there is.

    Args:
        least_sites: at least this many activations are linearised, or as many as are useful, whatever the damage.
    """
    deepest = max(len(level.sites) for level in analysis.levels)
    levels = [level for level in analysis.levels if len(level.sites) >= min(least_sites, deepest)]
    plans = [_at_level(analysis, level, budget_ms) for level in levels]
    reachable = [p for p in plans if p.reachable]
    if reachable:
        return min(reachable, key=lambda p: (p.damage, p.predicted_ms))
    return min(plans, key=lambda p: p.predicted_ms)


def _at_level(analysis: Analysis, level: Level, budget_ms: float) -> Plan:
    merged = {name for segment in level.segments for name in segment.layers}
    free = [options for layer, options in analysis.truncations.items() if layer not in merged]
    chosen = _least_damage(free, level.predicted_ms - budget_ms)
    predicted = level.predicted_ms - sum(t.saving_ms for t in chosen)
    return Plan(
        (*level.edits, *(t.edit for t in chosen)),
        budget_ms,
        predicted,
        level.damage + sum(t.damage for t in chosen),
        predicted <= budget_ms + 1e-12,
        level,
        chosen,
    )


def _least_damage(choices: Sequence[Sequence[Truncation]], needed_ms: float) -> tuple[Truncation, ...]:
    """At most one truncation a layer, saving at least `needed_ms` together; all the largest when that is too little."""
    if needed_ms <= 0:
        return ()
    largest = [max(options, key=lambda t: t.saving_ms) for options in choices]
    if sum(t.saving_ms for t in largest) <= needed_ms:
        return tuple(largest)
    bin_ms = needed_ms / BINS
    best = np.full(BINS + 1, np.inf)  # best[s]: least damage that saves at least s bins
    best[0] = 0.0
    picks: list[np.ndarray] = []
    reached = np.arange(BINS + 1)
    for options in choices:
        updated, pick = best.copy(), np.full(BINS + 1, -1)
        for i, option in enumerate(options):
            source = np.maximum(reached - int(option.saving_ms / bin_ms), 0)
            damage = best[source] + option.damage
            better = damage < updated
            updated[better], pick[better] = damage[better], i
        best = updated
        picks.append(pick)
    if not np.isfinite(best[BINS]):  # rounding down lost what was needed
        return tuple(largest)
    chosen, at = [], BINS
    for options, pick in zip(reversed(choices), reversed(picks), strict=True):
        if pick[at] >= 0:
            option = options[pick[at]]
            chosen.append(option)
            at = max(at - int(option.saving_ms / bin_ms), 0)
    return tuple(reversed(chosen))
