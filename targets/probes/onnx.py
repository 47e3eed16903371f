"""An ONNX file of operators in a row, float32, channels first, weights random and nowhere zero."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
from onnx import TensorProto, helper, numpy_helper

from targets.operator import Operator

OPSET, IR = 17, 8


def build(operators: Sequence[Operator], rng: numpy.random.Generator) -> tuple[bytes, dict[str, numpy.ndarray]]:
    """The model as bytes, and one sample for its inputs. Each operator takes what its predecessor gives."""
    nodes, constants = [], []
    samples: dict[str, numpy.ndarray] = {}

    def constant(*shape: int) -> str:
        name = f"w{len(constants)}"
        constants.append(numpy_helper.from_array(rng.uniform(0.1, 1.0, shape).astype(numpy.float32), name))
        return name

    def input_like(operator: Operator, size: tuple[int, int], channels: int) -> str:
        name = f"x{len(samples)}"
        samples[name] = rng.standard_normal(_shape(operator, size, channels), dtype=numpy.float32)
        return name

    def node(kind: str, inputs: list[str], **attributes: object) -> str:
        name = f"y{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    value = input_like(operators[0], operators[0].in_size, operators[0].in_channels)
    for operator in operators:
        if operator.kind == "conv":
            weights = constant(operator.out_channels, operator.in_channels // operator.groups, *operator.kernel)
            value = node(
                "Relu",
                [
                    node(
                        "Conv",
                        [value, weights, constant(operator.out_channels)],
                        strides=list(operator.stride),
                        group=operator.groups,
                        pads=[size // 2 for size in operator.kernel] * 2,
                    )
                ],
            )
        elif operator.kind == "linear" and operator.pixels == 1:
            value = node(
                "Gemm",
                [value, constant(operator.out_channels, operator.in_channels), constant(operator.out_channels)],
                transB=1,
            )
        elif operator.kind == "linear":
            product = node("MatMul", [value, constant(operator.in_channels, operator.out_channels)])
            value = node("Add", [product, constant(operator.out_channels)])
        elif operator.kind == "elementwise":
            value = node("Add", [value, input_like(operator, operator.in_size, operator.in_channels)])
        elif operator.is_global_pool:
            value = node("GlobalAveragePool", [value])
        else:
            value = node("AveragePool", [value], kernel_shape=list(operator.kernel), strides=list(operator.stride))
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, sample.shape) for name, sample in samples.items()]
    last = operators[-1]
    outputs = [helper.make_tensor_value_info(value, TensorProto.FLOAT, _shape(last, last.out_size, last.out_channels))]
    model = helper.make_model(
        helper.make_graph(nodes, "probe", inputs, outputs, constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR,
    )
    return model.SerializeToString(), samples


def _shape(operator: Operator, size: tuple[int, int], channels: int) -> tuple[int, ...]:
    if operator.kind == "linear":
        return (1, channels) if size[0] == 1 else (1, size[0], channels)
    return (1, channels, *size)
