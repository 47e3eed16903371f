"""The rate for a recovery of so many steps, found by trying some for a twentieth of them.

What a network bears differs by orders of magnitude, and a longer recovery does best at a larger rate. Rates are tried
from the asked one down, each with a whole schedule of its own over the trial's steps, until one does worse than the one
before. The recovery is given the one above the best, if the network bore it: over twenty times as many steps the best
rate is about three times as large. (The example's network comes nearest in 20 steps at 3e-4 and in 400 at 1e-3; a
ResNet-56 cut to 40 % comes nearer in 120 steps at 1e-4 than in 400 at 1e-3.)

A recovery without room for that keeps the asked rate: a few steps say nothing of many. (A ResNet-56 pruned to half has
68.6 % after 71 steps at the rate that four of them suggest, 78.3 % at the asked one.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.compress.descent import Progress

RUNGS, RUNG = 6, 10**0.5  # rates that may be tried, one over the next
SHARE, LEAST_STEPS = 0.05, 16  # of the recovery's steps that each is tried for; fewer say nothing of so many
ROOM = 10  # times as long that a recovery must be as a trial
BORNE = 4.0  # times as far from the aim that a trial may end
HOPELESS = 30.0  # times as large that the loss may become in a trial, which ends there


@dataclass(frozen=True)
class Found:
    """The learning rate, and how many steps it took to find it."""

    rate: float
    steps: int


class _Lost(Exception):
    """The rate that is tried has set the network back too far."""


def trial_steps(steps: int) -> int:
    """For how many steps a recovery of `steps` tries a rate; 0 where it has no room for that."""
    trial = max(LEAST_STEPS, round(SHARE * steps))
    return trial if steps >= ROOM * trial else 0


def find_rate(asked: float, attempt: Callable[[float, Progress], float], before: float, progress: Progress) -> Found:
    """The rate to train at, the asked one or less.

    Args:
        attempt: trains at a rate, tells (steps made, loss) after every step, and returns how far from the aim it ends.
        before: how far that is where the training begins.
        progress: called with (steps made in all, loss) after every step.
    """
    ends: list[float] = []  # of each rate; inf where it was lost
    made = 0
    for rung in range(RUNGS):
        first = math.nan

        def told(step: int, loss: float) -> None:
            nonlocal made, first
            made += 1
            progress(made, loss)
            first = loss if math.isnan(first) else first
            if not loss < HOPELESS * first:  # also where it is not a number
                raise _Lost

        try:
            end = attempt(asked / RUNG**rung, told)
        except _Lost:
            end = math.inf
        ends.append(end if end < BORNE * before else math.inf)
        if rung and math.inf > ends[-1] >= ends[-2]:
            break
    best = min(range(len(ends)), key=ends.__getitem__)
    if math.isinf(ends[best]):
        best = len(ends) - 1
    elif best and ends[best] < before and ends[best - 1] < math.inf:
        best -= 1
    return Found(asked / RUNG**best, made)
