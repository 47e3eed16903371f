"""Splitting a shared layer: a module that is called at several places becomes one module a call.

A rectifier that serves several places has several inputs, so it has several entropies and can be idle at one place and
busy at another (torchvision's ResNet blocks call one ReLU twice). Activations without weights are split when a network
is read; what is left are modules with weights, a shared PReLU or a shared layer. Each copy starts with the weights of
the original and may then be edited, and trained, by itself: the function is the same until it is.

needs: nothing.
"""

from __future__ import annotations

import copy

from torch import fx

from pipeline.compress.linearize import RECTIFIERS
from pipeline.model.edits import Edit, applies
from pipeline.model.network import Network


def shared(network: Network) -> list[str]:
    """Names of the layers that are called more than once, in the order of their first calls."""
    return [name for name in network.layers() if len(_calls(network.graph, name)) > 1]


def split(network: Network, site: str) -> Edit:
    """The edit that gives every call of `site` after the first a copy of its own: `site_1`, `site_2`, ..."""
    taken = [name for name, _ in network.graph.named_modules()]
    names, number = [site], 0
    while len(names) < len(_calls(network.graph, site)):
        number += 1
        if f"{site}_{number}" not in taken:
            names.append(f"{site}_{number}")
    return Edit("split", site, {"names": names})


def with_own_rectifiers(network: Network) -> Network:
    """The network in which every rectifier is called at one place; itself when that is so already."""
    for site in shared(network):
        if isinstance(network.layer(site), RECTIFIERS):
            network = _apply(network, split(network, site))
    return network


@applies("split")
def _apply(network: Network, edit: Edit) -> Network:
    graph = network.copy().graph
    for call, name in zip(_calls(graph, edit.site), edit.arguments["names"], strict=True):
        if name != edit.site:
            graph.add_submodule(name, copy.deepcopy(graph.get_submodule(edit.site)))
            call.target = name
    return network.edited(graph, edit)


def _calls(graph: fx.GraphModule, name: str) -> list[fx.Node]:
    return [node for node in graph.graph.nodes if node.op == "call_module" and node.target == name]
