"""Which predicted budget to probe next, given what the probes so far measured.

Planning works on a scale of prices, the limits are on the targets' own. Every probe ties a predicted price to the worst
of its measured ratios, measured / limit: 1 is exactly what was asked for. Between a probe that met the limits and one
that did not the next budget is interpolated (a secant within a bracket), outside it is scaled from the nearest. The
search stops when a probe met the limits without being needlessly fast, or when nothing lies between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NOTHING_BETWEEN = 2e-3  # of the predicted price: budgets closer than this give the same plan


@dataclass(frozen=True)
class Probe:
    """One measured candidate.

    Attributes:
        predicted: its plan's price.
        ratio: the worst of measured / limit.
        met: every limit is met by the whole interval of its measurement.
        smallest: planning has nothing smaller.
        budget: the largest budget that is known to give this plan, at least `predicted`.
    """

    predicted: float
    ratio: float
    met: bool
    smallest: bool = False
    budget: float = 0.0

    @property
    def reach(self) -> float:
        return max(self.budget, self.predicted)


def good_enough(probes: Sequence[Probe], tolerance: float) -> bool:
    """Whether a probe met the limits while being at most `tolerance` (a share) better than asked."""
    return any(probe.met and probe.ratio >= 1 - tolerance for probe in probes)


def next_budget(probes: Sequence[Probe], tolerance: float, fixed: float = 0.0) -> float | None:
    """The price to plan for next, or None when the search is over.

    Args:
        probes: the original network first, then every candidate.
        tolerance: as in `good_enough`; a third of it is what the search aims below the limit.
        fixed: price that every network costs besides its operators, and no plan's price holds.
    """
    met = [probe for probe in probes if probe.met]
    above = [probe for probe in probes if not probe.met]
    if good_enough(probes, tolerance) or not above or (not met and any(probe.smallest for probe in above)):
        return None
    aim = 1 - tolerance / 3
    if not met:
        return _extrapolated(sorted(above, key=lambda probe: probe.predicted), aim, fixed)
    fast = max(met, key=lambda probe: probe.reach)
    slower = [probe for probe in above if probe.predicted > fast.reach]
    if not slower:
        return None
    slow = min(slower, key=lambda probe: probe.predicted)
    room = slow.predicted - fast.reach
    if room <= NOTHING_BETWEEN * slow.predicted:
        return None
    share = (aim - fast.ratio) / max(slow.ratio - fast.ratio, 1e-12)
    budget = fast.predicted + share * (slow.predicted - fast.predicted)
    return min(max(budget, fast.reach + 0.1 * room), fast.reach + 0.9 * room)


def unordered(probes: Sequence[Probe]) -> list[tuple[Probe, Probe]]:
    """Pairs (planned for less, for more) of which the first was measured slower: the prediction misled there."""
    ordered = sorted(probes, key=lambda probe: probe.predicted)
    return [(less, more) for less, more in zip(ordered, ordered[1:]) if less.ratio > more.ratio]


def _extrapolated(above: Sequence[Probe], aim: float, fixed: float) -> float:
    """The budget at which the line through the two fastest probes meets the aim; one probe alone is scaled."""
    fastest = above[0]
    budget = aim * (fastest.predicted + fixed) / fastest.ratio - fixed
    if len(above) > 1:
        run, rise = above[1].predicted - fastest.predicted, above[1].ratio - fastest.ratio
        if run > 0 and rise > 0:
            budget = fastest.predicted - (fastest.ratio - aim) * run / rise
    return max(min(budget, 0.98 * fastest.predicted), 0.0)
