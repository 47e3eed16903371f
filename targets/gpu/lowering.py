"""What the delegate makes of an operator of planning: kernels of its own, and what it links to the kernel before.

An activation or a sum behind a kernel is linked to it when nothing else reads that kernel's output, as is so of
activations and residual sums; what scales a tensor that is also averaged, as in squeeze-and-excitation, is not. A
swish reads its input twice and stays by itself. All this is seen in the published kernels' names.

No latency of a matrix product, a softmax, a norm, a resize or a transposition was published. A product is what the
delegate runs it as, a pointwise convolution whose weights are copied first; the others are the bytes they move.
"""

from __future__ import annotations

from dataclasses import dataclass

from targets.gpu.kernel import Kernel, convolution, moved, slices
from targets.operator import Operator

CURVED = ("hardswish", "gelu", "sigmoid")


@dataclass(frozen=True)
class Linked:
    """What is computed on the way out of another kernel.

    Attributes:
        values: pixels times slices.
        reads: tensors of that size read besides.
        curves: activations that take more than a comparison.
    """

    values: int
    reads: int = 0
    curves: int = 0


def lower(op: Operator, architecture: str) -> tuple[tuple[Kernel, ...], Linked | None]:
    """The kernels of `op`, and what it adds to another's."""
    size, channels = op.out_size, op.out_channels
    values = op.pixels * slices(channels)
    if op.kind == "clamp":
        return (), Linked(values)
    if op.kind in CURVED:
        return (), Linked(values, curves=1)
    if op.kind in ("add", "mul"):
        return (), Linked(values, reads=1)
    if op.kind == "conv":
        return (_convolution(op, architecture),), None
    if op.kind == "linear":
        row = (op.in_size[1], op.in_size[0])  # tokens lie side by side
        return (convolution(architecture, row, row, op.in_channels, channels, (1, 1), 1),), None
    if op.kind == "matmul":
        heads = (op.groups, op.in_size[0])
        weights = moved((op.groups, op.in_channels), channels)
        return (weights, Kernel("pointwise", heads, heads, op.in_channels, channels)), None
    if op.kind in ("pool", "max_pool"):
        choice = "mean" if op.is_global_pool else "pool"
        return (Kernel(choice, op.in_size, size, op.in_channels, channels, op.kernel, max(op.stride)),), None
    passes = {"softmax": 2, "norm": 4}.get(op.kind, 1)
    return (moved(size, channels),) * passes, None


def _convolution(op: Operator, architecture: str) -> Kernel:
    stride = max(op.stride)
    if op.is_depthwise:
        sizes = (op.in_size, op.out_size)
        return Kernel("depthwise", *sizes, op.in_channels, op.out_channels, op.kernel, stride, op.groups)
    return convolution(
        architecture, op.in_size, op.out_size, op.in_channels, op.out_channels, op.kernel, stride, op.groups
    )
