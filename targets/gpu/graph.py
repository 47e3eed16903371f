"""The operators of a .tflite file with what decides how a GPU runs them: strides, constants, who reads what."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from targets.runners import unusable

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """One operator. Tensors are numbers; those in `constants` hold values of the file.

    Attributes:
        runtime: inputs that are computed, or fed.
        stride: (height, width) of a window.
        curved: the activation it ends with takes more than a comparison.
        place: in the file, which lists operators of constants alone, too.
    """

    kind: str
    inputs: tuple[int, ...]
    runtime: tuple[int, ...]
    outputs: tuple[int, ...]
    stride: tuple[int, int]
    window: tuple[int, int]
    curved: bool
    place: int


@dataclass(frozen=True)
class Graph:
    """A model's main subgraph, in the order it runs."""

    nodes: tuple[Node, ...]
    shapes: dict[int, Shape]
    outputs: frozenset[int]

    def readers(self, tensor: int) -> int:
        """How many operators read a tensor; the caller counts as one."""
        return sum(tensor in node.runtime for node in self.nodes) + (tensor in self.outputs)

    def part(self, taken: Collection[int]) -> Graph:
        """The operators at these places of the file; what others read of them leaves as an output."""
        others = [node for node in self.nodes if node.place not in taken]
        left = {tensor for node in others for tensor in node.runtime}
        mine = tuple(node for node in self.nodes if node.place in taken)
        written = {tensor for node in mine for tensor in node.outputs}
        return Graph(mine, self.shapes, frozenset(written & (self.outputs | left)))


def read(path: Path) -> Graph:
    """
    Raises:
        UsageError: `ARTIFACT_UNUSABLE` for what is no .tflite file.
    """
    from ai_edge_litert import schema_py_generated as schema

    data = path.read_bytes()
    if data[4:8] != b"TFL3":
        raise unusable(path, "it does not begin as a .tflite file does")
    model = schema.Model.GetRootAs(data)
    names = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
    codes = [model.OperatorCodes(index) for index in range(model.OperatorCodesLength())]
    kinds = [names.get(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()), "CUSTOM") for code in codes]
    subgraph = model.Subgraphs(0)
    shapes = {index: _numbers(subgraph.Tensors(index), "Shape") for index in range(subgraph.TensorsLength())}
    operators = [subgraph.Operators(index) for index in range(subgraph.OperatorsLength())]
    computed = set(_numbers(subgraph, "Inputs")) | {out for one in operators for out in _numbers(one, "Outputs")}
    nodes: list[Node] = []
    for place, operator in enumerate(operators):
        inputs = tuple(tensor for tensor in _numbers(operator, "Inputs") if tensor >= 0)
        outputs = _numbers(operator, "Outputs")
        runtime = tuple(tensor for tensor in inputs if tensor in computed)
        if not runtime:  # of constants alone, as a dequantised weight is
            computed -= set(outputs)
            continue
        nodes.append(Node(kinds[operator.OpcodeIndex()], inputs, runtime, outputs, *_options(operator, schema), place))
    return Graph(tuple(nodes), shapes, frozenset(_numbers(subgraph, "Outputs")))


def _numbers(table: Any, field: str) -> Shape:
    """A vector of whole numbers of a flatbuffer's table."""
    return tuple(int(getattr(table, field)(index)) for index in range(getattr(table, f"{field}Length")()))


def _options(operator: Any, schema: Any) -> tuple[tuple[int, int], tuple[int, int], bool]:
    """(stride, window, curved) of an operator's options; 1 where it has none."""
    names = {number: name for name, number in vars(schema.BuiltinOptions).items() if isinstance(number, int)}
    held = operator.BuiltinOptions()
    if held is None:
        return (1, 1), (1, 1), False
    options = getattr(schema, names[operator.BuiltinOptionsType()])()
    options.Init(held.Bytes, held.Pos)

    def value(field: str, default: int) -> int:
        return getattr(options, field)() if hasattr(options, field) else default

    plain = (
        schema.ActivationFunctionType.NONE,
        schema.ActivationFunctionType.RELU,
        schema.ActivationFunctionType.RELU_N1_TO_1,
        schema.ActivationFunctionType.RELU6,
    )
    curved = value("FusedActivationFunction", schema.ActivationFunctionType.NONE) not in plain
    return (value("StrideH", 1), value("StrideW", 1)), (value("FilterHeight", 1), value("FilterWidth", 1)), curved
