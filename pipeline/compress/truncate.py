"""Low-rank truncation: one layer becomes two thin ones (LoRITa, 2405.03089, section 4).

With W = U S V^T seen as [Cout, Cin k k], cut to rank r,

    conv k x k: Cin -> r, weight S^(1/2) V^T;   then 1x1: r -> Cout, weight U S^(1/2)

It is the identity at full rank. With data the thin form of `refit` loses less.

needs: weights. knob: the rank.
"""

from __future__ import annotations

import torch
from torch import nn

from pipeline.compress.algebra import LinearOperator, operator_of
from pipeline.model.edits import Edit, applies
from pipeline.model.network import Network, add_beside, free_name, substitute

RANKS_PER_LAYER = 12


def truncatable(module: nn.Module) -> bool:
    """Dense convolutions with zero padding, and linear layers."""
    return isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros"
    )


def full_rank(module: nn.Module) -> int:
    weight = module.weight
    return min(weight.shape[0], weight[0].numel())


def ranks(full: int) -> list[int]:
    """Up to a dozen ranks below the full one, on the multiples of 4 or 8 that vector units like."""
    step = max(4, 8 * round(full / RANKS_PER_LAYER / 8)) if full >= 16 else 1
    return list(range(step, full, step))


def truncate(site: str, rank: int) -> Edit:
    """The edit that truncates layer `site` to `rank`."""
    return Edit("truncate", site, {"rank": rank})


def factors(operator: LinearOperator, rank: int) -> tuple[LinearOperator, LinearOperator]:
    """The two thin operators, first `reduce` (k x k, no bias), then `expand` (1x1)."""
    left, values, right = torch.linalg.svd(operator.weight.flatten(1), full_matrices=False)
    root = values[:rank].sqrt()  # split evenly, so that both factors train at the same scale
    reduce = LinearOperator(
        (root[:, None] * right[:rank]).reshape(rank, *operator.weight.shape[1:]),
        torch.zeros(rank, dtype=torch.float64),
        operator.stride,
        operator.padding,
        operator.dilation,
        tokens=operator.tokens,
    )
    return reduce, LinearOperator((left[:, :rank] * root)[:, :, None, None], operator.bias, tokens=operator.tokens)


@applies("truncate")
def _apply(network: Network, edit: Edit) -> Network:
    return thinned(network, edit, factors(operator_of(network.layer(edit.site)), edit.arguments["rank"]))


def thinned(network: Network, edit: Edit, parts: tuple[LinearOperator, LinearOperator]) -> Network:
    """The network after `edit`, which puts two thin operators, `reduce` and `expand`, in the place of its site."""
    graph = network.copy().graph
    node = next(n for n in graph.graph.nodes if n.op == "call_module" and n.target == edit.site)
    source = node.args[0]
    for suffix, part in zip(("reduce", "expand"), parts, strict=True):
        name = free_name(graph, f"{edit.site}_{suffix}")
        module = part.module()
        if suffix == "reduce":
            module.bias = None  # zero by construction: the expansion's bias says it all
        add_beside(graph, name, module)
        with graph.graph.inserting_before(node):
            source = graph.graph.create_node("call_module", name, (source,))
    substitute(node, source)
    return network.edited(graph, edit)
