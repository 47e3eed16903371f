"""What a file says of its operators: multiply-accumulates, shapes and the user's modules."""

from __future__ import annotations

import numpy
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from targets.graph import GraphOperator, layers, macs, read_graph
from targets.operator import Operator
from targets.probes import onnx as probe
from targets.probes import tflite
from targets.probes.design import convolution

NETWORK = [
    convolution(3, 16, 3, 2, 32),
    convolution(16, 16, 3, 1, 16, groups=16),
    convolution(16, 24, 1, 1, 16),
    Operator("add", 24, 24, (1, 1), (1, 1), 1, (16, 16), (16, 16)),
    Operator("pool", 24, 24, (16, 16), (1, 1), 1, (16, 16), (1, 1)),
]
LINEAR = [
    Operator("linear", 24, 48, (1, 1), (1, 1), 1, (50, 1), (50, 1)),
    Operator("linear", 48, 10, (1, 1), (1, 1), 1, (50, 1), (50, 1)),
]


@pytest.fixture
def artifact(tmp_path):
    """(operators, format) -> path."""

    def write(operators, format):
        path = tmp_path / f"network.{format}"
        path.write_bytes(
            {"tflite": tflite, "onnx": probe}[format].build([operators], numpy.random.default_rng(1)).content
        )
        return path

    return write


@pytest.mark.parametrize("format", ["tflite", "onnx"])
@pytest.mark.parametrize("network", [NETWORK, LINEAR], ids=["convolutions", "linear"])
def test_both_formats_tell_the_multiply_accumulates_of_the_network(artifact, network, format):
    path = artifact(network, format)
    counted = [operator.macs for operator in read_graph(path, format) if operator.macs]
    assert counted == [operator.macs for operator in network if operator.kind in ("conv", "linear")]


def test_shapes_are_those_of_one_sample(artifact):
    first = read_graph(artifact(NETWORK, "tflite"), "tflite")[0]
    assert first.kind == "CONV_2D" and first.out_shapes == ((1, 16, 16, 16),)
    assert first.in_shapes[0] == (1, 32, 32, 3)


@pytest.mark.parametrize(
    ("kind", "ins", "outs", "expected"),
    [
        ("FusedConv", [[1, 8, 4, 4], [16, 2, 3, 3], [16]], [[1, 16, 4, 4]], 16 * 16 * 2 * 9),
        ("QLinearConv", [[1, 8, 4, 4], [], [], [16, 8, 1, 1]], [[1, 16, 4, 4]], 16 * 16 * 8),
        ("ConvTranspose", [[1, 8, 4, 4], [8, 16, 2, 2]], [[1, 16, 8, 8]], 16 * 8 * 16 * 4),
        ("TRANSPOSE_CONV", [[4], [16, 2, 2, 8], [1, 4, 4, 8]], [[1, 8, 8, 16]], 16 * 8 * 16 * 4),
        ("BATCH_MATMUL", [[4, 5, 6], [4, 6, 7]], [[4, 5, 7]], 4 * 5 * 6 * 7),
        ("FusedMatMul", [[4, 6, 5], [4, 6, 7]], [[4, 5, 7]], 4 * 5 * 6 * 7),
        ("Softmax", [[4, 5]], [[4, 5]], 0),
        ("Conv", [[1, 8, 4, 4], []], [[1, 16, 4, 4]], 0),
        ("Gemm", [], [], 0),
    ],
)
def test_multiply_accumulates_of_a_kind(kind, ins, outs, expected):
    assert macs(kind, ins, outs) == expected


def write_onnx(folder, nodes, constants, shape):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_module_is_known_by_its_parameter_also_behind_its_dequantisation(tmp_path):
    nodes = [
        helper.make_node("DequantizeLinear", ["blocks.0.conv.weight_quantized", "scale"], ["w"]),
        helper.make_node("Conv", ["x", "w"], ["h"], name="node_conv"),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    constants = {
        "blocks.0.conv.weight_quantized": numpy.ones((8, 3, 1, 1), numpy.int8),
        "scale": numpy.array(0.5, numpy.float32),
    }
    graph = read_graph(write_onnx(tmp_path, nodes, constants, ["n", 3, 5, 5]), "onnx")
    assert [operator.module for operator in graph] == ["blocks.0.conv", "blocks.0.conv", ""]
    assert layers(graph) == [("blocks.0.conv", 8 * 3 * 25)]


def test_a_module_is_known_by_the_scope_it_was_exported_from(tmp_path):
    node = helper.make_node("MatMul", ["x", "val_1"], ["y"], name="node_matmul")
    node.metadata_props.append(
        onnx.StringStringEntryProto(key="pkg.torch.onnx.name_scopes", value="['', 'mlp', 'mlp.0', 'linear']")
    )
    graph = read_graph(write_onnx(tmp_path, [node], {"val_1": numpy.ones((6, 4), numpy.float32)}, [2, 6]), "onnx")
    assert graph == [GraphOperator("node_matmul", "MatMul", ((2, 6), (6, 4)), ((2, 4),), "mlp.0")]


def test_a_format_without_a_reader_has_no_operators(tmp_path):
    assert read_graph(tmp_path / "model.pte", "pte") == []
