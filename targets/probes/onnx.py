"""An ONNX file of chains of operators, float32, channels first, weights random and nowhere zero."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
from onnx import TensorProto, helper, numpy_helper

from targets.operator import Operator
from targets.probes import Probe

OPSET, IR = 20, 9
Shape = tuple[int, ...]


def build(chains: Sequence[Sequence[Operator]], rng: numpy.random.Generator) -> Probe:
    """Each operator takes what its predecessor gives; a second input is an earlier value of its chain if one fits."""
    return _Builder(rng).probe(chains)


class _Builder:
    """Each method named after a kind of operator appends it and returns its output's name."""

    def __init__(self, rng: numpy.random.Generator) -> None:
        self.rng = rng
        self.nodes: list = []
        self.constants: list = []
        self.samples: dict[str, numpy.ndarray] = {}
        self.shapes: dict[str, Shape] = {}
        self.earlier: list[str] = []  # values of the chain

    def probe(self, chains: Sequence[Sequence[Operator]]) -> Probe:
        nodes, outputs = [], []
        for chain in chains:
            value = self.input(self.input_shape(chain[0]))
            self.earlier = [value]
            for operator in chain:
                before = len(self.nodes)
                value = getattr(self, operator.kind)(operator, value)
                nodes.append(range(before, len(self.nodes)))
                self.earlier.append(value)
            outputs.append(value)
        typed = [
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, self.shapes[name]) for name in names]
            for names in (self.samples, outputs)
        ]
        graph = helper.make_graph(self.nodes, "probe", *typed, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
        return Probe(model.SerializeToString(), self.samples, tuple(nodes))

    @staticmethod
    def input_shape(operator: Operator) -> Shape:
        if operator.kind == "matmul":
            return 1, operator.groups, operator.in_size[0], operator.in_channels
        if operator.kind in ("linear", "transpose"):
            return 1, operator.in_size[0], operator.in_channels
        if operator.kind in ("softmax", "norm"):
            return 1, *operator.in_size, operator.in_channels
        return 1, operator.in_channels // (2 if operator.kind == "concat" else 1), *operator.in_size

    def input(self, shape: Shape) -> str:
        name = f"x{len(self.samples)}"
        self.samples[name] = self.rng.standard_normal(shape, dtype=numpy.float32)
        self.shapes[name] = shape
        return name

    def other(self, shape: Shape, value: str) -> str:
        """An earlier value of that shape, or an input."""
        fitting = [name for name in self.earlier if self.shapes[name] == shape and name != value]
        return fitting[-1] if fitting else self.input(shape)

    def constant(self, array: numpy.ndarray) -> str:
        name = f"w{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def weights(self, *shape: int) -> str:
        return self.constant(self.rng.uniform(0.1, 1.0, shape).astype(numpy.float32))

    def node(self, kind: str, inputs: list[str], shape: Shape, **attributes: object) -> str:
        name = f"y{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        self.shapes[name] = shape
        return name

    def conv(self, operator: Operator, value: str) -> str:
        weights = self.weights(operator.out_channels, operator.in_channels // operator.groups, *operator.kernel)
        shape = (1, operator.out_channels, *operator.out_size)
        product = self.node(
            "Conv",
            [value, weights, self.weights(operator.out_channels)],
            shape,
            strides=list(operator.stride),
            group=operator.groups,
            pads=[size // 2 for size in operator.kernel] * 2,
        )
        return self.node("Relu", [product], shape)

    def linear(self, operator: Operator, value: str) -> str:
        """One row: Gemm; several tokens: MatMul and Add, as exporters write them."""
        inputs, outputs = operator.in_channels, operator.out_channels
        if operator.pixels == 1:
            if len(self.shapes[value]) > 2:
                value = self.node("Flatten", [value], (1, inputs))
            return self.node(
                "Gemm", [value, self.weights(outputs, inputs), self.weights(outputs)], (1, outputs), transB=1
            )
        shape = (1, operator.in_size[0], outputs)
        product = self.node("MatMul", [value, self.weights(inputs, outputs)], shape)
        return self.node("Add", [product, self.weights(outputs)], shape)

    def matmul(self, operator: Operator, value: str) -> str:
        batch, (rows, depth), columns = self.shapes[value][:-2], self.shapes[value][-2:], operator.out_channels
        straight, turned = (*batch, depth, columns), (*batch, columns, depth)
        known = [self.shapes[name] for name in self.earlier]
        adjoint = straight not in known and turned in known
        second = value if adjoint and rows == columns else self.other(turned if adjoint else straight, value)
        if adjoint:
            second = self.node("Transpose", [second], straight, perm=[0, 1, 3, 2])
        return self.node("MatMul", [value, second], (*batch, rows, columns))

    def binary(self, operator: Operator, value: str) -> str:
        shape = self.shapes[value]
        second = self.input((1, shape[1], 1, 1)) if operator.kind == "scale" else self.other(shape, value)
        return self.node("Add" if operator.kind == "add" else "Mul", [value, second], shape)

    add = mul = scale = binary

    def unary(self, kind: str, value: str, **attributes: object) -> str:
        return self.node(kind, [value], self.shapes[value], **attributes)

    def clamp(self, operator: Operator, value: str) -> str:
        return self.unary("Relu", value)

    def hardswish(self, operator: Operator, value: str) -> str:
        return self.unary("HardSwish", value)

    def gelu(self, operator: Operator, value: str) -> str:
        return self.unary("Gelu", value)

    def sigmoid(self, operator: Operator, value: str) -> str:
        return self.unary("Sigmoid", value)

    def silu(self, operator: Operator, value: str) -> str:
        return self.node("Mul", [value, self.sigmoid(operator, value)], self.shapes[value])

    def softmax(self, operator: Operator, value: str) -> str:
        return self.unary("Softmax", value, axis=-1)

    def norm(self, operator: Operator, value: str) -> str:
        channels = operator.in_channels
        inputs = [value, self.weights(channels), self.weights(channels)]
        return self.node("LayerNormalization", inputs, self.shapes[value], axis=-1)

    def pool(self, operator: Operator, value: str) -> str:
        shape = (1, operator.out_channels, *operator.out_size)
        if operator.is_global_pool:
            return self.node("GlobalAveragePool", [value], shape)
        kind = "MaxPool" if operator.kind == "max_pool" else "AveragePool"
        return self.node(kind, [value], shape, kernel_shape=list(operator.kernel), strides=list(operator.stride))

    max_pool = pool

    def resize(self, operator: Operator, value: str) -> str:
        factors = [out / size for out, size in zip(operator.out_size, operator.in_size)]
        scales = self.constant(numpy.array([1, 1, *factors], numpy.float32))
        shape = (1, operator.out_channels, *operator.out_size)
        mode = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        return self.node("Resize", [value, "", scales], shape, **mode)

    def concat(self, operator: Operator, value: str) -> str:
        shape = self.shapes[value]
        out = (1, 2 * shape[1], *shape[2:])
        return self.node("Concat", [value, self.other(shape, value)], out, axis=1)

    def transpose(self, operator: Operator, value: str) -> str:
        """[1, tokens, channels] to [1, heads, tokens, channels of a head], or back."""
        shape = self.shapes[value]
        if len(shape) == 3:
            value = self.reshaped(value, (1, shape[1], operator.groups, shape[2] // operator.groups))
        one, two, three = self.shapes[value][1:]
        turned = self.node("Transpose", [value], (1, two, one, three), perm=[0, 2, 1, 3])
        return turned if len(shape) == 3 else self.reshaped(turned, (1, two, one * three))

    def reshaped(self, value: str, shape: Shape) -> str:
        return self.node("Reshape", [value, self.constant(numpy.array(shape, numpy.int64))], shape)
