"""Finds the stretches of a network that one linear layer could stand for, whatever is inside them.

A region has one value going in (`source`) and one coming out (`end`), and nothing else reads what it computes on the
way: a layer with its norm, a residual block with its skip, a branch of it, an MLP, a run of layers. Unlike a segment
(see `segments`) it may hold branches, norms that do not fold, and activations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx, nn

from pipeline.compress.algebra import is_layer
from pipeline.compress.linearize import RECTIFIERS
from pipeline.compress.merge import ADDITIONS
from pipeline.model.network import Network, writes

LONGEST = 6  # layers in one region; what is longer no linear layer follows


@dataclass(frozen=True)
class Region:
    """A stretch with one way in and one way out.

    Attributes:
        source, end: names of the graph's nodes whose values go in and come out; `source` is not part of it.
        nodes: names of the graph's nodes inside, in execution order; `end` is the last.
        between: those of `nodes` that are layers whose values stay inside.
        layers: the convolutions and linear layers among them, by the user's names, at least one.
        span: positions of the first and the last node in the graph.
        tokens: its first and last layer work on the last dimension; False: on maps. None: one does, one does not.
        reach: height of the input that one output looks at, in input pixels; 1 for tokens.
    """

    source: str
    end: str
    nodes: tuple[str, ...]
    between: tuple[str, ...]
    layers: tuple[str, ...]
    span: tuple[int, int]
    tokens: bool | None
    reach: int

    @property
    def site(self) -> str:
        """The first layer: the name under which the user knows the place."""
        return self.layers[0]


def regions(network: Network) -> list[Region]:
    """Every region of up to `LONGEST` layers, in the order of their ends.

    Of several with the same layers only one is kept: it takes the norm and the skip behind, and leaves those before.
    """
    nodes = list(network.graph.graph.nodes)
    position = {node: index for index, node in enumerate(nodes)}
    editable = network.editable()
    best: dict[tuple[str, ...], Region] = {}
    for end in nodes:
        if _gives(network, end):
            for source, inside in _around(end, position, network):
                region = _region(network, source, inside, position)
                if region.layers and editable.issuperset(region.layers) and _takes(network, source, inside):
                    kept = best.get(region.layers)
                    if kept is None or (region.span[1], region.span[0]) > (kept.span[1], kept.span[0]):
                        best[region.layers] = region
    return sorted(best.values(), key=lambda region: (region.span[1], -region.span[0]))


def _around(end: fx.Node, position: dict[fx.Node, int], network: Network) -> Iterator[tuple[fx.Node, set[fx.Node]]]:
    """Every (source, nodes inside) that comes out at `end`, the shortest first."""
    inside, outside, layers = {end}, _values_of(end), int(_is_layer(network, end))
    while outside:
        if len(outside) == 1:
            yield next(iter(outside)), set(inside)
        nearest = max(outside, key=position.__getitem__)
        layers += _is_layer(network, nearest)
        read_elsewhere = not inside.issuperset(nearest.users)
        if layers > LONGEST or read_elsewhere or not _computes(nearest):
            return
        outside.remove(nearest)
        inside.add(nearest)
        outside |= _values_of(nearest) - inside


def _values_of(node: fx.Node) -> set[fx.Node]:
    """What a node reads, without the network's own constants."""
    return {value for value in node.all_input_nodes if value.op != "get_attr"}


def _computes(node: fx.Node) -> bool:
    """Whether a node may go with its region: not the network's input, and nothing that writes over what it reads."""
    return node.op in ("call_module", "call_function") and not writes(node)


def _region(network: Network, source: fx.Node, inside: set[fx.Node], position: dict[fx.Node, int]) -> Region:
    ordered = sorted(inside, key=position.__getitem__)
    layers = tuple(node.target for node in ordered if _is_layer(network, node))
    span = (position[ordered[0]], position[ordered[-1]])
    reach, step = 1, 1
    for name in layers:
        layer = network.layer(name)
        if isinstance(
            layer, nn.Conv2d
        ):  # side by side they reach less far; nobody minds a kernel too wide to be chosen
            reach += (layer.kernel_size[0] - 1) * layer.dilation[0] * step
            step *= layer.stride[0]
    names = tuple(node.name for node in ordered)
    last = next((node.name for node in reversed(ordered) if _is_layer(network, node)), None)
    between = tuple(node.name for node in ordered if _is_layer(network, node) and node.name != last)
    ends = {isinstance(network.layer(name), nn.Linear) for name in (*layers[:1], *layers[-1:])}
    tokens = ends.pop() if len(ends) == 1 else None
    return Region(source.name, names[-1], names, between, layers, span, tokens, reach)


def _is_layer(network: Network, node: fx.Node) -> bool:
    return node.op == "call_module" and is_layer(network.layer(node.target))


def _gives(network: Network, node: fx.Node) -> bool:
    """What a linear layer could give in its place: a layer's output, a norm's, or a sum with a skip."""
    if node.op == "call_module":
        return is_layer(network.layer(node.target)) or isinstance(
            network.layer(node.target), (nn.BatchNorm1d, nn.BatchNorm2d)
        )
    return node.op == "call_function" and node.target in ADDITIONS and _computes(node)


def _takes(network: Network, source: fx.Node, inside: set[fx.Node]) -> bool:
    """Whether a layer or a norm is what reads the source: a rectifier there belongs to the stretch before."""
    modules = [network.layer(node.target) for node in source.users if node in inside and node.op == "call_module"]
    return bool(modules) and not any(isinstance(module, RECTIFIERS) for module in modules)
