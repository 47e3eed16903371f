"""Merging a chain of linear layers into one convolution or linear layer (LayerMerge, ICML 2024, section 3).

A segment is a chain of convolutions (or linears), batch norms and linearised activations in which each value has one
reader, optionally with the addition of the chain's own input at its end. The merged layer takes the place and the name
of the segment's first layer; see `algebra` for what is exact.

needs: weights. knob: which segments.
"""

from __future__ import annotations

import operator as python_operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from pipeline.compress.algebra import (
    LinearOperator,
    composed,
    is_layer,
    is_scaling,
    moves_padding,
    operator_of,
    scaled,
    scaling_of,
    with_skip,
)
from pipeline.model.edits import Edit, applies
from pipeline.model.network import Network, substitute

ADDITIONS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor, python_operator.add)


def merge(layers: Sequence[str], *, skip: bool = False) -> Edit:
    """The edit that merges the chain `layers` (names in execution order), absorbing its skip connection if `skip`."""
    return Edit("merge", layers[0], {"layers": list(layers), "skip": skip})


@dataclass(frozen=True)
class Merged:
    """A merged chain: the operator, and whether it differs from the chain near the border."""

    operator: LinearOperator
    moves_padding: bool


def merged_operator(network: Network, layers: Sequence[str], *, skip: bool = False) -> Merged:
    """The chain `layers` as one operator, in float64.

    Raises:
        ValueError: the chain does not start with a layer, holds something nonlinear, or cannot take its skip.
    """
    first = network.layer(layers[0])
    if not is_layer(first):
        raise ValueError(f"a segment starts with a convolution or a linear layer, not with '{layers[0]}'")
    merged, moved = operator_of(first), False
    for name in layers[1:]:
        module = network.layer(name)
        if is_scaling(module):
            merged = scaled(merged, *scaling_of(module))
        elif is_layer(module):
            following = operator_of(module)
            moved = moved or moves_padding(following)
            merged = composed(merged, following)
        else:
            raise ValueError(f"'{name}' is not linear")
    return Merged(with_skip(merged) if skip else merged, moved)


@applies("merge")
def _apply(network: Network, edit: Edit) -> Network:
    layers, skip = edit.arguments["layers"], edit.arguments["skip"]
    merged = merged_operator(network, layers, skip=skip).operator
    graph = network.copy().graph
    calls = {node.target: node for node in graph.graph.nodes if node.op == "call_module"}
    first, end = calls[layers[0]], calls[layers[-1]]
    if skip:
        end = skip_addition(end, first.args[0])
    graph.set_submodule(edit.site, merged.module())
    with graph.graph.inserting_before(end):
        call = graph.graph.create_node("call_module", edit.site, (first.args[0],))
    substitute(end, call)
    return network.edited(graph, edit)


def skip_addition(last: fx.Node, source: fx.Node) -> fx.Node | None:
    """The addition `last + source` if it is the only reader of `last`, else None."""
    if len(last.users) != 1:
        return None
    add = next(iter(last.users))
    plain = add.op == "call_function" and add.target in ADDITIONS and add.kwargs.get("alpha", 1) == 1
    return add if plain and set(add.args) == {last, source} else None
