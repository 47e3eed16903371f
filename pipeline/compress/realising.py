"""The options of a plan applied, refits and narrowings fitted one behind the other.

For planning each was fitted on what the original computes. Here it is fitted on what the network that is already edited
feeds it, to what the original gives there: a later fit mends what earlier ones broke, and where a rectifier follows
only what passes it counts (`through`). A region that ends with a sum takes the skip into that bargain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from calibration.batchnorm import reestimate
from pipeline.compress.narrow import Narrower, narrow
from pipeline.compress.narrowing import shape_of as stretch_shape
from pipeline.compress.observation import moments_between, rows_between
from pipeline.compress.options import Option
from pipeline.compress.refit import Fitter, refit, shape_of
from pipeline.compress.through import cut_behind, fit_through
from pipeline.model.edits import replay
from pipeline.model.network import Network
from pipeline.model.operators import node_shapes


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
    if others := [edit for option in options if not (option.region or option.stretch) for edit in option.edits]:
        network = replay(base, others)
        reestimate(network.graph, batches, base.graph)
    fitted = [option for option in options if option.region or option.stretch]
    passed: dict[str, str] = {}  # a node that went -> the node its readers read now
    for number, option in enumerate(fitted, 1):
        progress(f"fitting {option.site} ({number} of {len(fitted)})")
        if option.stretch:
            network = _narrowed(network, option, base, shapes, batches)
        else:
            network = _refitted(network, option, base, shapes, batches, passed)
    return network


def _refitted(
    network: Network,
    option: Option,
    base: Network,
    shapes: dict[str, tuple[int, ...]],
    batches: Sequence[Tensor],
    passed: dict[str, str],
) -> Network:
    region, shape = option.region, shape_of(option.region, shapes)
    source = passed.get(region.source, region.source)
    layers = ()
    if option.form.kind == "identity":
        passed[region.end] = source
    elif cut := cut_behind(network, region.end):
        rows = rows_between(network, source, base, region.end, shape, batches)
        layers = fit_through(rows, shape, option.form, cut)
    else:
        regression = moments_between(network, source, base, region.end, shape, batches)
        layers = Fitter(regression, shape).fit(option.form).layers
    return replay(network, [refit(region, layers, skip=option.form.skip, source=source)])


def _narrowed(
    network: Network, option: Option, base: Network, shapes: dict[str, tuple[int, ...]], batches: Sequence[Tensor]
) -> Network:
    stretch, shape = option.stretch, stretch_shape(option.stretch, base, shapes)
    regression = moments_between(network, stretch.source, base, stretch.end, shape, batches)
    return replay(network, [narrow(stretch, *Narrower(regression, stretch.channels).fit(option.width))])
