"""The operators of an exported artifact as its file lists them: shapes, multiply-accumulates, the user's module."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Shape = tuple[int, ...]  # a free size counts as 1: one sample

MODULE = "pkg.torch.onnx.name_scopes"  # torch.onnx's metadata of a node: "['', 'stem', 'stem.0', 'conv2d']"
PARAMETER = re.compile(r"(.+)\.(in_proj_)?(weight|bias)(_quantized)?")  # of torch.nn, after the module's name
PASSING = {"DequantizeLinear", "QuantizeLinear", "Cast", "Transpose"}  # a weight is still that weight behind them

# Inputs (weights, or both factors) of the operators that multiply and accumulate.
CONVOLUTIONS = {
    **dict.fromkeys(("Conv", "FusedConv", "NhwcFusedConv", "ConvInteger"), 1),
    **dict.fromkeys(("QLinearConv", "NhwcQLinearConv"), 3),
    "CONV_2D": 1,
}
MATRIX_PRODUCTS = {
    *("Gemm", "FusedGemm", "MatMul", "FusedMatMul", "MatMulInteger", "QLinearMatMul", "QGemm"),
    *("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "FULLY_CONNECTED", "BATCH_MATMUL"),
}


@dataclass(frozen=True)
class GraphOperator:
    """An operator of an artifact. `module` is empty where the file does not tell."""

    name: str
    kind: str
    in_shapes: tuple[Shape, ...]
    out_shapes: tuple[Shape, ...]
    module: str = ""

    @property
    def macs(self) -> int:
        """Multiply-accumulates on one sample; 0 for operators that do not accumulate products."""
        return macs(self.kind, self.in_shapes, self.out_shapes)

    @property
    def description(self) -> str:
        """The layer in figures: "3×3 64→128 at 28×28", "depthwise 5×5 96 at 14×14", "512→10"; else the output."""
        return describe(self.kind, self.in_shapes, self.out_shapes)


def describe(kind: str, in_shapes: Sequence[Shape], out_shapes: Sequence[Shape]) -> str:
    """See `GraphOperator.description`."""
    out = tuple(out_shapes[0]) if out_shapes else ()
    size = "×".join(map(str, out[1:]))
    if not macs(kind, in_shapes, out_shapes):
        return size
    if kind in MATRIX_PRODUCTS:
        depth = macs(kind, in_shapes, out_shapes) // math.prod(out)
        rows = math.prod(out[:-1])
        return f"{depth}→{out[-1]}" + (f" at {rows} rows" if rows > 1 else "")
    if len(out) != 4:
        return size
    nhwc = kind.isupper()  # a name of TFLite
    channels, place = (out[3], out[1:3]) if nhwc else (out[1], out[2:])
    weights = in_shapes[CONVOLUTIONS.get(kind, 1)]
    window = "×".join(map(str, weights[1:3] if nhwc else weights[2:]))
    inputs = in_shapes[2 if kind == "TRANSPOSE_CONV" else 0]
    entering = (inputs[3] if nhwc else inputs[1]) if len(inputs) == 4 else 0
    group = weights[3] if nhwc else weights[1]
    if kind == "DEPTHWISE_CONV_2D" or (kind in CONVOLUTIONS and group == 1 < channels == entering):
        return f"depthwise {window} {channels} at {'×'.join(map(str, place))}"
    return f"{window} {entering}→{channels} at {'×'.join(map(str, place))}"


def macs(kind: str, in_shapes: Sequence[Shape], out_shapes: Sequence[Shape]) -> int:
    """Multiply-accumulates of an operator by the names of ONNX, ONNX Runtime and TFLite; 0 if a shape is unknown."""

    def shape(shapes: Sequence[Shape], index: int) -> Shape:
        return tuple(shapes[index]) if index < len(shapes) and shapes[index] else (0,)

    first, second, out = shape(in_shapes, 0), shape(in_shapes, 1), shape(out_shapes, 0)
    if kind in CONVOLUTIONS:  # weights [out, in / groups, ...] or [out, ..., in / groups]
        weights = shape(in_shapes, CONVOLUTIONS[kind])
        return math.prod(out) * math.prod(weights[1:]) if any(weights) else 0
    if kind == "DEPTHWISE_CONV_2D":  # weights [1, height, width, out]
        return math.prod(out) * math.prod(second[1:3]) if any(second) else 0
    if kind == "ConvTranspose":  # weights [in, out / groups, ...]: every input pixel reaches all of them
        return math.prod(first) * math.prod(second[1:]) if any(second) else 0
    if kind == "TRANSPOSE_CONV":  # inputs: shape, weights [out, height, width, in], activations
        return math.prod(shape(in_shapes, 2)) * math.prod(second[:3])
    if kind in MATRIX_PRODUCTS:  # [..., m, k] or its transpose times [..., k, n]
        return math.prod(first) * out[-1]
    return 0


def read_graph(path: Path, format: str) -> list[GraphOperator]:
    """The operators of an artifact in the order of its file; none for formats without a reader (.pte)."""
    return {"tflite": _read_tflite, "onnx": _read_onnx}.get(format, lambda path: [])(path)


def layers(graph: Sequence[GraphOperator]) -> list[tuple[str, int]]:
    """(module, multiply-accumulates) of the operators with weights whose module is known."""
    return [(operator.module, operator.macs) for operator in graph if operator.module and operator.macs]


def _read_onnx(path: Path) -> list[GraphOperator]:
    import onnx

    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    shapes: dict[str, Shape] = {constant.name: tuple(constant.dims) for constant in graph.initializer}
    constants = {name: name for name in shapes}
    for node in graph.node:
        if node.op_type in PASSING and node.input[0] in constants:
            constants[node.output[0]] = constants[node.input[0]]
    for value in (*graph.input, *graph.value_info, *graph.output):
        shapes[value.name] = tuple(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim)
    return [
        GraphOperator(
            node.name,
            node.op_type,
            tuple(shapes.get(name, ()) for name in node.input),
            tuple(shapes.get(name, ()) for name in node.output),
            _module(node, [constants[name] for name in node.input if name in constants]),
        )
        for node in graph.node
    ]


def _module(node: Any, constants: list[str]) -> str:
    """By the names of its parameters, else by the scope it was exported from, which a fused batch norm replaces."""
    for name in constants:
        if found := PARAMETER.fullmatch(name):
            return found[1]
    for entry in node.metadata_props:
        if entry.key == MODULE:
            scopes = ast.literal_eval(entry.value)
            return scopes[-2] if len(scopes) > 1 else ""
    return ""


def _read_tflite(path: Path) -> list[GraphOperator]:
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes()))
    names = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    graph = model.subgraphs[0]

    def shapes(tensors: Sequence[int]) -> tuple[Shape, ...]:
        # `shape` is None for a scalar, a tensor is -1 where an optional input is left out.
        found = [graph.tensors[tensor].shape if tensor >= 0 else None for tensor in tensors]
        return tuple(() if shape is None else tuple(int(size) for size in shape) for shape in found)

    return [
        GraphOperator(
            graph.tensors[operator.outputs[0]].name.decode(errors="replace") if len(operator.outputs) else "",
            names.get(codes[operator.opcodeIndex], "CUSTOM"),
            shapes(operator.inputs if operator.inputs is not None else ()),
            shapes(operator.outputs if operator.outputs is not None else ()),
        )
        for operator in graph.operators
    ]
