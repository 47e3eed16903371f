"""Low-rank truncation: one layer becomes two thin ones.

Output-channel mode (LoRITa, 2405.03089, section 4): with W seen as [Cout, Cin k k], an orthonormal basis B of rank r,

    conv k x k: Cin -> r, weight B^T W;   then 1x1: r -> Cout, weight B

Two bases are offered: the left singular vectors of W (truncated SVD), and the leading eigenvectors of the covariance
of the layer's outputs on the user's data, which minimise E|y - y_r|^2 of the outputs (Zhang et al., 2015, linear case);
there the mean output is kept exactly through the bias. Both are the identity at full rank.

needs: weights, or data. knob: the rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.compress.algebra import LinearOperator, operator_of
from pipeline.model.edits import Edit, applies
from pipeline.model.network import Network, add_beside, free_name, substitute


def truncatable(module: nn.Module) -> bool:
    """Dense convolutions with zero padding, and linear layers."""
    return isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros"
    )


def full_rank(module: nn.Module) -> int:
    weight = module.weight
    return min(weight.shape[0], weight[0].numel())


RANKS_PER_LAYER = 12


def ranks(full: int) -> list[int]:
    """Up to a dozen ranks below the full one, on the multiples of 4 or 8 that vector units like."""
    step = max(4, 8 * round(full / RANKS_PER_LAYER / 8)) if full >= 16 else 1
    return list(range(step, full, step))


def truncate(site: str, rank: int, *, basis: Tensor | None = None, mean: Tensor | None = None) -> Edit:
    """The edit that truncates layer `site` to `rank`.

    Args:
        basis: [Cout, rank] float64, orthonormal columns; None takes the weight's own left singular vectors.
        mean: [Cout] float64, mean output of the layer on the data; given together with `basis`.
    """
    tensors = {} if basis is None else {"basis": basis, "mean": mean}
    return Edit("truncate", site, {"rank": rank, "basis": "weights" if basis is None else "outputs"}, tensors)


def factors(
    operator: LinearOperator, rank: int, basis: Tensor | None = None, mean: Tensor | None = None
) -> tuple[LinearOperator, LinearOperator]:
    """The two thin operators, first `reduce` (k x k, no bias), then `expand` (1x1)."""
    matrix = operator.weight.flatten(1)
    if basis is None:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        root = values[:rank].sqrt()  # split evenly, so that both factors train at the same scale
        down, up, bias = root[:, None] * right[:rank], left[:, :rank] * root, operator.bias
    else:
        down, up = basis.T @ matrix, basis
        bias = basis @ (basis.T @ (operator.bias - mean)) + mean
    reduce = LinearOperator(
        down.reshape(rank, *operator.weight.shape[1:]),
        torch.zeros(rank, dtype=torch.float64),
        operator.stride,
        operator.padding,
        operator.dilation,
        tokens=operator.tokens,
    )
    return reduce, LinearOperator(up[:, :, None, None], bias, tokens=operator.tokens)


def principal_basis(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors [C, C] of an output covariance by falling eigenvalue, with a fixed sign, and the eigenvalues [C]."""
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    signs = torch.sign(vectors.gather(0, vectors.abs().argmax(0, keepdim=True)))
    return vectors * signs, values


@applies("truncate")
def _apply(network: Network, edit: Edit) -> Network:
    operator = operator_of(network.layer(edit.site))
    reduce, expand = factors(operator, edit.arguments["rank"], edit.tensors.get("basis"), edit.tensors.get("mean"))
    graph = network.copy().graph
    node = next(n for n in graph.graph.nodes if n.op == "call_module" and n.target == edit.site)
    source = node.args[0]
    for suffix, part in (("reduce", reduce), ("expand", expand)):
        name = free_name(graph, f"{edit.site}_{suffix}")
        module = part.module()
        if suffix == "reduce":
            module.bias = None  # zero by construction: the expansion's bias says it all
        add_beside(graph, name, module)
        with graph.graph.inserting_before(node):
            source = graph.graph.create_node("call_module", name, (source,))
    substitute(node, source)
    return network.edited(graph, edit)
