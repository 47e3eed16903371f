"""What goes into a stretch of a network beside what comes out: the moments that fits are made from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Protocol, TypeVar

from torch import Tensor

from calibration.regression import Regression, RegressionMoments, RegressionRows
from pipeline.compress.refit import KERNELS, Shape
from pipeline.compress.taps import Taps
from pipeline.model.network import Network

ROWS_A_FEATURE, LEAST_ROWS = 8, 16384  # observations a fit takes, where the samples have as many
FEWEST_ROWS = 4  # a feature: with fewer a fit follows the samples, not the network
POSITIONS = 16  # of one sample at most, in a plan's fits: neighbours are alike, more samples say more
MOST_BYTES = 1 << 30  # of moments that are collected in one pass over the samples


class Observed(Protocol):
    """From the value of one node to that of another."""

    @property
    def source(self) -> str: ...

    @property
    def end(self) -> str: ...


Seen = TypeVar("Seen", bound=Observed)
Kept = TypeVar("Kept", bound=RegressionMoments)


def observed_enough(shape: Shape, samples: int) -> Shape | None:
    """The shape with the widest kernel that the samples can fit; None where they cannot fit even a pointwise one."""
    rows = samples * math.prod(shape.out_size)
    kernels = [k for k in KERNELS if k <= shape.kernel and rows >= FEWEST_ROWS * shape.in_channels * k * k]
    return replace(shape, kernel=kernels[-1]) if kernels else None


def moments_of(
    base: Network, wanted: Mapping[Seen, Shape], batches: Sequence[Tensor]
) -> Iterator[tuple[Seen, Regression]]:
    """(stretch, its `Regression`) for each, as many in one pass over the samples as memory allows."""
    samples = sum(len(batch) for batch in batches)
    group: dict[Seen, RegressionMoments] = {}
    size = 0
    for stretch, shape in wanted.items():
        bytes_ = 24 * (shape.in_channels * shape.kernel**2 + shape.out_channels) ** 2
        if group and size + bytes_ > MOST_BYTES:
            yield from _collected(base, group, batches)
            group, size = {}, 0
        group[stretch] = RegressionMoments(shape.kernel, shape.stride, _positions(shape, samples), tokens=shape.tokens)
        size += bytes_
    if group:
        yield from _collected(base, group, batches)


def _collected(
    base: Network, group: Mapping[Seen, RegressionMoments], batches: Sequence[Tensor]
) -> Iterator[tuple[Seen, Regression]]:
    sources, ends = {stretch.source: 0 for stretch in group}, {stretch.end: [] for stretch in group}
    for stretch in group:
        ends[stretch.end].append(stretch)
        sources[stretch.source] += 1
    held: dict[str, Tensor] = {}
    waiting: dict[str, int] = {}  # stretches that still need a source

    def see(name: str, value: Tensor) -> None:
        for stretch in ends.get(name, ()):
            group[stretch].add(held[stretch.source], value)
            waiting[stretch.source] -= 1
            if not waiting[stretch.source]:
                del held[stretch.source]
        if name in sources:
            held[name], waiting[name] = value.clone(), sources[name]  # a sum may work in place on it

    taps = Taps(base, sources.keys() | ends.keys(), see)
    for batch in batches:
        taps.show(batch)
    for stretch, moments in group.items():
        yield stretch, moments.regression


def moments_between(
    network: Network, source: str, base: Network, end: str, shape: Shape, batches: Sequence[Tensor]
) -> Regression:
    """From a node of an edited network to one of the original."""
    return _between(RegressionMoments, network, source, base, end, shape, batches).regression


def rows_between(
    network: Network, source: str, base: Network, end: str, shape: Shape, batches: Sequence[Tensor]
) -> RegressionRows:
    """The same with the observations, in the network's precision."""
    return _between(RegressionRows, network, source, base, end, shape, batches)


def _between(
    kind: type[Kept], network: Network, source: str, base: Network, end: str, shape: Shape, batches: Sequence[Tensor]
) -> Kept:
    places = 1 if shape.tokens else min(POSITIONS, math.prod(shape.out_size))
    used = _first(batches, -(-_rows(shape) // places))
    samples = sum(len(batch) for batch in used)
    moments = kind(shape.kernel, shape.stride, _positions(shape, samples), tokens=shape.tokens)
    seen: list[Tensor] = []

    def see(name: str, value: Tensor) -> None:
        seen.append(value.clone())

    entering, leaving = Taps(network, {source}, see), Taps(base, {end}, see)
    for batch in used:
        entering.show(batch)
        leaving.show(batch)
        moments.add(*seen)
        seen.clear()
    return moments


def _positions(shape: Shape, samples: int) -> int | None:
    """Output positions of a sample that a fit looks at."""
    if shape.tokens:
        return None
    return -(-_rows(shape) // samples)


def _rows(shape: Shape) -> int:
    """Observations that a fit takes."""
    return max(ROWS_A_FEATURE * shape.in_channels * shape.kernel**2, LEAST_ROWS)


def _first(batches: Sequence[Tensor], samples: int) -> list[Tensor]:
    """The first batches that hold so many samples, or all."""
    held = [0, *accumulate(len(batch) for batch in batches)]
    return [batch for batch, before in zip(batches, held) if before < samples]
