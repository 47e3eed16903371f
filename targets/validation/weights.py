"""Random weights under which a network's activations stay finite and alive, and their int8 forms."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy

from targets.probes.flatbuffer import Quantization
from targets.validation.network import MOVES, WEIGHTED, Network

BIAS = 0.1  # standard deviation; keeps channels alive however small their inputs have become


@dataclass(frozen=True)
class Weights:
    """Of one convolution or linear layer; the kernel is [outputs, height, width, inputs a group] float32."""

    kernel: numpy.ndarray
    bias: numpy.ndarray  # [outputs] float32


Range = tuple[float, float]


def draw(network: Network) -> dict[int, Weights]:
    """Weights of each layer that has any, by its index; always the same for the same network.

    He et al. 2015, equation 10: variance 2 / fan-in before a ReLU. Layers without an activation get a quarter of it,
    because what follows is mostly an addition; gates (clip01) stay about half open, where the clip changes nothing.
    """
    rng = numpy.random.default_rng(zlib.crc32(network.name.encode()))
    drawn = {}
    for index, layer in enumerate(network.layers):
        if layer.op not in WEIGHTED:
            continue
        shape = (layer.shape[-1], layer.kernel, layer.kernel, network.input_shape(index)[-1] // layer.groups)
        gate = layer.activation == "clip01"
        variance = (0.005 if gate else 2.0 if layer.activation else 0.5) / numpy.prod(shape[1:])
        kernel = rng.standard_normal(shape, dtype=numpy.float32) * numpy.float32(numpy.sqrt(variance))
        bias = rng.standard_normal(shape[0], dtype=numpy.float32) * numpy.float32(BIAS)
        drawn[index] = Weights(kernel, numpy.full_like(bias, 0.5) if gate else bias)
    return drawn


def sample(network: Network) -> numpy.ndarray:
    """One input [1, height, width, channels] float32, standard normal."""
    rng = numpy.random.default_rng(zlib.crc32(b"input of " + network.name.encode()))
    return rng.standard_normal((1, *network.layers[0].shape), dtype=numpy.float32)


def activation_scales(network: Network, ranges: list[Range]) -> list[Quantization]:
    """Scale and zero point of every layer's int8 output; layers that only move values share their input's.

    Args:
        ranges: least and largest output of each layer.
    """
    group = list(range(len(network.layers)))

    def root(index: int) -> int:
        return index if group[index] == index else root(group[index])

    for index, layer in enumerate(network.layers):
        if layer.op in MOVES:
            for source in layer.inputs:
                group[root(source)] = root(index)
    widest: dict[int, Range] = {}
    for index, (low, high) in enumerate(ranges):
        if network.layers[index].activation == "clip01":
            low, high = 0.0, 1.0  # the int8 range is the clip
        least, most = widest.get(root(index), (0.0, 1e-6))
        widest[root(index)] = (min(least, low), max(most, high))
    return [_affine(*widest[root(index)]) for index in range(len(network.layers))]


def quantise(array: numpy.ndarray, quantization: Quantization) -> numpy.ndarray:
    """The int8 values that stand for `array`."""
    stored = numpy.round(array / quantization.scale) + quantization.zero_point
    return numpy.clip(stored, -128, 127).astype(numpy.int8)


def quantise_weights(
    weights: Weights, input_scale: numpy.ndarray
) -> tuple[numpy.ndarray, Quantization, numpy.ndarray, Quantization]:
    """Kernel int8 with its symmetric scales of each output channel, bias int32 with its scales."""
    scale = numpy.abs(weights.kernel).reshape(len(weights.kernel), -1).max(1) / 127
    kernel = numpy.round(weights.kernel / scale.reshape(-1, 1, 1, 1)).astype(numpy.int8)
    zero = numpy.zeros(len(scale), numpy.int64)
    bias_scale = (scale * input_scale).astype(numpy.float32)
    bias = numpy.round(weights.bias / bias_scale).astype(numpy.int32)
    return kernel, Quantization(scale.astype(numpy.float32), zero), bias, Quantization(bias_scale, zero)


def _affine(low: float, high: float) -> Quantization:
    scale = (high - low) / 255
    zero = int(numpy.clip(round(-128 - low / scale), -128, 127))
    return Quantization(numpy.array([scale], numpy.float32), numpy.array([zero], numpy.int64))
