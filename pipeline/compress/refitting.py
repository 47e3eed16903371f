"""The refits a network offers, each priced and measured, and the refits of a plan, fitted one behind the other.

For planning every region is fitted on what the original computes. In a plan each is fitted on what the network that is
already edited feeds it, to what the original gives there: a later fit mends what earlier ones broke. A region that ends
with a sum takes the skip into that bargain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from calibration.batchnorm import reestimate
from calibration.regression import Regression, RegressionMoments
from pipeline.compress.algebra import is_layer
from pipeline.compress.options import Option
from pipeline.compress.refit import KERNELS, Fitter, Form, Shape, forms, operators, refit, shape_of
from pipeline.compress.regions import Region, regions
from pipeline.compress.taps import Taps
from pipeline.compress.truncate import ranks
from pipeline.model.edits import replay
from pipeline.model.network import Network
from pipeline.model.operators import describe, fuses, layer_operator, node_shapes, rectifiers_behind
from targets.cost import CostTable
from targets.operator import pointwise

LEAST_SAVING = 0.005  # of the network's time; below it a refit is not worth looking at
ROWS_A_FEATURE, LEAST_ROWS = 8, 16384  # observations a fit takes, where the samples have as many
FEWEST_ROWS = 4  # a feature: with fewer a fit follows the samples, not the network
POSITIONS = 64  # of one sample at most, in a plan's fits
POWERS = (0.5, 4.0)  # of the residual that damage may rise with
MOST_BYTES = 1 << 30  # of moments that are collected in one pass over the samples


def refit_options(
    base: Network,
    batches: Sequence[Tensor],
    damage_of: Callable[[Network, int], float],
    costs: CostTable,
    times: Mapping[str, float],
    rejected: list[tuple[str, str, str]],
    progress: Callable[[str], None],
) -> list[Option]:
    """The refits of every region that save time and are not dominated: none saves more at a smaller residual.

    The damage of two forms a region is measured; that of the others follows from their residuals.

    Args:
        batches: what the refits are fitted to.
        damage_of: measures on other samples a network that was edited from some place in the graph on; it is asked in
            the order of these places.
    """
    shapes, samples = node_shapes(base), sum(len(batch) for batch in batches)
    wanted: dict[Region, tuple[Shape, dict[Form, float]]] = {}
    for region in sorted(regions(base), key=lambda region: region.span):
        shape = shape_of(region, shapes)
        if shape is None or (shape := _observed_enough(shape, samples)) is None:
            continue
        rectified = _rectified(region, shape, base, costs)
        before = _milliseconds_of(region, base, times)
        savings = {form: before - _milliseconds_as(form, shape, costs) + rectified(form) for form in _forms(shape)}
        useful = {form: saving for form, saving in savings.items() if saving > LEAST_SAVING * sum(times.values())}
        if useful:
            wanted[region] = shape, useful
        else:
            best = max(savings, key=savings.__getitem__)
            rejected.append(
                (
                    "refit",
                    region.site,
                    f"the cheapest form takes {before - savings[best]:.4f} ms, "
                    f"the {len(region.layers)} layers up to {region.layers[-1]} take {before:.4f} ms",
                )
            )
    progress(f"least squares for {len(wanted)} regions")
    found: list[Option] = []
    for region, regression in _moments(base, {region: shape for region, (shape, _) in wanted.items()}, batches):
        shape, savings = wanted[region]
        fitter = Fitter(regression, shape)
        residuals = {form: fitter.residual(form) for form in savings}
        kept = [form for form in savings if not _dominated(form, savings, residuals)]
        progress(f"measuring the damage of refitting {region.site} .. {region.layers[-1]}")

        def measured(form: Form, region: Region = region, fitter: Fitter = fitter) -> float:
            edited = replay(base, [refit(region, fitter.fit(form).layers, skip=form.skip)])
            return damage_of(edited, region.span[0])

        damages = _curve(kept, residuals, measured)
        for form in kept:
            found.append(
                Option(
                    "refit",
                    region.site,
                    region.span,
                    savings[form],
                    damages[form],
                    (refit(region, fitter.fit(form).layers, skip=form.skip),),
                    _summary(region, form, shape),
                    region=region,
                    form=form,
                )
            )
    covered = {layer for option in found for layer in option.region.layers} | {site for _, site, _ in rejected}
    rejected += [("refit", name, why) for name, why in _left_alone(base) if name not in covered]
    return found


def _observed_enough(shape: Shape, samples: int) -> Shape | None:
    """The shape with the widest kernel that the samples can fit; None where they cannot fit even a pointwise one."""
    rows = samples * math.prod(shape.out_size)
    kernels = [k for k in KERNELS if k <= shape.kernel and rows >= FEWEST_ROWS * shape.in_channels * k * k]
    return replace(shape, kernel=kernels[-1]) if kernels else None


def _left_alone(network: Network) -> Iterator[tuple[str, str]]:
    """(layer, why) of every layer with weights, for those that no option is about."""
    editable = network.editable()
    for name, layer in network.layers().items():
        if getattr(layer, "weight", None) is None or layer.weight.ndim < 2:
            continue
        if name not in editable:
            yield name, "it is used at several places, or its weights are read elsewhere"
        elif not is_layer(layer):
            yield name, f"there is no refit of a {type(layer).__name__}"
        else:
            yield name, "no stretch with it has a cheaper form that the samples are enough to fit"


def realise(
    base: Network,
    options: Sequence[Option],
    batches: Sequence[Tensor],
    progress: Callable[[str], None] = lambda text: None,
) -> Network:
    """The network with the options applied.

    First what is no refit, all of it, with the norms re-estimated; then each refit in the order of the graph, fitted
    behind everything else.

    Args:
        options: disjoint, in the order of the graph.
        batches: [B, ...] of calibration data.
    """
    network, shapes = base.copy(), node_shapes(base)
    if others := [edit for option in options if option.region is None for edit in option.edits]:
        network = replay(base, others)
        reestimate(network.graph, batches, base.graph)
    refits = [option for option in options if option.region is not None]
    passed: dict[str, str] = {}  # a node that went -> the node its readers read now
    for number, option in enumerate(refits, 1):
        region, shape = option.region, shape_of(option.region, shapes)
        progress(f"fitting {option.site} ({number} of {len(refits)})")
        source = passed.get(region.source, region.source)
        layers = Fitter(_between(network, source, base, region, shape, batches), shape).fit(option.form).layers
        if not layers:
            passed[region.end] = source
        network = replay(network, [refit(region, layers, skip=option.form.skip, source=source)])
    return network


def _forms(shape: Shape) -> list[Form]:
    return list(forms(shape, ranks(min(shape.in_channels, shape.out_channels))))


def _milliseconds_of(region: Region, network: Network, times: Mapping[str, float]) -> float:
    inside = set(region.nodes)
    nodes = (node for node in network.graph.graph.nodes if node.name in inside)
    return sum(times.get(node.target if node.op == "call_module" else node.name, 0.0) for node in nodes)


def _rectified(region: Region, shape: Shape, network: Network, costs: CostTable) -> Callable[[Form], float]:
    """What a form saves on the rectifiers behind a region, which fuse into a layer but not into a sum."""
    count = len(rectifiers_behind(network, region.end))
    each = count * costs.milliseconds(pointwise("clamp", shape.out_channels, shape.out_size)) if count else 0.0
    fused, passing = fuses(network, region.end), fuses(network, region.source)

    def saved(form: Form) -> float:
        fuses_then = passing if form.kind == "identity" else not form.skip
        return each * (fuses_then - fused)

    return saved


def _milliseconds_as(form: Form, shape: Shape, costs: CostTable) -> float:
    total, size = 0.0, shape.in_size
    for layer in operators(form, shape):
        with torch.device("meta"):
            module = layer.module()
        total += costs.milliseconds(layer_operator(module, size, shape.out_size))
        size = shape.out_size
    if form.skip:
        total += costs.milliseconds(pointwise("add", shape.out_channels, shape.out_size))
    return total


def _curve(
    forms_: Sequence[Form], residuals: Mapping[Form, float], measured: Callable[[Form], float]
) -> dict[Form, float]:
    """Damage of each form: the power of the residual through what two of them were measured to do.

    The two are the most harmful form and the one in the middle; the power is held within `POWERS`, for a small damage
    is measured badly.
    """
    ordered = sorted(forms_, key=residuals.__getitem__)
    worst, middle = ordered[-1], ordered[(len(ordered) - 1) // 2]
    most = measured(worst)
    if residuals[middle] >= residuals[worst]:
        return dict.fromkeys(forms_, most)
    fall = math.log(max(most, 1e-9) / max(measured(middle), 1e-9))
    rise = math.log(max(residuals[middle] / residuals[worst], 1e-12))
    power = min(max(-fall / rise, POWERS[0]), POWERS[1])
    return {form: most * (residuals[form] / residuals[worst]) ** power for form in forms_}


def _dominated(form: Form, savings: Mapping[Form, float], residuals: Mapping[Form, float]) -> bool:
    return any(
        savings[other] >= savings[form] and residuals[other] <= residuals[form] and other != form
        and (savings[other], residuals[other]) != (savings[form], residuals[form])
        for other in savings
    )  # fmt: skip


def _summary(region: Region, form: Form, shape: Shape) -> str:
    with torch.device("meta"):
        parts = [describe(layer.module()) for layer in operators(form, shape)]
    what = (" and ".join(parts) if parts else "nothing") + (" beside a skip" if form.skip else "")
    if len(region.layers) == 1:
        return f"it becomes {what}, fitted to the data"
    return f"{len(region.layers)} layers, {region.layers[0]} to {region.layers[-1]}, become {what}, fitted to the data"


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


def _moments(
    base: Network, wanted: Mapping[Region, Shape], batches: Sequence[Tensor]
) -> Iterator[tuple[Region, Regression]]:
    """(region, its `Regression`) for each, as many in one pass over the samples as memory allows."""
    samples = sum(len(batch) for batch in batches)
    group: dict[Region, RegressionMoments] = {}
    size = 0
    for region, shape in wanted.items():
        bytes_ = 24 * (shape.in_channels * shape.kernel**2 + shape.out_channels) ** 2
        if group and size + bytes_ > MOST_BYTES:
            yield from _collected(base, group, batches)
            group, size = {}, 0
        group[region] = RegressionMoments(shape.kernel, shape.stride, _positions(shape, samples), tokens=shape.tokens)
        size += bytes_
    if group:
        yield from _collected(base, group, batches)


def _collected(
    base: Network, group: Mapping[Region, RegressionMoments], batches: Sequence[Tensor]
) -> Iterator[tuple[Region, Regression]]:
    sources, ends = {region.source: 0 for region in group}, {region.end: [] for region in group}
    for region in group:
        ends[region.end].append(region)
        sources[region.source] += 1
    held: dict[str, Tensor] = {}
    waiting: dict[str, int] = {}  # regions that still need a source

    def see(name: str, value: Tensor) -> None:
        for region in ends.get(name, ()):
            group[region].add(held[region.source], value)
            waiting[region.source] -= 1
            if not waiting[region.source]:
                del held[region.source]
        if name in sources:
            held[name], waiting[name] = value.clone(), sources[name]  # a sum may work in place on it

    taps = Taps(base, sources.keys() | ends.keys(), see)
    for batch in batches:
        taps.show(batch)
    for region, moments in group.items():
        yield region, moments.regression


def _between(
    network: Network, source: str, base: Network, region: Region, shape: Shape, batches: Sequence[Tensor]
) -> Regression:
    """From what the edited network feeds the region to what the original gives there."""
    places = 1 if shape.tokens else min(POSITIONS, math.prod(shape.out_size))
    used = _first(batches, -(-_rows(shape) // places))
    samples = sum(len(batch) for batch in used)
    moments = RegressionMoments(shape.kernel, shape.stride, _positions(shape, samples), tokens=shape.tokens)
    seen: list[Tensor] = []

    def see(name: str, value: Tensor) -> None:
        seen.append(value.clone())

    entering, leaving = Taps(network, {source}, see), Taps(base, {region.end}, see)
    for batch in used:
        entering.show(batch)
        leaving.show(batch)
        moments.add(*seen)
        seen.clear()
    return moments.regression
