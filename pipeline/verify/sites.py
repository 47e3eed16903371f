"""The operators of a network as exported, with the user's modules: what an artifact's operators are named after."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pipeline.export.conversion import fixed_at_batch_one
from pipeline.export.failure import place
from targets.delegation.naming import Site
from targets.graph import Shape, macs

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

# PyTorch's operators that multiply and accumulate, by the ONNX operator whose operands are shaped alike.
_PRODUCTS = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), "Conv"),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), "ConvTranspose"),
    **dict.fromkeys(("linear", "matmul", "mm", "bmm"), "MatMul"),
}


def sites(program: ExportedProgram) -> tuple[Site, ...]:
    """The operators of `program` at batch 1 in the order of execution.

    Raises:
        ValueError: the program cannot be had at batch 1.
    """
    nodes = fixed_at_batch_one(program).graph.nodes
    return tuple(_site(node) for node in nodes if node.op == "call_function" and _shapes(node.meta.get("val")))


def _site(node: Node) -> Site:
    kind = str(node.target)
    operands = [shape for argument in node.all_input_nodes for shape in _shapes(argument.meta.get("val"))]
    results = _shapes(node.meta["val"])
    product = _PRODUCTS.get(kind.split(".")[1] if "." in kind else kind, "")
    return Site(place(node).module, kind, math.prod(results[0]), macs(product, operands, results))


def _shapes(value: object) -> list[Shape]:
    """Of a tensor, or of the tensors in a sequence."""
    values = value if isinstance(value, (tuple, list)) else [value]
    return [tuple(map(int, each.shape)) for each in values if hasattr(each, "shape")]
