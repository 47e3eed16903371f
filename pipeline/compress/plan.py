"""Chooses the edits that meet a predicted budget at the least measured damage.

Every option covers a span of the graph; chosen ones may not overlap. Savings and damages add up, so the choice is a
knapsack over disjoint intervals, solved by dynamic programming over (position in the graph, saving so far): the least
damage of saving at least s with options that end before position p. What is not cheaper on the target was never an
option. A level (the k activations of lowest entropy made linear and merged, see `analysis`) may be demanded: the rest
of the budget is then met around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.compress.analysis import Analysis, Level
from pipeline.compress.options import Option, before, most_saving
from pipeline.model.edits import Edit

BINS = 2000  # resolution of the knapsack: savings are rounded down to 1/2000 of what is needed


@dataclass(frozen=True)
class Plan:
    """Options for one budget.

    Attributes:
        options: disjoint, in the order of the graph.
        budget_ms, predicted_ms: asked for and expected, both on the cost table's scale.
        damage: predicted output divergence before recovery.
        reachable: False when even the smallest network is predicted above the budget; the edits then make that one.
    """

    options: tuple[Option, ...]
    budget_ms: float
    predicted_ms: float
    damage: float
    reachable: bool

    @property
    def edits(self) -> tuple[Edit, ...]:
        """As planned, each fitted on the original alone; `refitting.realise` applies a plan."""
        return tuple(edit for option in self.options for edit in option.edits)

    @property
    def sites(self) -> tuple[str, ...]:
        """The activations that become linear."""
        return tuple(site for option in self.options for site in option.sites)


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
    free = [option for option in analysis.options if not any(option.overlaps(merge) for merge in level.options)]
    chosen = least_damage(free, level.predicted_ms - budget_ms)
    predicted = level.predicted_ms - sum(option.saving_ms for option in chosen)
    return Plan(
        tuple(sorted((*level.options, *chosen), key=lambda option: option.span)),
        budget_ms,
        predicted,
        level.damage + sum(option.damage for option in chosen),
        predicted <= budget_ms + 1e-12,
    )


def least_damage(options: Sequence[Option], needed_ms: float) -> tuple[Option, ...]:
    """Disjoint options that save at least `needed_ms` together; where none do, those that save the most.

    Exact up to the rounding of savings to `needed_ms` / `BINS`: no choice of disjoint options whose rounded savings
    suffice has less damage.
    """
    if needed_ms <= 0:
        return ()
    bin_ms = needed_ms / BINS
    chosen = _search(options, [int(option.saving_ms / bin_ms) for option in options], BINS)
    return chosen if chosen is not None else most_saving(options)


def _search(options: Sequence[Option], savings: Sequence[int], needed: int) -> tuple[Option, ...] | None:
    """Disjoint options of the least damage whose whole savings come to `needed`; None where no choice does."""
    order = sorted(range(len(options)), key=lambda i: options[i].span[1])
    ends = sorted({option.span[1] for option in options})
    reached = np.arange(needed + 1)
    best = [np.full(needed + 1, np.inf)]  # best[p][s]: with options up to the p-th end, saving at least s
    best[0][0] = 0.0
    picks: list[np.ndarray] = []
    for end in ends:
        damage, pick = best[-1].copy(), np.full(needed + 1, -1)
        for i in order:
            if options[i].span[1] != end:
                continue
            earlier = best[before(options[i], ends)]
            with_it = earlier[np.maximum(reached - savings[i], 0)] + options[i].damage
            better = with_it < damage
            damage[better], pick[better] = with_it[better], i
        best.append(damage)
        picks.append(pick)
    if not np.isfinite(best[-1][needed]):
        return None
    chosen, place, saving = [], len(ends), needed
    while place:
        i = picks[place - 1][saving]
        if i < 0:
            place -= 1
            continue
        chosen.append(options[i])
        place, saving = before(options[i], ends), max(saving - savings[i], 0)
    return tuple(reversed(chosen))
