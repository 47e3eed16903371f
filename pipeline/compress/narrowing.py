"""The narrowings a network offers, each priced and measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from pipeline.compress.narrow import Narrower, Stretch, narrow, stretches
from pipeline.compress.observation import moments_of, observed_enough
from pipeline.compress.options import Option
from pipeline.compress.refit import MOST_FEATURES, Shape
from pipeline.compress.refitting import LEAST_SAVING
from pipeline.compress.tradeoff import damages, undominated
from pipeline.compress.truncate import ranks
from pipeline.model.edits import replay
from pipeline.model.network import Network
from pipeline.model.operators import node_shapes, operators
from targets.operator import Operator
from targets.price import Price


def narrow_options(
    base: Network,
    batches: Sequence[Tensor],
    damage_of: Callable[[Network, int], float],
    costs: Price,
    base_ms: float,
    rejected: list[tuple[str, str, str]],
    progress: Callable[[str], None],
) -> list[Option]:
    """The narrowings of every stretch that save time and are not dominated; the damage of two of each is measured.

    Args:
        batches: what the second layers are fitted to.
        damage_of: measures on other samples a network that was edited from some place in the graph on; it is asked in
            the order of these places.
    """
    shapes, samples = node_shapes(base), sum(len(batch) for batch in batches)
    priced = {row.name: row.operator for row in operators(base)}
    wanted: dict[Stretch, Shape] = {}
    savings: dict[Stretch, dict[int, float]] = {}
    for stretch in stretches(base):
        shape = shape_of(stretch, base, shapes)
        if shape.in_channels * shape.kernel**2 > MOST_FEATURES or observed_enough(shape, samples) != shape:
            why = f"{stretch.last} reads more channels and taps than a fit takes, or than the samples are enough for"
            rejected.append(("narrow", stretch.first, why))
            continue
        before = _milliseconds(stretch, stretch.channels, priced, costs)
        saved = {w: before - _milliseconds(stretch, w, priced, costs) for w in ranks(stretch.channels)}
        if useful := {width: ms for width, ms in saved.items() if ms > LEAST_SAVING * base_ms}:
            wanted[stretch], savings[stretch] = shape, useful
        else:
            why = f"no width saves {LEAST_SAVING:.1%} of the network; up to {stretch.last} it takes {before:.4f} ms"
            rejected.append(("narrow", stretch.first, why))
    progress(f"least squares for {len(wanted)} stretches that may be narrower")
    found: list[Option] = []
    for stretch, regression in moments_of(base, wanted, batches):
        narrower = Narrower(regression, stretch.channels)
        residuals = {width: narrower.residual(width) for width in savings[stretch]}
        kept = undominated(savings[stretch], residuals)
        progress(f"measuring the damage of narrowing {stretch.first} .. {stretch.last}")

        def measured(width: int, stretch: Stretch = stretch, narrower: Narrower = narrower) -> float:
            return damage_of(replay(base, [narrow(stretch, *narrower.fit(width))]), stretch.span[0])

        harm = damages(kept, residuals, measured)
        found += [
            Option(
                "narrow",
                stretch.first,
                stretch.span,
                savings[stretch][width],
                harm[width],
                (narrow(stretch, *narrower.fit(width)),),
                f"{width} of {stretch.channels} channels stay behind it; {stretch.last} is fitted to read them",
                stretch=stretch,
                width=width,
            )
            for width in kept
        ]
    return found


def shape_of(stretch: Stretch, network: Network, shapes: Mapping[str, tuple[int, ...]]) -> Shape:
    """What the last layer of a stretch reads and gives."""
    inside, out = shapes[stretch.source], shapes[stretch.end]
    if stretch.tokens:
        rows = math.prod(out[1:-1])
        return Shape(inside[-1], out[-1], (rows, 1), (rows, 1), True, 1)
    kernel = network.layer(stretch.last).kernel_size[0]
    return Shape(inside[1], out[1], tuple(inside[2:]), tuple(out[2:]), False, kernel)


def _milliseconds(stretch: Stretch, width: int, priced: Mapping[str, Operator], costs: Price) -> float:
    """Of the whole stretch with `width` channels between its layers."""
    rows = [replace(priced[stretch.first], out_channels=width), replace(priced[stretch.last], in_channels=width)]
    for name in stretch.inner:
        if name in priced:
            groups = width if priced[name].groups > 1 else 1
            rows.append(replace(priced[name], in_channels=width, out_channels=width, groups=groups))
    return sum(costs.milliseconds(row) for row in rows)
