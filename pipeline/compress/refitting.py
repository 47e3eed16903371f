"""The refits a network offers, each priced and measured, fitted on what the original computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from pipeline.compress.algebra import is_layer
from pipeline.compress.observation import moments_of, observed_enough
from pipeline.compress.options import Option
from pipeline.compress.refit import Fitter, Form, Shape, forms, operators, refit, shape_of
from pipeline.compress.regions import Region, regions
from pipeline.compress.tradeoff import damages, undominated
from pipeline.compress.truncate import ranks
from pipeline.model.edits import replay
from pipeline.model.network import Network
from pipeline.model.operators import describe, fuses, layer_operator, node_shapes, rectifiers_behind
from targets.operator import pointwise
from targets.price import Price

LEAST_SAVING = 0.005  # of the network's time; below it an option is not worth looking at


def refit_options(
    base: Network,
    batches: Sequence[Tensor],
    damage_of: Callable[[Network, int], float],
    costs: Price,
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
        if shape is None or (shape := observed_enough(shape, samples)) is None:
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
    for region, regression in moments_of(base, {region: shape for region, (shape, _) in wanted.items()}, batches):
        shape, savings = wanted[region]
        fitter = Fitter(regression, shape)
        residuals = {form: fitter.residual(form) for form in savings}
        kept = undominated(savings, residuals)
        progress(f"measuring the damage of refitting {region.site} .. {region.layers[-1]}")

        def measured(form: Form, region: Region = region, fitter: Fitter = fitter) -> float:
            edited = replay(base, [refit(region, fitter.fit(form).layers, skip=form.skip)])
            return damage_of(edited, region.span[0])

        harm = damages(kept, residuals, measured)
        for form in kept:
            found.append(
                Option(
                    "refit",
                    region.site,
                    region.span,
                    savings[form],
                    harm[form],
                    (refit(region, fitter.fit(form).layers, skip=form.skip),),
                    _summary(region, form, shape),
                    region=region,
                    form=form,
                )
            )
    covered = {layer for option in found for layer in option.region.layers} | {site for _, site, _ in rejected}
    rejected += [("refit", name, why) for name, why in _left_alone(base) if name not in covered]
    return found


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


def _forms(shape: Shape) -> list[Form]:
    return list(forms(shape, ranks(min(shape.in_channels, shape.out_channels))))


def _milliseconds_of(region: Region, network: Network, times: Mapping[str, float]) -> float:
    inside = set(region.nodes)
    nodes = (node for node in network.graph.graph.nodes if node.name in inside)
    return sum(times.get(node.target if node.op == "call_module" else node.name, 0.0) for node in nodes)


def _rectified(region: Region, shape: Shape, network: Network, costs: Price) -> Callable[[Form], float]:
    """What a form saves on the rectifiers behind a region, which fuse into a layer but not into a sum."""
    count = len(rectifiers_behind(network, region.end))
    each = count * costs.milliseconds(pointwise("clamp", shape.out_channels, shape.out_size)) if count else 0.0
    fused, passing = fuses(network, region.end), fuses(network, region.source)

    def saved(form: Form) -> float:
        fuses_then = passing if form.kind == "identity" else not form.skip
        return each * (fuses_then - fused)

    return saved


def _milliseconds_as(form: Form, shape: Shape, costs: Price) -> float:
    total, size = 0.0, shape.in_size
    for layer in operators(form, shape):
        with torch.device("meta"):
            module = layer.module()
        total += costs.milliseconds(layer_operator(module, size, shape.out_size))
        size = shape.out_size
    if form.skip:
        total += costs.milliseconds(pointwise("add", shape.out_channels, shape.out_size))
    return total


def _summary(region: Region, form: Form, shape: Shape) -> str:
    with torch.device("meta"):
        parts = [describe(layer.module()) for layer in operators(form, shape)]
    what = (" and ".join(parts) if parts else "nothing") + (" beside a skip" if form.skip else "")
    if len(region.layers) == 1:
        return f"it becomes {what}, fitted to the data"
    return f"{len(region.layers)} layers, {region.layers[0]} to {region.layers[-1]}, become {what}, fitted to the data"
