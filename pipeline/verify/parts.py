"""A part of a network by itself, and what an error in one place does to the whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from pipeline.model.network import Network
from pipeline.verify.correspondence import distance


def part(network: Network, inside: Sequence[fx.Node]) -> tuple[fx.GraphModule, list[fx.Node]]:
    """Some nodes of a network, in order, as a network of their own.

    Returns:
        It gives the last one's value; and the nodes of `network` whose values it takes, in the order of its inputs.
    """
    graph, made = fx.Graph(), dict[fx.Node, fx.Node]()
    outside = dict.fromkeys(source for node in inside for source in node.all_input_nodes if source not in inside)
    sources = [node for node in outside if node.op != "get_attr"]
    for index, node in enumerate(sources):
        made[node] = graph.placeholder(f"input_{index}")
    for node in (*(node for node in outside if node.op == "get_attr"), *inside):
        made[node] = graph.node_copy(node, made.__getitem__)
    graph.output(made[inside[-1]])
    return fx.GraphModule(network.graph, graph).eval(), sources


def effect(network: Network, samples: np.ndarray, node: fx.Node, error: Tensor) -> float:
    """How far the outputs move when `error` [N, ...] is added to the value of one node: relative RMSE, the largest."""
    moved, right = [], []
    with torch.no_grad():
        for sample, its in zip(torch.from_numpy(samples), error, strict=True):
            right.append(tree_leaves(network(sample[None])))
            moved.append(tree_leaves(_Injecting(network.graph, node, its).run(sample[None])))
    return max(distance(torch.stack(its), torch.stack(reference)) for its, reference in zip(zip(*moved), zip(*right)))


class _Injecting(fx.Interpreter):
    """Runs a network with an error added to the value of one node."""

    def __init__(self, graph: fx.GraphModule, node: fx.Node, error: Tensor) -> None:
        super().__init__(graph)
        self._node, self._error = node, error

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        return value + self._error.to(value.dtype) if n is self._node else value
