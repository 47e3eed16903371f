"""Whose a value inside a network is: the user's module that computes it, and the block around that."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

import torch
from torch import fx, nn

from pipeline.model.network import Network

PRODUCTS = (nn.Linear, nn.modules.conv._ConvNd)
_MOVING = set(
    "view reshape flatten unflatten permute transpose t squeeze unsqueeze expand contiguous clone alias detach slice "
    "select narrow split split_with_sizes chunk unbind getitem cat stack roll".split()
)


class Blocks:
    """The modules and blocks of one network.

    A block is an element of a container of blocks: a module whose children are numbered and at least half of which hold
    two layers or more that multiply by weights. So it is `layer2.1` for `layer2.1.conv2`, `features.7` for
    `features.7.conv.1.0` and `layers.0.blocks.1` for `layers.0.blocks.1.attn.qkv`; the innermost where several are
    around a layer, and the layer itself where none is.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        layers = network.layers()
        self._containers = _containers(layers, [name for name, layer in layers.items() if isinstance(layer, PRODUCTS)])
        self._order = {node: index for index, node in enumerate(network.graph.graph.nodes)}
        self._names: dict[fx.Node, str] = {}
        taken = set(layers)
        for node in self._order:
            name = self._name(node)
            if node.op == "call_function":
                name = next(
                    free
                    for free in itertools.chain([name], (f"{name}_{n}" for n in itertools.count(1)))
                    if free not in taken
                )
                taken.add(name)
            self._names[node] = name

    def module(self, node: fx.Node) -> str:
        """The user's layer, or for an operator outside any layer the module that called it and the operator's name.

        A second `add` of one module is `add_1`, as ingestion names activations.
        """
        return self._names[node]

    def block(self, node: fx.Node) -> str:
        """See the class."""
        module = self.module(node)
        parts = module.split(".")
        around = [end for end in range(1, len(parts) + 1) if ".".join(parts[: end - 1]) in self._containers]
        return ".".join(parts[: around[-1]]) if around else module

    def has_weights(self, node: fx.Node) -> bool:
        return node.op == "call_module" and any(True for _ in self._network.layer(str(node.target)).parameters())

    def _name(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return str(node.target)
        if node.op != "call_function":
            return node.name
        caller = self._caller(node)
        return f"{caller}.{_operator(node)}" if caller else _operator(node)

    def _caller(self, node: fx.Node) -> str:
        """As torch.export noted it; a lifted network that was saved and read back has lost that."""
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        if stack and "GraphModule" not in str(stack[0][1]):
            return re.sub(r"@\d+", "", stack[-1][0])
        # The last layer that it reads is nearly always its neighbour: of x + f(x), the one that ends f.
        last = max(_layers_before(node), key=self._order.__getitem__, default=None)
        return str(last.target).rpartition(".")[0] if last is not None else ""


def moves(node: fx.Node) -> bool:
    """Whether a node only puts its inputs' numbers elsewhere."""
    return node.op == "call_function" and _operator(node) in _MOVING


def _operator(node: fx.Node) -> str:
    """`add` of `aten.add.Tensor`, `getitem` of Python's."""
    target = node.target
    name = target._schema.name.rpartition("::")[2] if isinstance(target, torch._ops.OpOverload) else target.__name__
    return name.rstrip("_")


def _containers(layers: Iterable[str], products: list[str]) -> set[str]:
    children: dict[str, set[str]] = {}
    for name in layers:
        parts = name.split(".")
        for end in range(len(parts)):
            children.setdefault(".".join(parts[:end]), set()).add(".".join(parts[: end + 1]))

    def is_block(child: str) -> bool:
        return sum(name.startswith(f"{child}.") for name in products) > 1

    return {
        container
        for container, inside in children.items()
        if all(child.rpartition(".")[2].isdecimal() for child in inside)
        and 2 * sum(map(is_block, inside)) >= len(inside)
    }


def _layers_before(node: fx.Node) -> list[fx.Node]:
    """The layers whose values `node` reads, with nothing but operators between."""
    found, waiting, seen = [], list(node.all_input_nodes), set()
    while waiting:
        source = waiting.pop()
        if source in seen:
            continue
        seen.add(source)
        if source.op == "call_module":
            found.append(source)
        else:
            waiting += source.all_input_nodes
    return found
