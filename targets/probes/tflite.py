"""A TFLite file of operators in a row, float32, channels last, weights random and nowhere zero."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
from ai_edge_litert import schema_py_generated as schema

from targets.operator import Operator
from targets.probes.flatbuffer import ACTIVATIONS, Writer

RELU = ACTIVATIONS.RELU


def build(operators: Sequence[Operator], rng: numpy.random.Generator) -> tuple[bytes, dict[str, numpy.ndarray]]:
    """The model as bytes, and one sample for its inputs. Each operator takes what its predecessor gives."""
    return _Builder(rng).model(operators)


class _Builder:
    """One model of operators in a row."""

    def __init__(self, rng: numpy.random.Generator) -> None:
        self.rng = rng
        self.writer = Writer()
        self.samples: dict[str, numpy.ndarray] = {}

    def model(self, operators: Sequence[Operator]) -> tuple[bytes, dict[str, numpy.ndarray]]:
        value = self.input(self.shape(operators[0], operators[0].in_size, operators[0].in_channels))
        for operator in operators:
            value = getattr(self, operator.kind)(operator, value)
        return self.writer.finish([value]), self.samples

    @staticmethod
    def shape(operator: Operator, size: tuple[int, int], channels: int) -> tuple[int, ...]:
        return (1, size[0], channels) if operator.kind == "linear" else (1, *size, channels)

    def input(self, shape: Sequence[int]) -> int:
        index = self.writer.input(shape)
        self.samples[f"t{index}"] = self.rng.standard_normal(shape, dtype=numpy.float32)
        return index

    def weights(self, *shape: int) -> int:
        return self.writer.constant(self.rng.uniform(0.1, 1.0, shape).astype(numpy.float32))

    def node(self, name: str, options_name: str, inputs: list[int], out_shape: Sequence[int], **options: object) -> int:
        return self.writer.node(name, options_name, inputs, self.writer.tensor(out_shape), **options)

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
            axes = self.writer.constant(numpy.array([1, 2], dtype=numpy.int32))
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
