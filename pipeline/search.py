"""Which predicted budget to probe next, given what the probes so far measured.

Planning works on the cost table's scale, the goal is on the target's. Every probe ties a predicted time to a measured
one; between a probe that met the goal and one that did not the next budget is interpolated, outside it is scaled from
the nearest. The search stops when a probe met the goal without being needlessly fast, or when nothing lies between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Probe:
    """One measured candidate.

    Attributes:
        predicted_ms: its plan's predicted time.
        measured_ms: median of its artifact on the target.
        met: the whole interval of the measurement is within the goal.
        smallest: planning has nothing smaller.
    """

    predicted_ms: float
    measured_ms: float
    met: bool
    smallest: bool = False


def good_enough(probes: Sequence[Probe], goal_ms: float, tolerance: float) -> bool:
    """Whether a probe met the goal while being at most `tolerance` (a share) faster than asked."""
    return any(probe.met and probe.measured_ms >= (1 - tolerance) * goal_ms for probe in probes)


def next_budget(probes: Sequence[Probe], goal_ms: float, tolerance: float) -> float | None:
    """Predicted milliseconds to plan for next, or None when the search is over.

    Args:
        probes: the original network first, then every candidate.
        goal_ms: latency asked for, on the target's scale.
        tolerance: as in `good_enough`; a third of it is what the search aims below the goal.
    """
    met = [probe for probe in probes if probe.met]
    above = [probe for probe in probes if not probe.met]
    if good_enough(probes, goal_ms, tolerance) or not above or any(probe.smallest for probe in above):
        return None
    aim = goal_ms * (1 - tolerance / 3)
    slow = min(above, key=lambda probe: probe.predicted_ms)
    if not met:
        return _extrapolated(sorted(above, key=lambda probe: probe.predicted_ms), aim)
    fast = max(met, key=lambda probe: probe.predicted_ms)
    if fast.predicted_ms >= slow.predicted_ms:
        return None  # a larger plan met and a smaller one did not: the prediction has nothing more to say
    share = (aim - fast.measured_ms) / max(slow.measured_ms - fast.measured_ms, 1e-12)
    return fast.predicted_ms + min(max(share, 0.1), 0.9) * (slow.predicted_ms - fast.predicted_ms)


def _extrapolated(above: Sequence[Probe], aim_ms: float) -> float:
    """The budget at which the line through the two fastest probes meets the aim; one probe alone is scaled."""
    fastest = above[0]
    budget = aim_ms * fastest.predicted_ms / fastest.measured_ms
    if len(above) > 1:
        run, rise = above[1].predicted_ms - fastest.predicted_ms, above[1].measured_ms - fastest.measured_ms
        if run > 0 and rise > 0:
            budget = fastest.predicted_ms - (fastest.measured_ms - aim_ms) * run / rise
    return max(min(budget, 0.98 * fastest.predicted_ms), 0.0)
