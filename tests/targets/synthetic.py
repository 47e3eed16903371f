"""Machines whose true speed is known, in the place of a runner: noise of many kinds, in the time of the samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy
from scipy.signal import lfilter
from scipy.stats import norm

from targets.runners import Job, Timing

Mood = Callable[[numpy.ndarray, numpy.random.Generator], numpy.ndarray]
"""(times in s [n], rng) -> [n] factors on the latency, with a median of 1."""


def independent(times: numpy.ndarray, rng: numpy.random.Generator) -> numpy.ndarray:
    return numpy.exp(0.05 * rng.standard_normal(len(times)))


def heavy_tailed(times: numpy.ndarray, rng: numpy.random.Generator) -> numpy.ndarray:
    """Student's t of 1.5 degrees of freedom: a mean, but no variance."""
    return numpy.exp((0.03 * rng.standard_t(1.5, len(times))).clip(-3, 3))


def autoregressive(phi: float, deviation: float = 0.02) -> Mood:
    """AR(1): the logarithm keeps `phi` of itself from sample to sample."""

    def mood(times: numpy.ndarray, rng: numpy.random.Generator) -> numpy.ndarray:
        shocks = rng.standard_normal(len(times)) * deviation
        shocks[1:] *= math.sqrt(1 - phi**2)
        return numpy.exp(lfilter([1], [1, -phi], shocks))

    return mood


def two_clocks(dwell_s: float, slow_share: float = 0.3) -> Mood:
    """A clock that is 20 % slower for `slow_share` of the time, in stays of about `dwell_s`."""

    def mood(times: numpy.ndarray, rng: numpy.random.Generator) -> numpy.ndarray:
        span = times[-1] - times[0] + 20 * dwell_s
        stays = numpy.resize([1 - slow_share, slow_share], 60 + int(3 * span / dwell_s)) * 2 * dwell_s
        ends = numpy.cumsum(stays * rng.exponential(size=len(stays)))
        slow = numpy.searchsorted(ends, times - times[0] + 20 * dwell_s) % 2
        median = math.exp(0.01 * norm.ppf(0.5 / (1 - slow_share)))
        return (1 + 0.2 * slow) * numpy.exp(0.01 * rng.standard_normal(len(times))) / median

    return mood


def wave(period_s: float, height: float = 0.02) -> Mood:
    def mood(times: numpy.ndarray, rng: numpy.random.Generator) -> numpy.ndarray:
        phase = 2 * math.pi * (times / period_s + rng.random())
        return (1 + height * numpy.sin(phase)) * numpy.exp(0.01 * rng.standard_normal(len(times)))

    return mood


class Machine:
    """Takes samples as a runner does: rounds of a block of about 0.1 s of every artifact, all in one time.

    Args:
        levels_ms: the true medians, of the baseline and the candidate.
        slowdowns: of each session in turn, by how much the machine is slower at its end than at its start, evenly;
            the last goes on.
        common: factors on whole rounds, over all sessions, as long as they last.
    """

    def __init__(
        self,
        seed: int,
        levels_ms: tuple[float, float] = (80.0, 50.0),
        mood: Mood = independent,
        slowdowns: Sequence[float] = (0.0,),
        common: Sequence[float] = (),
    ) -> None:
        self.rng = numpy.random.default_rng(seed)
        self.levels_ms, self.mood, self.slowdowns, self.common = levels_ms, mood, slowdowns, common
        self.asked_s: list[float] = []
        self.now_s, self.rounds = 0.0, 0

    def take(self, jobs: Sequence[Job], seconds: float) -> list[Timing]:
        slowdown = self.slowdowns[min(len(self.asked_s), len(self.slowdowns) - 1)]
        self.asked_s.append(seconds)
        levels = self.levels_ms[-len(jobs) :]
        blocks = [max(1, min(30, int(100 / level))) for level in levels]
        rounds = min(math.ceil(seconds * 1e3 / level / block) for level, block in zip(levels, blocks))
        nominal = numpy.tile(numpy.repeat(levels, blocks), rounds)
        job = numpy.tile(numpy.repeat(range(len(jobs)), blocks), rounds)
        times = self.now_s + numpy.cumsum(nominal) / 1e3
        self.now_s = times[-1] + 0.5
        factors = numpy.ones(rounds)
        known = self.common[self.rounds : self.rounds + rounds]
        factors[: len(known)] = known
        self.rounds += rounds
        latencies = nominal * self.mood(times, self.rng) * numpy.linspace(1, 1 + slowdown, len(times))
        latencies *= numpy.repeat(factors, sum(blocks))
        return [
            Timing(tuple(latencies[job == index].tolist()), "synthetic 1", None, None, {}, (blocks[index],) * rounds)
            for index in range(len(jobs))
        ]
