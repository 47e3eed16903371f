"""A TFLite file of chains of operators, float32, channels last, weights random and nowhere zero."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
from ai_edge_litert import schema_py_generated as schema

from targets.operator import Operator
from targets.probes import Probe
from targets.probes.flatbuffer import ACTIVATIONS, Writer

RELU = ACTIVATIONS.RELU


def build(chains: Sequence[Sequence[Operator]], rng: numpy.random.Generator) -> Probe:
    """Each operator takes what its predecessor gives; a second input is an earlier value of its chain if one fits."""
    return _Builder(rng).probe(chains)


class _Builder:
    """Each method named after a kind of operator appends it and returns its output tensor."""

    def __init__(self, rng: numpy.random.Generator) -> None:
        self.rng = rng
        self.writer = Writer()
        self.samples: dict[str, numpy.ndarray] = {}
        self.earlier: list[int] = []  # values of the chain

    def probe(self, chains: Sequence[Sequence[Operator]]) -> Probe:
        nodes, outputs = [], []
        for chain in chains:
            value = self.input(self.input_shape(chain[0]))
            self.earlier = [value]
            for operator in chain:
                before = len(self.writer.graph.operators)
                value = getattr(self, operator.kind)(operator, value)
                nodes.append(range(before, len(self.writer.graph.operators)))
                self.earlier.append(value)
            outputs.append(value)
        return Probe(self.writer.finish(outputs), self.samples, tuple(nodes))

    @staticmethod
    def input_shape(operator: Operator) -> tuple[int, ...]:
        if operator.kind == "matmul":
            return 1, operator.groups, operator.in_size[0], operator.in_channels
        if operator.kind in ("linear", "transpose"):
            return 1, operator.in_size[0], operator.in_channels
        return 1, *operator.in_size, operator.in_channels // (2 if operator.kind == "concat" else 1)

    def shape(self, tensor: int) -> tuple[int, ...]:
        return tuple(self.writer.graph.tensors[tensor].shape)

    def input(self, shape: Sequence[int]) -> int:
        index = self.writer.input(shape)
        self.samples[f"t{index}"] = self.rng.standard_normal(shape, dtype=numpy.float32)
        return index

    def other(self, shape: tuple[int, ...], value: int) -> int:
        """An earlier value of that shape, or an input."""
        fitting = [tensor for tensor in self.earlier if self.shape(tensor) == shape and tensor != value]
        return fitting[-1] if fitting else self.input(shape)

    def weights(self, *shape: int) -> int:
        return self.writer.constant(self.rng.uniform(0.1, 1.0, shape).astype(numpy.float32))

    def integers(self, *values: int) -> int:
        return self.writer.constant(numpy.array(values, numpy.int32))

    def node(
        self, name: str, options_name: str | None, inputs: list[int], shape: Sequence[int], **options: object
    ) -> int:
        return self.writer.node(name, options_name, inputs, self.writer.tensor(shape), **options)

    def conv(self, operator: Operator, value: int) -> int:
        common = {
            "padding": schema.Padding.SAME,
            "strideH": operator.stride[0],
            "strideW": operator.stride[1],
            "fusedActivationFunction": RELU,
        }
        if operator.kernel[0] % 2 == 0:  # the format's own padding would keep the size
            before = operator.kernel[0] // 2
            pads = self.writer.constant(numpy.array([[0, 0], [before] * 2, [before] * 2, [0, 0]], numpy.int32))
            height, width = (side + 2 * before for side in operator.in_size)
            value = self.node("PAD", "PadOptions", [value, pads], (1, height, width, operator.in_channels))
            common["padding"] = schema.Padding.VALID
        out = (1, *operator.out_size, operator.out_channels)
        bias = self.weights(operator.out_channels)
        if operator.is_depthwise:
            weights = self.weights(1, *operator.kernel, operator.out_channels)
            common["depthMultiplier"] = operator.out_channels // operator.in_channels
            return self.node("DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions", [value, weights, bias], out, **common)
        weights = self.weights(operator.out_channels, *operator.kernel, operator.in_channels // operator.groups)
        return self.node("CONV_2D", "Conv2DOptions", [value, weights, bias], out, **common)

    def linear(self, operator: Operator, value: int) -> int:
        weights, bias = self.weights(operator.out_channels, operator.in_channels), self.weights(operator.out_channels)
        shape = (*self.shape(value)[:-1], operator.out_channels)
        node = ("FULLY_CONNECTED", "FullyConnectedOptions", [value, weights, bias])
        return self.node(*node, shape, keepNumDims=True)

    def matmul(self, operator: Operator, value: int) -> int:
        batch, (rows, depth), columns = self.shape(value)[:-2], self.shape(value)[-2:], operator.out_channels
        straight, turned = (*batch, depth, columns), (*batch, columns, depth)
        known = [self.shape(tensor) for tensor in self.earlier]
        adjoint = straight not in known and turned in known
        second = value if adjoint and rows == columns else self.other(turned if adjoint else straight, value)
        node = ("BATCH_MATMUL", "BatchMatMulOptions", [value, second], (*batch, rows, columns))
        return self.node(*node, adjX=False, adjY=adjoint)

    def binary(self, operator: Operator, value: int) -> int:
        shape = self.shape(value)
        second = self.input((1, 1, 1, shape[-1])) if operator.kind == "scale" else self.other(shape, value)
        name = "ADD" if operator.kind == "add" else "MUL"
        options = f"{name.capitalize()}Options"
        return self.node(name, options, [value, second], shape)

    add = mul = scale = binary

    def unary(self, name: str, value: int, options: str | None = None, **settings: object) -> int:
        return self.node(name, options, [value], self.shape(value), **settings)

    def clamp(self, operator: Operator, value: int) -> int:
        return self.unary("RELU", value)

    def hardswish(self, operator: Operator, value: int) -> int:
        return self.unary("HARD_SWISH", value, "HardSwishOptions")

    def gelu(self, operator: Operator, value: int) -> int:
        return self.unary("GELU", value, "GeluOptions", approximate=False)

    def sigmoid(self, operator: Operator, value: int) -> int:
        return self.unary("LOGISTIC", value)

    def silu(self, operator: Operator, value: int) -> int:
        return self.node("MUL", "MulOptions", [value, self.sigmoid(operator, value)], self.shape(value))

    def softmax(self, operator: Operator, value: int) -> int:
        return self.unary("SOFTMAX", value, "SoftmaxOptions", beta=1.0)

    def norm(self, operator: Operator, value: int) -> int:
        """As exporters write it: the format has no operator for it."""
        shape, axis = self.shape(value), self.integers(len(self.shape(value)) - 1)
        rows, channels = (*shape[:-1], 1), shape[-1]

        def two(name: str, first: int, second: int, out: tuple[int, ...]) -> int:
            return self.node(name, f"{name.capitalize()}Options", [first, second], out)

        mean = self.node("MEAN", "ReducerOptions", [value, axis], rows, keepDims=True)
        centred = two("SUB", value, mean, shape)
        squared = two("MUL", centred, centred, shape)
        variance = self.node("MEAN", "ReducerOptions", [squared, axis], rows, keepDims=True)
        shifted = two("ADD", variance, self.writer.constant(numpy.array([1e-5], numpy.float32)), rows)
        scaled = two("MUL", centred, self.node("RSQRT", None, [shifted], rows), shape)
        return two("ADD", two("MUL", scaled, self.weights(channels), shape), self.weights(channels), shape)

    def pool(self, operator: Operator, value: int) -> int:
        shape = (1, *operator.out_size, operator.out_channels)
        if operator.is_global_pool:
            return self.node("MEAN", "ReducerOptions", [value, self.integers(1, 2)], shape, keepDims=True)
        return self.node(
            "MAX_POOL_2D" if operator.kind == "max_pool" else "AVERAGE_POOL_2D",
            "Pool2DOptions",
            [value],
            shape,
            padding=schema.Padding.VALID,
            strideH=operator.stride[0],
            strideW=operator.stride[1],
            filterHeight=operator.kernel[0],
            filterWidth=operator.kernel[1],
        )

    max_pool = pool

    def resize(self, operator: Operator, value: int) -> int:
        node = ("RESIZE_BILINEAR", "ResizeBilinearOptions", [value, self.integers(*operator.out_size)])
        return self.node(*node, (1, *operator.out_size, operator.out_channels), halfPixelCenters=True)

    def concat(self, operator: Operator, value: int) -> int:
        shape = self.shape(value)
        node = ("CONCATENATION", "ConcatenationOptions", [value, self.other(shape, value)])
        return self.node(*node, (*shape[:-1], 2 * shape[-1]), axis=len(shape) - 1)

    def transpose(self, operator: Operator, value: int) -> int:
        """[1, tokens, channels] to [1, heads, tokens, channels of a head], or back."""
        shape = self.shape(value)
        if len(shape) == 3:
            value = self.reshaped(value, (1, shape[1], operator.groups, shape[2] // operator.groups))
        one, two, three = self.shape(value)[1:]
        node = ("TRANSPOSE", "TransposeOptions", [value, self.integers(0, 2, 1, 3)])
        turned = self.node(*node, (1, two, one, three))
        return turned if len(shape) == 3 else self.reshaped(turned, (1, two, one * three))

    def reshaped(self, value: int, shape: tuple[int, ...]) -> int:
        return self.node("RESHAPE", "ReshapeOptions", [value, self.integers(*shape)], shape, newShape=list(shape))
