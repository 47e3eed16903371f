"""A validation network as an ONNX file, channels first, float32, or int8 with quantise/dequantise pairs.

In the int8 form inputs and outputs stay float32, as ONNX Runtime's own quantiser leaves them; kernels are int8 with a
scale for each output channel, activations int8 with one scale each.
"""

from __future__ import annotations

import numpy
from onnx import TensorProto, helper, numpy_helper

from targets.probes.flatbuffer import Quantization
from targets.validation.network import Layer, Network
from targets.validation.weights import Weights, quantise_weights

OPSET, IR = 20, 9


def build(network: Network, weights: dict[int, Weights], scales: list[Quantization] | None = None) -> bytes:
    """The model; int8 when the activations' scales are given. Values are named after their layer, `v7`."""
    return _Builder(network, weights, scales).model()


class _Builder:
    """Each method named after an operator appends it and returns the name of its output."""

    def __init__(self, network: Network, weights: dict[int, Weights], scales: list[Quantization] | None) -> None:
        self.network, self.weights, self.scales = network, weights, scales
        self.nodes, self.constants = [], []

    def model(self) -> bytes:
        values: list[str] = []
        for index, layer in enumerate(self.network.layers):
            value = getattr(self, layer.op)(index, layer, [values[source] for source in layer.inputs])
            values.append(self.rounded(value, index))
        first, last = self.network.layers[0], self.network.layers[-1]
        graph = helper.make_graph(
            self.nodes,
            self.network.name,
            [helper.make_tensor_value_info("v0", TensorProto.FLOAT, _shape(first))],
            [helper.make_tensor_value_info(values[-1], TensorProto.FLOAT, _shape(last))],
            self.constants,
        )
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR).SerializeToString()

    def input(self, index: int, layer: Layer, inputs: list[str]) -> str:
        return "v0"

    def conv(self, index: int, layer: Layer, inputs: list[str]) -> str:
        kernel, bias = self.kernel_and_bias(index, "oihw")
        before, after = self.network.pads(index)
        settings = {"strides": [layer.stride] * 2, "group": layer.groups, "pads": [before] * 2 + [after] * 2}
        return self.activated(self.node("Conv", [*inputs, kernel, bias], **settings), layer)

    def linear(self, index: int, layer: Layer, inputs: list[str]) -> str:
        """One row: Gemm; several tokens: MatMul and Add, as exporters write them."""
        shape = self.network.input_shape(index)
        if len(shape) == 3 or shape[0] == 1:
            kernel, bias = self.kernel_and_bias(index, "oi")
            row = self.node("Flatten", inputs)
            product = self.node("Gemm", [row, kernel, bias], transB=1)
            return self.activated(self.reshaped(product, _shape(layer)), layer)
        kernel, bias = self.kernel_and_bias(index, "io")
        product = self.node("MatMul", [*inputs, kernel])
        return self.activated(self.node("Add", [product, bias]), layer)

    def add(self, index: int, layer: Layer, inputs: list[str]) -> str:
        return self.activated(self.node(layer.op.capitalize(), inputs), layer)

    mul = add

    def hardswish(self, index: int, layer: Layer, inputs: list[str]) -> str:
        return self.node("HardSwish", inputs)

    def gelu(self, index: int, layer: Layer, inputs: list[str]) -> str:
        return self.node("Gelu", inputs)

    def max_pool(self, index: int, layer: Layer, inputs: list[str]) -> str:
        before, after = self.network.pads(index)
        settings = {"kernel_shape": [layer.kernel] * 2, "strides": [layer.stride] * 2}
        kind = "MaxPool" if layer.op == "max_pool" else "AveragePool"
        return self.node(kind, inputs, pads=[before] * 2 + [after] * 2, **settings)

    avg_pool = max_pool

    def global_pool(self, index: int, layer: Layer, inputs: list[str]) -> str:
        return self.node("GlobalAveragePool", inputs)

    def concat(self, index: int, layer: Layer, inputs: list[str]) -> str:
        return self.node("Concat", inputs, axis=1 if len(layer.shape) == 3 else 2)

    def upsample(self, index: int, layer: Layer, inputs: list[str]) -> str:
        factors = self.constant(numpy.array([1, 1, layer.stride, layer.stride], numpy.float32))
        return self.node("Resize", [*inputs, "", factors], mode="linear", coordinate_transformation_mode="half_pixel")

    def shuffle(self, index: int, layer: Layer, inputs: list[str]) -> str:
        height, width, channels = layer.shape
        split = self.reshaped(inputs[0], (1, layer.groups, channels // layer.groups, height, width))
        return self.reshaped(self.node("Transpose", [split], perm=[0, 2, 1, 3, 4]), _shape(layer))

    def tokens(self, index: int, layer: Layer, inputs: list[str]) -> str:
        tokens, channels = layer.shape
        return self.node("Transpose", [self.reshaped(inputs[0], (1, channels, tokens))], perm=[0, 2, 1])

    def image(self, index: int, layer: Layer, inputs: list[str]) -> str:
        return self.reshaped(self.node("Transpose", inputs, perm=[0, 2, 1]), _shape(layer))

    def flatten(self, index: int, layer: Layer, inputs: list[str]) -> str:
        """Rows of pixels with their channels last, as in the TFLite file."""
        if len(self.network.input_shape(index)) == 3:
            inputs = [self.node("Transpose", inputs, perm=[0, 2, 3, 1])]
        return self.reshaped(inputs[0], _shape(layer))

    def transpose(self, index: int, layer: Layer, inputs: list[str]) -> str:
        return self.node("Transpose", inputs, perm=[0, 2, 1])

    def activated(self, value: str, layer: Layer) -> str:
        if not layer.activation:
            return value
        if layer.activation == "relu":
            return self.node("Relu", [value])
        most = {"relu6": 6.0, "clip01": 1.0}[layer.activation]
        return self.node("Clip", [value, *(self.constant(numpy.float32(bound)) for bound in (0.0, most))])

    def rounded(self, value: str, index: int) -> str:
        """The value as its int8 form gives it back; float32 models keep it as it is."""
        if self.scales is None:
            return value
        scale = self.scales[index]
        fixed = [self.constant(scale.scale[0]), self.constant(scale.zero_point[0].astype(numpy.int8))]
        return self.node("DequantizeLinear", [self.node("QuantizeLinear", [value, *fixed]), *fixed])

    def kernel_and_bias(self, index: int, layout: str) -> tuple[str, str]:
        """As `oihw` for Conv, `oi` for Gemm or `io` for MatMul."""
        weights = self.weights[index]

        def arranged(kernel: numpy.ndarray) -> numpy.ndarray:
            if layout == "oihw":
                return numpy.ascontiguousarray(kernel.transpose(0, 3, 1, 2))
            matrix = kernel.reshape(kernel.shape[0], -1)
            return matrix if layout == "oi" else numpy.ascontiguousarray(matrix.T)

        if self.scales is None:
            return self.constant(arranged(weights.kernel)), self.constant(weights.bias)
        source = self.scales[self.network.layers[index].inputs[0]].scale
        kernel, scale, bias, bias_scale = quantise_weights(weights, source)
        zeros = self.constant(scale.zero_point.astype(numpy.int8))
        fixed = [self.constant(arranged(kernel)), self.constant(scale.scale), zeros]
        fixed_bias = [self.constant(bias), self.constant(bias_scale.scale)]
        return (
            self.node("DequantizeLinear", fixed, axis=layout.index("o")),
            self.node("DequantizeLinear", fixed_bias, axis=0),
        )

    def reshaped(self, value: str, shape: tuple[int, ...]) -> str:
        return self.node("Reshape", [value, self.constant(numpy.array(shape, numpy.int64))])

    def constant(self, array: numpy.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(numpy.asarray(array), name))
        return name

    def node(self, kind: str, inputs: list[str], **settings: object) -> str:
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **settings))
        return name


def _shape(layer: Layer) -> tuple[int, ...]:
    """Of the value in ONNX: images [1, channels, height, width], tokens [1, tokens, channels]."""
    if len(layer.shape) == 3:
        height, width, channels = layer.shape
        return (1, channels, height, width)
    return (1, *layer.shape)
