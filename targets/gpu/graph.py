"""The operators of a .tflite file with what decides how a GPU runs them: strides, constants, who reads what."""

from __future__ import annotations

from collections.abc import Iterator
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
    """

    kind: str
    inputs: tuple[int, ...]
    runtime: tuple[int, ...]
    outputs: tuple[int, ...]
    stride: tuple[int, int]
    window: tuple[int, int]
    curved: bool


@dataclass(frozen=True)
class Graph:
    """A model's main subgraph, in the order it runs."""

    nodes: tuple[Node, ...]
    shapes: dict[int, Shape]
    outputs: frozenset[int]

    def readers(self, tensor: int) -> int:
        """How many operators read a tensor; the caller counts as one."""
        return sum(tensor in node.runtime for node in self.nodes) + (tensor in self.outputs)


def read(path: Path) -> Graph:
    """
    Raises:
        UsageError: `ARTIFACT_UNUSABLE` for what is no .tflite file.
    """
    from ai_edge_litert import schema_py_generated as schema

    data = path.read_bytes()
    if data[4:8] != b"TFL3":
        raise unusable(path, "it does not begin as a .tflite file does")
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data))
    names = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
    codes = [names.get(max(code.builtinCode, code.deprecatedBuiltinCode), "CUSTOM") for code in model.operatorCodes]
    subgraph = model.subgraphs[0]
    shapes = {
        number: tuple(int(size) for size in tensor.shape) if tensor.shape is not None else ()
        for number, tensor in enumerate(subgraph.tensors)
    }
    computed = set(_numbers(subgraph.inputs)) | {out for op in subgraph.operators for out in _numbers(op.outputs)}
    nodes: list[Node] = []
    for operator in subgraph.operators:
        kind = codes[operator.opcodeIndex]
        inputs, outputs = tuple(_numbers(operator.inputs)), tuple(_numbers(operator.outputs))
        runtime = tuple(tensor for tensor in inputs if tensor in computed)
        if not runtime:  # of constants alone, as a dequantised weight is
            computed -= set(outputs)
            continue
        nodes.append(Node(kind, inputs, runtime, outputs, *_options(operator.builtinOptions, schema)))
    return Graph(tuple(nodes), shapes, frozenset(_numbers(subgraph.outputs)))


def _numbers(tensors: Any) -> Iterator[int]:
    return (int(tensor) for tensor in (tensors if tensors is not None else ()) if tensor >= 0)


def _options(options: Any, schema: Any) -> tuple[tuple[int, int], tuple[int, int], bool]:
    """(stride, window, curved) of an operator's options; 1 where it has none."""
    stride = (getattr(options, "strideH", 1), getattr(options, "strideW", 1))
    window = (getattr(options, "filterHeight", 1), getattr(options, "filterWidth", 1))
    plain = (
        schema.ActivationFunctionType.NONE,
        schema.ActivationFunctionType.RELU,
        schema.ActivationFunctionType.RELU_N1_TO_1,
        schema.ActivationFunctionType.RELU6,
    )
    return stride, window, getattr(options, "fusedActivationFunction", 0) not in plain
