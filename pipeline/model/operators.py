"""What a network costs to run: its operators as values that a target's cost table can price.

Batch norms and linearised activations behind a layer fold into it, and rectifiers that a runtime fuses (ReLU, ReLU6)
cost nothing; everything priced here survives conversion as an operator of its own, attention as its matrix products,
its softmax and the transpositions around them. Views of data cost nothing.
"""

from __future__ import annotations

import math
import operator as python_operator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from pipeline.model.network import ChannelAffine, Network
from targets.operator import Kind, Operator, matmul, pointwise
from targets.price import Price

aten = torch.ops.aten
FUSED = (nn.ReLU, nn.ReLU6)
FOLDED = (nn.BatchNorm1d, nn.BatchNorm2d, ChannelAffine)
ACTIVATIONS: dict[type[nn.Module], Kind] = {
    nn.GELU: "gelu",
    nn.Hardswish: "hardswish",
    nn.SiLU: "silu",
    nn.Sigmoid: "sigmoid",
    nn.Softmax: "softmax",
    nn.LayerNorm: "norm",
}
FUNCTIONS: dict[object, Kind] = {
    aten.add.Tensor: "add",
    aten.add_.Tensor: "add",
    aten.sub.Tensor: "add",
    python_operator.add: "add",
    aten.mul.Tensor: "mul",
    python_operator.mul: "mul",
    aten.relu.default: "clamp",
    aten.hardtanh.default: "clamp",
    aten.sigmoid.default: "sigmoid",
    aten.hardsigmoid.default: "sigmoid",
    aten.hardswish.default: "hardswish",
    aten.hardswish_.default: "hardswish",
    aten.silu.default: "silu",
    aten.silu_.default: "silu",
    aten.gelu.default: "gelu",
    aten.softmax.int: "softmax",
    aten._softmax.default: "softmax",
    aten.layer_norm.default: "norm",
    aten.native_layer_norm.default: "norm",
    aten.cat.default: "concat",
    aten.upsample_bilinear2d.vec: "resize",
    aten.upsample_bilinear2d.default: "resize",
    aten.transpose.int: "transpose",
    aten.permute.default: "transpose",
}
PRODUCTS = (aten.matmul.default, aten.bmm.default)
ATTENTION = aten.scaled_dot_product_attention.default
POOLS = (aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default, aten.max_pool2d.default, aten.mean.dim)


@dataclass(frozen=True)
class Priced:
    """One operator of a network.

    Attributes:
        name: the layer's name, or the graph's name for what is no layer.
        operator: its shape at batch 1.
        macs: multiply-accumulates of one sample; 0 for what is no layer.
        description: as a person would say it.
    """

    name: str
    operator: Operator
    macs: int
    parameters: int
    description: str


def operators(network: Network) -> list[Priced]:
    """The priced operators of a network in execution order; shapes are taken from one run on the example input."""
    shapes = _Shapes(network.graph).record(network.example)
    priced: list[Priced] = []
    for node in network.graph.graph.nodes:
        if node not in shapes:
            continue
        source = next((a for a in node.all_input_nodes if a in shapes), None)
        if node.op == "call_module":
            module = network.layer(node.target)
            folds = isinstance(module, FOLDED) and source is not None and _is_layer_call(network, source)
            if isinstance(module, FUSED):
                if source is not None and not _is_layer_call(network, source):
                    priced.append(_elementwise(node.target, "clamp", shapes[node], describe(module)))
            elif source is not None and not folds:
                priced.append(_layer(node.target, module, shapes[source], shapes[node]))
        elif node.op == "call_function" and source is not None:
            priced += _function(network, node, source, shapes)
    return priced


def _function(network: Network, node: fx.Node, source: fx.Node, shapes: dict[fx.Node, tuple[int, ...]]) -> list[Priced]:
    """What a call that is no layer costs; nothing for views."""
    inside, out = shapes[source], shapes[node]
    if node.target in POOLS:
        return [_pool(node, inside, out)]
    if node.target == ATTENTION:
        return _attention(node.name, *(shapes[part] for part in node.args[:3]))
    if node.target in PRODUCTS:
        return [_product(node.name, inside, out)]
    kind = FUNCTIONS.get(node.target)
    if kind is None or (kind == "clamp" and _is_layer_call(network, source)):
        return []
    if kind == "resize":
        (channels, in_size), (_, out_size) = _map(inside), _map(out)
        return [Priced(node.name, Operator(kind, channels, channels, (1, 1), (1, 1), 1, in_size, out_size), 0, 0, kind)]
    if kind == "mul":
        others = [shapes[part] for part in node.all_input_nodes if part in shapes]
        if len(others) == 2 and others[0] != others[1]:
            kind = "scale"
    return [_elementwise(node.name, kind, out, kind)]


def _product(name: str, first: tuple[int, ...], out: tuple[int, ...]) -> Priced:
    """[N, heads, tokens, depth] times [N, heads, depth, columns], or with the batch and the heads in one."""
    heads = math.prod(first[1:-2]) or 1
    priced = matmul(heads, first[-2], first[-1], out[-1])
    return Priced(name, priced, priced.macs, 0, f"matrix product, {heads} x {first[-2]}x{first[-1]}x{out[-1]}")


def _attention(name: str, query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...]) -> list[Priced]:
    """The two products and the softmax between them."""
    scores = (*query[:-1], key[-2])
    return [
        _product(name, query, scores),
        _elementwise(name, "softmax", scores, "softmax"),
        _product(name, scores, (*query[:-1], value[-1])),
    ]


def _is_layer_call(network: Network, node: fx.Node) -> bool:
    """A convolution or linear layer, or a norm that folds into one."""
    while node.op == "call_module" and isinstance(network.layer(node.target), FOLDED + FUSED):
        node = node.args[0]
    return node.op == "call_module" and isinstance(network.layer(node.target), (nn.Conv2d, nn.Linear))


def milliseconds(network: Network, costs: Price) -> dict[str, float]:
    """Predicted milliseconds of every operator, by name; a prediction, for choosing where to probe."""
    times: dict[str, float] = {}
    for row in operators(network):
        times[row.name] = times.get(row.name, 0.0) + costs.milliseconds(row.operator)
    return times


def node_shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """Name of every node of the graph -> shape of its value on the example, the batch first."""
    return {node.name: shape for node, shape in _Shapes(network.graph).record(network.example).items()}


def fuses(network: Network, name: str) -> bool:
    """Whether a rectifier behind a node costs nothing: a layer gives its value, or one with a norm or a rectifier."""
    return _is_layer_call(network, next(node for node in network.graph.graph.nodes if node.name == name))


def rectifiers_behind(network: Network, name: str) -> list[str]:
    """Layers that read the value of a node and cost nothing where it `fuses`."""
    node = next(node for node in network.graph.graph.nodes if node.name == name)
    calls = [user.target for user in node.users if user.op == "call_module"]
    return [call for call in calls if isinstance(network.layer(call), FUSED)]


def layer_operator(module: nn.Module, in_size: tuple[int, int], out_size: tuple[int, int]) -> Operator:
    """The priced form of a convolution or linear layer on maps of the given sizes (linear: (tokens, 1))."""
    if isinstance(module, nn.Linear):
        return Operator("linear", module.in_features, module.out_features, (1, 1), (1, 1), 1, in_size, out_size)
    return Operator(
        "conv",
        module.in_channels,
        module.out_channels,
        tuple(module.kernel_size),
        tuple(module.stride),
        module.groups,
        in_size,
        out_size,
    )


def sizes(
    module: nn.Module, in_shape: tuple[int, ...], out_shape: tuple[int, ...]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Spatial size in and out of a layer; a linear layer sees (tokens, 1)."""
    if isinstance(module, nn.Linear):
        tokens = (math.prod(in_shape[1:-1]), 1)
        return tokens, tokens
    return tuple(in_shape[2:4]), tuple(out_shape[2:4])


def describe(module: nn.Module) -> str:
    """A layer in words: `conv 3x3, 24 -> 96, stride 2`."""
    if isinstance(module, nn.Conv2d):
        kernel = "×".join(str(k) for k in module.kernel_size)
        depthwise = module.groups == module.in_channels == module.out_channels > 1
        parts = [f"{'depthwise conv' if depthwise else 'conv'} {kernel}, {module.in_channels} → {module.out_channels}"]
        if module.stride != (1, 1):
            parts.append(f"stride {module.stride[0]}")
        if module.groups > 1 and not depthwise:
            parts.append(f"{module.groups} groups")
        return ", ".join(parts)
    if isinstance(module, nn.Linear):
        return f"linear {module.in_features} → {module.out_features}"
    return type(module).__name__


def _layer(name: str, module: nn.Module, in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> Priced:
    parameters = sum(p.numel() for p in module.parameters())
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        priced = layer_operator(module, *sizes(module, in_shape, out_shape))
        return Priced(name, priced, math.prod(priced.out_size) * module.weight.numel(), parameters, describe(module))
    kind = next((kind for known, kind in ACTIVATIONS.items() if isinstance(module, known)), "mul")
    return replace(_elementwise(name, kind, out_shape, describe(module)), parameters=parameters)


def _elementwise(name: str, kind: Kind, shape: tuple[int, ...], description: str) -> Priced:
    """An operator that gives as many values as it takes."""
    channels, size = _map(shape)
    heads = shape[1] if kind == "transpose" and len(shape) == 4 else 1
    if kind in ("softmax", "norm", "transpose") and len(shape) == 4:  # rows of the last axis
        channels, size = shape[-1], (math.prod(shape[1:-1]), 1)
    if kind == "transpose":  # counted as [tokens, heads * depth]
        channels, size = channels * heads, (max(1, size[0] // heads), 1)
    return Priced(name, pointwise(kind, channels, size, heads), 0, 0, description)


def _pool(node: fx.Node, in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> Priced:
    channels, in_size = _map(in_shape)
    out_size = _map(out_shape)[1] if len(out_shape) == 4 else (1, 1)
    kind = "max_pool" if node.target == aten.max_pool2d.default else "pool"
    window = tuple(max(1, i // max(1, o)) for i, o in zip(in_size, out_size, strict=True))
    return Priced(
        node.name,
        Operator(kind, channels, channels, window, window, 1, in_size, out_size),
        0,
        0,
        f"pool {window[0]}×{window[1]}",
    )


def _map(shape: tuple[int, ...]) -> tuple[int, tuple[int, int]]:
    """Channels and spatial size of a value [N, C, H, W], [N, T, C] or [N, C]."""
    if len(shape) == 4:
        return shape[1], (shape[2], shape[3])
    return shape[-1], (math.prod(shape[1:-1]), 1)


def _batch_first(shape: tuple[int, ...], batch: int) -> tuple[int, ...]:
    """Attention puts tokens first, [T, N, C], or heads beside the batch, [N * H, T, D]: here the batch is first."""
    if not shape or shape[0] == batch:
        return shape
    if len(shape) > 2 and shape[1] == batch:
        return (batch, shape[0], *shape[2:])
    return shape if shape[0] % batch else (batch, shape[0] // batch, *shape[1:])


class _Shapes(fx.Interpreter):
    """Runs a graph once and keeps the shape of every tensor."""

    def record(self, example: tuple[Tensor, ...]) -> dict[fx.Node, tuple[int, ...]]:
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self.batch = example[0].shape[0]
        with torch.no_grad():
            self.run(*example)
        return self.shapes

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if isinstance(value, Tensor) and n.op != "output":
            self.shapes[n] = _batch_first(tuple(value.shape), self.batch)
        return value
