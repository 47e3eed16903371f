"""A TFLite file of operators in a row, float32, channels last, weights random and nowhere zero."""

from __future__ import annotations

from collections.abc import Sequence

import flatbuffers
import numpy
from ai_edge_litert import schema_py_generated as schema

from targets.operator import Operator

SCHEMA_VERSION = 3
RELU = 1


def build(operators: Sequence[Operator], rng: numpy.random.Generator) -> tuple[bytes, dict[str, numpy.ndarray]]:
    """The model as bytes, and one sample for its inputs. Each operator takes what its predecessor gives."""
    return _Builder(rng).model(operators)


class _Builder:
    """Collects the tensors, buffers and operator codes of one model."""

    def __init__(self, rng: numpy.random.Generator) -> None:
        self.rng = rng
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators, self.graph.inputs = [], [], []
        self.buffers = [schema.BufferT()]  # buffer 0 is empty: tensors without data point at it
        self.codes: list[int] = []
        self.samples: dict[str, numpy.ndarray] = {}

    def model(self, operators: Sequence[Operator]) -> tuple[bytes, dict[str, numpy.ndarray]]:
        value = self.input(self.shape(operators[0], operators[0].in_size, operators[0].in_channels))
        for operator in operators:
            value = getattr(self, operator.kind)(operator, value)
        self.graph.outputs = [value]
        model = schema.ModelT()
        model.version, model.subgraphs, model.buffers = SCHEMA_VERSION, [self.graph], self.buffers
        model.operatorCodes = []
        for builtin in self.codes:
            code = schema.OperatorCodeT()
            code.builtinCode = code.deprecatedBuiltinCode = builtin
            code.version = 1
            model.operatorCodes.append(code)
        packer = flatbuffers.Builder(1024)
        packer.Finish(model.Pack(packer), b"TFL3")
        return bytes(packer.Output()), self.samples

    @staticmethod
    def shape(operator: Operator, size: tuple[int, int], channels: int) -> tuple[int, ...]:
        return (1, size[0], channels) if operator.kind == "linear" else (1, *size, channels)

    def tensor(self, shape: Sequence[int], buffer: int = 0, type: int = schema.TensorType.FLOAT32) -> int:
        tensor = schema.TensorT()
        tensor.shape, tensor.type, tensor.buffer = list(shape), type, buffer
        tensor.name = f"t{len(self.graph.tensors)}".encode()
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def input(self, shape: Sequence[int]) -> int:
        index = self.tensor(shape)
        self.graph.inputs.append(index)
        self.samples[f"t{index}"] = self.rng.standard_normal(shape, dtype=numpy.float32)
        return index

    def constant(self, array: numpy.ndarray) -> int:
        buffer = schema.BufferT()
        buffer.data = numpy.frombuffer(array.tobytes(), dtype=numpy.uint8)
        self.buffers.append(buffer)
        kind = schema.TensorType.INT32 if array.dtype == numpy.int32 else schema.TensorType.FLOAT32
        return self.tensor(array.shape, len(self.buffers) - 1, kind)

    def weights(self, *shape: int) -> int:
        return self.constant(self.rng.uniform(0.1, 1.0, shape).astype(numpy.float32))

    def node(self, name: str, options_name: str, inputs: list[int], out_shape: Sequence[int], **options: object) -> int:
        """Append the operator `name`; returns its output tensor."""
        builtin = getattr(schema.BuiltinOperator, name)
        if builtin not in self.codes:
            self.codes.append(builtin)
        node = schema.OperatorT()
        node.opcodeIndex, node.inputs, node.outputs = self.codes.index(builtin), inputs, [self.tensor(out_shape)]
        node.builtinOptionsType = getattr(schema.BuiltinOptions, options_name)
        node.builtinOptions = getattr(schema, f"{options_name}T")()
        for key, option in options.items():
            setattr(node.builtinOptions, key, option)
        self.graph.operators.append(node)
        return node.outputs[0]

    def conv(self, operator: Operator, value: int) -> int:
        common = {
            "padding": schema.Padding.SAME,
            "strideH": operator.stride[0],
            "strideW": operator.stride[1],
            "fusedActivationFunction": RELU,
        }
        out = self.shape(operator, operator.out_size, operator.out_channels)
        bias = self.weights(operator.out_channels)
        if operator.is_depthwise:
            weights = self.weights(1, *operator.kernel, operator.out_channels)
            return self.node(
                "DEPTHWISE_CONV_2D",
                "DepthwiseConv2DOptions",
                [value, weights, bias],
                out,
                depthMultiplier=operator.out_channels // operator.in_channels,
                **common,
            )
        weights = self.weights(operator.out_channels, *operator.kernel, operator.in_channels // operator.groups)
        return self.node("CONV_2D", "Conv2DOptions", [value, weights, bias], out, **common)

    def linear(self, operator: Operator, value: int) -> int:
        weights, bias = self.weights(operator.out_channels, operator.in_channels), self.weights(operator.out_channels)
        return self.node(
            "FULLY_CONNECTED",
            "FullyConnectedOptions",
            [value, weights, bias],
            self.shape(operator, operator.out_size, operator.out_channels),
            keepNumDims=True,
        )

    def elementwise(self, operator: Operator, value: int) -> int:
        shape = self.shape(operator, operator.out_size, operator.out_channels)
        return self.node("ADD", "AddOptions", [value, self.input(shape)], shape, fusedActivationFunction=RELU)

    def pool(self, operator: Operator, value: int) -> int:
        shape = self.shape(operator, operator.out_size, operator.out_channels)
        if operator.is_global_pool:
            axes = self.constant(numpy.array([1, 2], dtype=numpy.int32))
            return self.node("MEAN", "ReducerOptions", [value, axes], shape, keepDims=True)
        return self.node(
            "AVERAGE_POOL_2D",
            "Pool2DOptions",
            [value],
            shape,
            padding=schema.Padding.VALID,
            strideH=operator.stride[0],
            strideW=operator.stride[1],
            filterHeight=operator.kernel[0],
            filterWidth=operator.kernel[1],
        )
