"""The same network in operators that XNNPACK and Vulkan take, where ExecuTorch's own choice would break a partition.

Every operator that is left outside ends one partition and begins another, with its tensors copied between them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram


def for_delegates(program: ExportedProgram) -> ExportedProgram:
    """A copy of `program` with attention and global pooling rewritten; its values are the same up to rounding."""
    import torch

    rewritten = program.run_decompositions({torch.ops.aten.scaled_dot_product_attention.default: attention})
    _keep_pooled_dimensions(rewritten)
    return rewritten


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """softmax(Q K^T / sqrt(d)) V for [..., tokens, d] without a mask; anything else is left to torch.

    Torch's own decomposition guards against rows that a mask excludes whole, by seven operators that no delegate takes,
    and multiplies tensors of four dimensions, which is an expansion of each. Without a mask there are no such rows.
    """
    import torch

    if attn_mask is not None or dropout_p or is_causal or enable_gqa or query.shape[:-2] != key.shape[:-2]:
        return NotImplemented
    if scale is None:
        scale = 1 / math.sqrt(query.shape[-1])
    q, k, v = (one.reshape(-1, *one.shape[-2:]) for one in (query * scale, key, value))
    weights = torch.softmax(torch.bmm(q, k.transpose(1, 2)), -1)
    return torch.bmm(weights, v).reshape(*query.shape[:-1], value.shape[-1])


def _keep_pooled_dimensions(program: ExportedProgram) -> None:
    """Splits `x.mean((2, 3))` into a mean that keeps both dimensions and a reshape, in place.

    The delegates take the mean only with its dimensions kept; without, a global pooling is left to a plain kernel
    between two partitions, in nearly every classifier.
    """
    import torch

    for node in list(program.graph.nodes):
        if node.target is not torch.ops.aten.mean.dim or any(user.op == "output" for user in node.users):
            continue
        pooled, dimensions, keep, *_ = (*node.args, False)
        value, before = node.meta["val"], pooled.meta["val"]
        if keep or before.ndim != 4 or sorted(axis % 4 for axis in dimensions) != [2, 3] or node.kwargs:
            continue
        with program.graph.inserting_after(node):
            flat = program.graph.call_function(torch.ops.aten.view.default, (node, list(value.shape)))
        node.replace_all_uses_with(flat, delete_user_cb=lambda user, flat=flat: user is not flat)
        node.args = (pooled, dimensions, True)
        flat.meta = {**node.meta}
        node.meta["val"] = value.view(*value.shape, 1, 1)
    program.graph_module.recompile()
