"""Finds the chains of layers that could become one layer, and prices each against what it replaces.

A trunk is a maximal chain of layers, norms and rectifiers in which every value has exactly one reader. A segment is a
stretch of a trunk that starts and ends with a layer (and its norm); the rectifiers inside it must be linearised first.
A segment whose input is added to its output swallows that skip connection (LayerMerge, ICML 2024, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn

from pipeline.compress.algebra import (
    composed,
    is_layer,
    is_scaling,
    moves_padding,
    shape_of,
    takes_skip,
)
from pipeline.compress.linearize import RECTIFIERS
from pipeline.compress.merge import skip_addition
from pipeline.model.network import Network, probe_shapes
from pipeline.model.operators import describe, layer_operator, milliseconds, operators, rectifiers_behind
from targets.price import Price

LONGEST = 6  # layers in one segment; longer ones have kernels no target is fast at


@dataclass(frozen=True)
class Segment:
    """A chain that can be merged.

    Attributes:
        trunk: name of the first link of the trunk it is a stretch of.
        span: positions of its first and last link in that trunk.
        layers: names of the chain in execution order, layers, norms and rectifiers.
        sites: the rectifiers among them.
        skip: the chain's own input is added to its output, and the merged layer absorbs that.
        before_ms, after_ms: predicted time of the chain, with what fuses behind it once it is merged, and of the layer.
        moves_padding: merging changes the function near the border.
        becomes: the merged layer in words.
    """

    trunk: str
    span: tuple[int, int]
    layers: tuple[str, ...]
    sites: tuple[str, ...]
    skip: bool
    before_ms: float
    after_ms: float
    moves_padding: bool
    becomes: str

    @property
    def saving_ms(self) -> float:
        return self.before_ms - self.after_ms

    @property
    def summary(self) -> str:
        """What merging does, in words."""
        border = "; near the border it differs, the padding moved to the front" if self.moves_padding else ""
        return f"{' + '.join(self.layers)} become one {self.becomes}{border}"


def segments(network: Network, costs: Price) -> list[Segment]:
    """Every segment of the network with at least two layers, cheaper or not."""
    times = milliseconds(network, costs)
    maps = {row.name: row.operator for row in operators(network)}
    found = []
    for trunk in _trunks(network):
        kinds = [network.layer(node.target) for node in trunk]
        for start in range(len(trunk)):
            if is_layer(kinds[start]):
                found += _from(network, trunk, kinds, start, times, maps, costs)
    return found


def merge_span(network: Network, segment: Segment, place: Mapping[str, int]) -> tuple[int, int]:
    """Positions in the graph of the first and the last node that merging a segment replaces.

    Args:
        place: of every node and layer, see `options.positions`.
    """
    first, last = place[segment.layers[0]], place[segment.layers[-1]]
    if segment.skip:
        addition = skip_addition(network.node(segment.layers[-1]), network.node(segment.layers[0]).args[0])
        last = place[addition.name]
    return first, last


def _trunks(network: Network) -> list[list[fx.Node]]:
    calls = [node for node in network.graph.graph.nodes if node.op == "call_module"]
    editable = network.editable()
    ranks = {name: len(shape) for name, (shape, _) in probe_shapes(network).items()}
    links = {
        node
        for node in calls
        if node.target in editable and _links(network.layer(node.target), ranks[node.target], _maker(network, node))
    }
    trunks = []
    for node in calls:
        if node not in links or _continues(node, links):
            continue
        trunk = [node]
        while len(trunk[-1].users) == 1 and (following := next(iter(trunk[-1].users))) in links:
            trunk.append(following)
        trunks.append(trunk)
    return trunks


def _links(module: nn.Module, rank: int, maker: nn.Module | None) -> bool:
    """Whether a module can be part of a chain; a batch norm only where it scales what its maker gives, channels."""
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        return rank == 2 if isinstance(maker, nn.Linear) else isinstance(maker, nn.Conv2d)
    return is_layer(module) or is_scaling(module) or isinstance(module, RECTIFIERS)


def _maker(network: Network, node: fx.Node) -> nn.Module | None:
    """The layer whose output reaches `node` through norms and rectifiers alone."""
    source = node.args[0]
    while source.op == "call_module":
        module = network.layer(source.target)
        if is_layer(module):
            return module
        source = source.args[0]
    return None


def _continues(node: fx.Node, links: set[fx.Node]) -> bool:
    source = node.args[0]
    return source in links and len(source.users) == 1


def _from(
    network: Network,
    trunk: Sequence[fx.Node],
    kinds: Sequence[nn.Module],
    start: int,
    times: Mapping[str, float],
    maps: Mapping[str, object],
    costs: Price,
) -> list[Segment]:
    """The segments that begin at `start`, one for every later layer of the trunk."""
    found: list[Segment] = []
    merged, moved, layers = shape_of(kinds[start]), False, 1
    first = trunk[start].target
    for end in range(start + 1, len(trunk)):
        module = kinds[end]
        if not is_layer(module):
            continue
        following = shape_of(module)
        if layers == LONGEST or following.tokens != merged.tokens:
            break
        moved = moved or moves_padding(following)
        merged, layers = composed(merged, following), layers + 1
        while end + 1 < len(trunk) and is_scaling(kinds[end + 1]):
            end += 1
        names = tuple(node.target for node in trunk[start : end + 1])
        sites = tuple(
            name for name, kind in zip(names, kinds[start : end + 1], strict=True) if isinstance(kind, RECTIFIERS)
        )
        before = sum(times.get(name, 0.0) for name in names)
        with torch.device("meta"):
            layer = merged.module()
        last = next(node.target for node in reversed(trunk[: end + 1]) if is_layer(network.layer(node.target)))
        after = costs.milliseconds(layer_operator(layer, maps[first].in_size, maps[last].out_size))
        addition = skip_addition(trunk[end], trunk[start].args[0])
        skip = addition is not None and takes_skip(merged)
        if skip:
            before += times.get(addition.name, 0.0)
            before += sum(times.get(name, 0.0) for name in rectifiers_behind(network, addition.name))
        found.append(
            Segment(
                trunk[0].target,
                (start, end),
                names,
                sites,
                skip,
                before,
                after,
                moved,
                describe(layer) + (", skip inside" if skip else ""),
            )
        )
    return found
