"""A validation network as a TFLite file, channels last, float32 or int8 throughout."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy
from ai_edge_litert import schema_py_generated as schema

from targets.probes.flatbuffer import ACTIVATIONS, Quantization, Writer
from targets.validation.network import Layer, Network
from targets.validation.weights import Weights, quantise_weights

# The format has no fused clip to 1. A clip to 6 is the same clamp in the runtime's kernels, and gates drawn by
# `weights` stay below 1.
FUSED = {"": ACTIVATIONS.NONE, "relu": ACTIVATIONS.RELU, "relu6": ACTIVATIONS.RELU6, "clip01": ACTIVATIONS.RELU6}


RESHAPES = ("tokens", "flatten", "image")  # no operators where the network is a list of them


def build(
    network: Network, weights: dict[int, Weights], scales: list[Quantization] | None = None, *, apart: bool = False
) -> bytes:
    """The model; int8 when the activations' scales are given. Output tensors are named after their layer, `v7`.

    Args:
        apart: every operator has memory of its own for what it computes. A runtime that plans memory lets outputs of
            the model alone have that, so each is one.
    """
    return _Builder(network, weights, scales).model(apart)


class _Builder:
    """Each method named after an operator appends it and returns its output tensor."""

    def __init__(self, network: Network, weights: dict[int, Weights], scales: list[Quantization] | None) -> None:
        self.network, self.weights, self.scales = network, weights, scales
        self.writer = Writer()
        self.type = numpy.float32 if scales is None else numpy.int8

    def model(self, apart: bool) -> bytes:
        values: list[int] = []
        for index, layer in enumerate(self.network.layers):
            append = getattr(self, layer.op if layer.op != "mul" else "add")
            values.append(append(index, layer, [values[source] for source in layer.inputs]))
        if not apart:
            return self.writer.finish([values[-1]])
        computed = [index for index, layer in enumerate(self.network.layers) if layer.op not in ("input", *RESHAPES)]
        return self.writer.finish([values[index] for index in computed])

    def input(self, index: int, layer: Layer, inputs: list[int]) -> int:
        return self.writer.input((1, *layer.shape), self.type, self.scales and self.scales[index], f"v{index}")

    def conv(self, index: int, layer: Layer, inputs: list[int]) -> int:
        kernel, bias = self.constants(index)
        common = {
            "padding": schema.Padding.VALID if layer.valid else schema.Padding.SAME,
            "strideH": layer.stride,
            "strideW": layer.stride,
            "fusedActivationFunction": FUSED[layer.activation],
        }
        if self.network.is_depthwise(index):
            multiplier = layer.shape[-1] // layer.groups
            node = ("DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions", [*inputs, kernel, bias])
            return self.writer.node(*node, self.output(index), depthMultiplier=multiplier, **common)
        return self.writer.node("CONV_2D", "Conv2DOptions", [*inputs, kernel, bias], self.output(index), **common)

    def linear(self, index: int, layer: Layer, inputs: list[int]) -> int:
        node = ("FULLY_CONNECTED", "FullyConnectedOptions", [*inputs, *self.constants(index)])
        fused = FUSED[layer.activation]
        return self.writer.node(*node, self.output(index), keepNumDims=True, fusedActivationFunction=fused)

    def add(self, index: int, layer: Layer, inputs: list[int]) -> int:
        node = (layer.op.upper(), f"{layer.op.capitalize()}Options", inputs)
        return self.writer.node(*node, self.output(index), fusedActivationFunction=FUSED[layer.activation])

    def hardswish(self, index: int, layer: Layer, inputs: list[int]) -> int:
        return self.writer.node("HARD_SWISH", "HardSwishOptions", inputs, self.output(index))

    def gelu(self, index: int, layer: Layer, inputs: list[int]) -> int:
        return self.writer.node("GELU", "GeluOptions", inputs, self.output(index), approximate=False)

    def pool(self, index: int, layer: Layer, inputs: list[int]) -> int:
        return self.writer.node(
            "MAX_POOL_2D" if layer.op == "max_pool" else "AVERAGE_POOL_2D",
            "Pool2DOptions",
            inputs,
            self.output(index),
            padding=schema.Padding.VALID if layer.valid else schema.Padding.SAME,
            strideH=layer.stride,
            strideW=layer.stride,
            filterHeight=layer.kernel,
            filterWidth=layer.kernel,
        )

    max_pool = avg_pool = pool

    def global_pool(self, index: int, layer: Layer, inputs: list[int]) -> int:
        axes = self.integers(1, 2)
        return self.writer.node("MEAN", "ReducerOptions", [*inputs, axes], self.output(index), keepDims=True)

    def concat(self, index: int, layer: Layer, inputs: list[int]) -> int:
        axis = len(layer.shape)
        return self.writer.node("CONCATENATION", "ConcatenationOptions", inputs, self.output(index), axis=axis)

    def upsample(self, index: int, layer: Layer, inputs: list[int]) -> int:
        node = ("RESIZE_BILINEAR", "ResizeBilinearOptions", [*inputs, self.integers(*layer.shape[:2])])
        return self.writer.node(*node, self.output(index), alignCorners=False, halfPixelCenters=True)

    def shuffle(self, index: int, layer: Layer, inputs: list[int]) -> int:
        """Channels of g groups interleave: [g, c / g] becomes [c / g, g]."""
        height, width, channels = layer.shape
        split = (1, height, width, layer.groups, channels // layer.groups)
        grouped = self.reshaped(inputs[0], split, self.intermediate(index, split))
        turned = self.intermediate(index, (*split[:3], split[4], split[3]))
        self.writer.node("TRANSPOSE", "TransposeOptions", [grouped, self.integers(0, 1, 2, 4, 3)], turned)
        return self.reshaped(turned, (1, *layer.shape), self.output(index))

    def reshape(self, index: int, layer: Layer, inputs: list[int]) -> int:
        return self.reshaped(inputs[0], (1, *layer.shape), self.output(index))

    tokens = flatten = image = reshape

    def transpose(self, index: int, layer: Layer, inputs: list[int]) -> int:
        node = ("TRANSPOSE", "TransposeOptions", [*inputs, self.integers(0, 2, 1)])
        return self.writer.node(*node, self.output(index))

    def reshaped(self, value: int, shape: tuple[int, ...], output: int) -> int:
        node = ("RESHAPE", "ReshapeOptions", [value, self.integers(*shape)])
        return self.writer.node(*node, output, newShape=list(shape))

    def output(self, index: int) -> int:
        shape = (1, *self.network.layers[index].shape)
        return self.writer.tensor(shape, self.type, self.scales and self.scales[index], name=f"v{index}")

    def intermediate(self, index: int, shape: tuple[int, ...]) -> int:
        return self.writer.tensor(shape, self.type, self.scales and self.scales[index])

    def integers(self, *values: int) -> int:
        return self.writer.constant(numpy.array(values, numpy.int32))

    def constants(self, index: int) -> tuple[int, int]:
        """Kernel and bias as TFLite lays them out; a depthwise kernel is [1, height, width, channels]."""
        weights = self.weights[index]
        layer = self.network.layers[index]
        scale = bias_scale = None
        kernel, bias = weights.kernel, weights.bias
        if self.scales is not None:
            source = self.scales[layer.inputs[0]].scale
            kernel, scale, bias, bias_scale = quantise_weights(weights, source)
        if layer.op == "linear":
            kernel = kernel.reshape(len(kernel), math.prod(kernel.shape[1:]))
        elif self.network.is_depthwise(index):
            kernel = numpy.ascontiguousarray(kernel.transpose(3, 1, 2, 0))
            scale = scale and replace(scale, axis=3)
        return self.writer.constant(kernel, scale), self.writer.constant(bias, bias_scale)
