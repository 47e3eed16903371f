"""What a network costs to run: its operators as values that a target's cost table can price.

Batch norms and linearised activations behind a layer fold into it, and rectifiers that a runtime fuses (ReLU, ReLU6)
cost nothing; everything priced here survives conversion as an operator of its own. Matrix products, softmax and
shuffling of data have no price in the cost table and are left out.
"""

from __future__ import annotations

import math
import operator as python_operator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from pipeline.model.network import ChannelAffine, Network
from targets.cost import CostTable, Operator

aten = torch.ops.aten
FUSED = (nn.ReLU, nn.ReLU6)
FOLDED = (nn.BatchNorm1d, nn.BatchNorm2d, ChannelAffine)
ELEMENTWISE = (
    aten.add.Tensor,
    aten.add_.Tensor,
    aten.mul.Tensor,
    aten.sub.Tensor,
    aten.sigmoid.default,
    aten.hardsigmoid.default,
    python_operator.add,
    python_operator.mul,
)
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
            if source is not None and not isinstance(module, FUSED) and not folds:
                priced.append(_layer(node.target, module, shapes[source], shapes[node]))
        elif node.op == "call_function" and source is not None:
            if node.target in ELEMENTWISE:
                priced.append(_elementwise(node.name, shapes[node], str(node.target).split(".")[-2:][0]))
            elif node.target in POOLS:
                priced.append(_pool(node, shapes[source], shapes[node]))
    return priced


def _is_layer_call(network: Network, node: fx.Node) -> bool:
    """A convolution or linear layer, or a norm that folds into one."""
    while node.op == "call_module" and isinstance(network.layer(node.target), FOLDED + FUSED):
        node = node.args[0]
    return node.op == "call_module" and isinstance(network.layer(node.target), (nn.Conv2d, nn.Linear))


def milliseconds(network: Network, costs: CostTable) -> dict[str, float]:
    """Predicted milliseconds of every operator, by name; a prediction, for choosing where to probe."""
    times: dict[str, float] = {}
    for row in operators(network):
        times[row.name] = times.get(row.name, 0.0) + costs.milliseconds(row.operator)
    return times


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
    elementwise = _elementwise(name, out_shape, describe(module))
    return Priced(name, elementwise.operator, 0, parameters, describe(module))


def _elementwise(name: str, shape: tuple[int, ...], description: str) -> Priced:
    channels, size = _map(shape)
    return Priced(name, Operator("elementwise", channels, channels, (1, 1), (1, 1), 1, size, size), 0, 0, description)


def _pool(node: fx.Node, in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> Priced:
    channels, in_size = _map(in_shape)
    out_size = _map(out_shape)[1] if len(out_shape) == 4 else (1, 1)
    window = tuple(max(1, i // max(1, o)) for i, o in zip(in_size, out_size, strict=True))
    return Priced(
        node.name,
        Operator("pool", channels, channels, window, window, 1, in_size, out_size),
        0,
        0,
        f"pool {window[0]}×{window[1]}",
    )


def _map(shape: tuple[int, ...]) -> tuple[int, tuple[int, int]]:
    """Channels and spatial size of a value [N, C, H, W], [N, T, C] or [N, C]."""
    if len(shape) == 4:
        return shape[1], (shape[2], shape[3])
    return shape[-1], (math.prod(shape[1:-1]), 1)


class _Shapes(fx.Interpreter):
    """Runs a graph once and keeps the shape of every tensor."""

    def record(self, example: tuple[Tensor, ...]) -> dict[fx.Node, tuple[int, ...]]:
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        with torch.no_grad():
            self.run(*example)
        return self.shapes

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if isinstance(value, Tensor) and n.op != "output":
            self.shapes[n] = tuple(value.shape)
        return value
