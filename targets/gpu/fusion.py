"""The kernels the delegate makes of a .tflite graph, after its fusions; the rules are seen in the published kernels.

- A padding merges with the convolution or pooling that alone reads it.
- An element-wise operator is linked to the last kernel it needs, if nothing else reads that kernel's output and both
  are of one size; what it reads besides (a tensor, a constant) it reads on the way.
- A reshape that moves no value in the delegate's layout disappears.
- On Apple a narrow depthwise convolution takes the pointwise one behind it along.

Which operators the delegate refuses is not told here; everything is priced as if it took it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from targets.gpu.graph import Graph, Node, Shape
from targets.gpu.kernel import Kernel, convolution, moved, separable

LINKED = {
    **dict.fromkeys(("ADD", "SUB", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE"), "adds"),
    **dict.fromkeys(("MUL", "DIV"), "muls"),
    **dict.fromkeys(("HARD_SWISH", "LOGISTIC", "TANH", "GELU", "ELU", "EXP", "SQRT", "RSQRT", "POW", "LOG"), "curves"),
    **dict.fromkeys(("RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1", "ABS", "NEG", "LEAKY_RELU", "QUANTIZE"), ""),
    **dict.fromkeys(("DEQUANTIZE", "CAST", "SQUARE"), ""),
}
RESHAPED = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS")
WINDOWED = ("CONV_2D", "DEPTHWISE_CONV_2D", "AVERAGE_POOL_2D", "MAX_POOL_2D")
PASSES = {"SOFTMAX": 2}
MEASURED = {*WINDOWED, *LINKED, *RESHAPED, "FULLY_CONNECTED", "MEAN", "CONCATENATION", "PAD"}


@dataclass(frozen=True)
class Fused:
    """One kernel with the operators it computes, by their places in the graph."""

    kernel: Kernel
    operators: tuple[int, ...]


def fuse(graph: Graph, architecture: str) -> list[Fused]:
    """The kernels of an inference in the order they run."""
    made: list[Fused] = []
    source: dict[int, int] = {}  # tensor -> the kernel that writes it
    alias: dict[int, int] = {}  # tensor -> the one before its padding, or before a reshape that moves nothing
    for place, node in enumerate(graph.nodes):
        inputs = [_behind(tensor, alias) for tensor in node.runtime]
        out = node.outputs[0]
        if _vanishes(graph, node):
            alias[out] = node.runtime[0]
            continue
        if (host := _host(graph, node, inputs, source)) is not None:
            made[host] = _link(made[host], node, place)
        elif (joined := _join(graph, node, architecture, made, source)) is not None:
            made[source[node.runtime[0]]] = Fused(joined, (*made[source[node.runtime[0]]].operators, place))
            host = source[node.runtime[0]]
        else:
            host = len(made)
            made += [Fused(kernel, (place,)) for kernel in _kernels(graph, node, architecture, inputs)]
            host = len(made) - 1 if len(made) > host else host
        source.update(dict.fromkeys(node.outputs, host))
    return made


def not_measured(graph: Graph) -> list[str]:
    """Kinds of operators for which no published kernel stands, priced by the bytes they move."""
    return sorted({node.kind for node in graph.nodes} - MEASURED)


def _behind(tensor: int, alias: dict[int, int]) -> int:
    while tensor in alias:
        tensor = alias[tensor]
    return tensor


def _vanishes(graph: Graph, node: Node) -> bool:
    if node.kind in ("PAD", "PADV2"):
        reader = next((other for other in graph.nodes if node.outputs[0] in other.runtime), None)
        return graph.readers(node.outputs[0]) == 1 and reader is not None and reader.kind in WINDOWED
    before, after = graph.shapes[node.runtime[0]], graph.shapes[node.outputs[0]]
    return node.kind in RESHAPED and _size(before) == _size(after)


def _host(graph: Graph, node: Node, inputs: list[int], source: dict[int, int]) -> int | None:
    """The kernel an element-wise operator is linked to."""
    if node.kind not in LINKED:
        return None
    written = [(source[tensor], tensor) for tensor in inputs if tensor in source]
    if not written:
        return None
    kernel, tensor = max(written)
    same = _size(graph.shapes[tensor]) == _size(graph.shapes[node.outputs[0]])
    return kernel if same and graph.readers(tensor) == 1 else None


def _link(fused: Fused, node: Node, place: int) -> Fused:
    kernel, counted = fused.kernel, LINKED[node.kind]
    more = {counted: getattr(kernel, counted) + 1} if counted else {}
    if node.curved:
        more["curves"] = kernel.curves + 1
    return Fused(replace(kernel, **more), (*fused.operators, place))


def _join(graph: Graph, node: Node, architecture: str, made: list[Fused], source: dict[int, int]) -> Kernel | None:
    """The kernel of a depthwise convolution that takes `node`, the pointwise one behind it, along."""
    before = source.get(node.runtime[0])
    if node.kind != "CONV_2D" or before is None or made[before].kernel.choice != "depthwise":
        return None
    if graph.readers(node.runtime[0]) != 1:
        return None
    (kernel,) = _kernels(graph, node, architecture, list(node.runtime))
    return separable(architecture, made[before].kernel, kernel)


def _kernels(graph: Graph, node: Node, architecture: str, inputs: list[int]) -> tuple[Kernel, ...]:
    first, out = graph.shapes[inputs[0]], graph.shapes[node.outputs[0]]
    before, after = _size(first), _size(out)
    curves = int(node.curved)
    stride = max(node.stride)
    if node.kind == "CONV_2D":
        weights = graph.shapes[node.inputs[1]]
        groups = max(before[2] // weights[3], 1)
        shape = (before[:2], after[:2], before[2], after[2], weights[1:3], stride, groups)
        return (replace(convolution(architecture, *shape), curves=curves),)
    if node.kind == "TRANSPOSE_CONV":  # inputs: shape, weights [out, height, width, in], activations
        taps = graph.shapes[node.inputs[1]][1:3]
        reached = (-(-taps[0] // stride), -(-taps[1] // stride))  # by one output pixel
        return (Kernel("conv", before[:2], after[:2], before[2], after[2], reached, curves=curves),)
    if node.kind == "DEPTHWISE_CONV_2D":
        window = graph.shapes[node.inputs[1]][1:3]
        return (
            Kernel("depthwise", before[:2], after[:2], before[2], after[2], window, stride, before[2], curves=curves),
        )
    if node.kind == "FULLY_CONNECTED":
        row = (1, math.prod(out[:-1]))
        return (replace(convolution(architecture, row, row, first[-1], out[-1], (1, 1), 1), curves=curves),)
    if node.kind == "BATCH_MATMUL":
        heads, depth = (math.prod(out[:-2]), out[-2]), math.prod(first) // math.prod(out[:-1])
        return moved((heads[0], depth), out[-1]), Kernel("pointwise", heads, heads, depth, out[-1])
    if node.kind in ("AVERAGE_POOL_2D", "MAX_POOL_2D"):
        if node.kind == "AVERAGE_POOL_2D" and node.window == before[:2]:
            return (Kernel("mean", before[:2], (1, 1), before[2], after[2], before[:2]),)
        return (Kernel("pool", before[:2], after[:2], before[2], after[2], node.window, stride),)
    if node.kind == "MEAN" and after[:2] == (1, 1) and before[2] == after[2]:
        return (Kernel("mean", before[:2], (1, 1), before[2], after[2], before[:2]),)
    if node.kind == "CONCATENATION":
        return (Kernel("concat", before[:2], after[:2], before[2], after[2], inputs=len(inputs)),)
    larger = max(before, after, key=math.prod)
    besides = sum(_size(graph.shapes[tensor]) == larger for tensor in inputs[1:])
    return (replace(moved(larger[:2], larger[2]), adds=besides, curves=curves),) * PASSES.get(node.kind, 1)


def _size(shape: Shape) -> tuple[int, int, int]:
    """(height, width, channels) as the delegate lays a tensor out: what is not width or channels counts as height."""
    if len(shape) == 4:
        return shape[0] * shape[1], shape[2], shape[3]
    if len(shape) <= 2:
        return 1, 1, math.prod(shape[1:]) if len(shape) == 2 and shape[0] == 1 else math.prod(shape)
    return math.prod(shape[:-2]), shape[-2], shape[-1]
