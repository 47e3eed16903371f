"""Pruning a layer: the value passes by it unchanged (LayerMerge, ICML 2024, section 3).

The paper writes an identity convolution in place of a pruned one and folds it away when merging; leaving the layer out
of the graph gives the same network bit for bit.

needs: nothing. knob: which layers.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.model.edits import Edit, applies
from pipeline.model.network import Network


def prune(layers: Sequence[str]) -> Edit:
    """The edit that leaves out `layers` (names in execution order), each of which keeps the shape of its input."""
    return Edit("prune", layers[0], {"layers": list(layers)})


@applies("prune")
def _apply(network: Network, edit: Edit) -> Network:
    copied = network.copy()
    for name in edit.arguments["layers"]:
        node = copied.node(name)
        node.replace_all_uses_with(node.args[0])
        node.graph.erase_node(node)
    return network.edited(copied.graph, edit)
