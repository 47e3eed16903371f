"""Writes TFLite files operator by operator: tensors, constants and nodes in, the bytes of a model out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import flatbuffers
import numpy
from ai_edge_litert import schema_py_generated as schema

SCHEMA_VERSION = 3
TYPES = {
    numpy.dtype(numpy.float32): schema.TensorType.FLOAT32,
    numpy.dtype(numpy.int32): schema.TensorType.INT32,
    numpy.dtype(numpy.int8): schema.TensorType.INT8,
}
ACTIVATIONS = schema.ActivationFunctionType


@dataclass(frozen=True)
class Quantization:
    """real = scale * (stored - zero_point); one scale and zero point for the tensor, or one an index of `axis`."""

    scale: numpy.ndarray  # [1] or [size of axis] float32
    zero_point: numpy.ndarray  # the same shape, int64
    axis: int = 0


class Writer:
    """Collects the tensors, buffers and operator codes of one model; tensors are known by their index."""

    def __init__(self) -> None:
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators, self.graph.inputs = [], [], []
        self.buffers = [schema.BufferT()]  # buffer 0 is empty: tensors without data point at it
        self.codes: list[int] = []

    def tensor(
        self,
        shape: Sequence[int],
        type: numpy.dtype | type = numpy.float32,
        quantization: Quantization | None = None,
        *,
        buffer: int = 0,
        name: str = "",
    ) -> int:
        tensor = schema.TensorT()
        tensor.shape, tensor.type, tensor.buffer = list(shape), TYPES[numpy.dtype(type)], buffer
        tensor.name = (name or f"t{len(self.graph.tensors)}").encode()
        if quantization is not None:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = quantization.scale.astype(numpy.float32)
            tensor.quantization.zeroPoint = quantization.zero_point.astype(numpy.int64)
            tensor.quantization.quantizedDimension = quantization.axis
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def input(
        self,
        shape: Sequence[int],
        type: numpy.dtype | type = numpy.float32,
        quantization: Quantization | None = None,
        name: str = "",
    ) -> int:
        self.graph.inputs.append(self.tensor(shape, type, quantization, name=name))
        return self.graph.inputs[-1]

    def constant(self, array: numpy.ndarray, quantization: Quantization | None = None) -> int:
        buffer = schema.BufferT()
        buffer.data = numpy.frombuffer(array.tobytes(), dtype=numpy.uint8)
        self.buffers.append(buffer)
        return self.tensor(array.shape, array.dtype, quantization, buffer=len(self.buffers) - 1)

    def node(self, name: str, options_name: str | None, inputs: list[int], output: int, **options: object) -> int:
        """Append the operator `name`, which writes the tensor `output`; returns that."""
        builtin = getattr(schema.BuiltinOperator, name)
        if builtin not in self.codes:
            self.codes.append(builtin)
        node = schema.OperatorT()
        node.opcodeIndex, node.inputs, node.outputs = self.codes.index(builtin), inputs, [output]
        if options_name is not None:
            node.builtinOptionsType = getattr(schema.BuiltinOptions, options_name)
            node.builtinOptions = getattr(schema, f"{options_name}T")()
            for key, option in options.items():
                setattr(node.builtinOptions, key, option)
        self.graph.operators.append(node)
        return output

    def finish(self, outputs: list[int]) -> bytes:
        self.graph.outputs = outputs
        model = schema.ModelT()
        model.version, model.subgraphs, model.buffers = SCHEMA_VERSION, [self.graph], self.buffers
        model.operatorCodes = []
        for builtin in self.codes:
            code = schema.OperatorCodeT()
            code.builtinCode, code.deprecatedBuiltinCode, code.version = builtin, min(builtin, 127), 1
            model.operatorCodes.append(code)
        packer = flatbuffers.Builder(sum(len(b.data) for b in self.buffers if b.data is not None) + 65536)
        packer.Finish(model.Pack(packer), b"TFL3")
        return bytes(packer.Output())
