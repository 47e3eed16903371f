"""What LiteRT's interpreter hands to its XNNPACK delegate.

Once its tensors are allocated, the interpreter keeps the file's operators and lists behind them one more for each call
of a delegate, with the tensors that enter and leave it. All that lies between the two is the delegate's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from targets.delegation.placement import Placed, Placement, moves_data, of_activations
from targets.graph import read_graph

VIEWS = {"RESHAPE", "SQUEEZE", "EXPAND_DIMS", "QUANTIZE", "DEQUANTIZE", "CAST"}
DELEGATE = "DELEGATE"  # the interpreter's name for a call of one


def read_tflite(path: Path) -> Placement:
    """The operators of a .tflite's main graph, as the interpreter of this machine places them.

    What the graphs of control flow and of composite operators hold counts as the one operator that runs them.

    Raises:
        ValueError, RuntimeError: LiteRT does not take the file.
    """
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    nodes = interpreter._get_ops_details()  # the only public way to the nodes is a log
    own = len(read_graph(path, "tflite"))
    calls = [node for node in nodes[own:] if node["op_name"] == DELEGATE]
    return placed(
        path,
        delegate="XNNPACK",
        learned="LiteRT's interpreter handed them over when it loaded the file on this machine",
        partitions=len(calls),
        partition=_partitions(nodes[:own], calls),
    )


def placed(path: Path, *, delegate: str, learned: str, partitions: int, partition: Mapping[int, int]) -> Placement:
    """The operators of a .tflite's main graph, once it is known which partition each is in.

    Args:
        partition: by the operator's place in the file; those that are not in it are the runtime's own.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes()))
    main = model.subgraphs[0]
    constant = {index for index, tensor in enumerate(main.tensors) if _data(model, tensor) is not None}

    def names(indices: Sequence[int]) -> tuple[str, ...]:
        return tuple(str(index) for index in indices if index >= 0 and index not in constant)

    operators = []
    for index, (node, its) in enumerate(zip(main.operators, read_graph(path, "tflite"))):
        order = _data(model, main.tensors[node.inputs[1]]) if its.kind == "TRANSPOSE" else None
        moves = order is not None and moves_data(its.in_shapes[0], order.view("int32"))
        operators.append(
            Placed(
                kind=its.kind,
                partition=partition.get(index),
                inputs=names(node.inputs),
                outputs=names(node.outputs),
                in_shapes=its.in_shapes,
                out_shapes=its.out_shapes,
                moves=moves,
                views=its.kind in VIEWS or (order is not None and not moves),
            )
        )
    kinds = {number: name for name, number in vars(schema.TensorType).items() if isinstance(number, int)}
    return Placement(
        delegate=delegate,
        learned=learned,
        partitions=partitions,
        operators=of_activations(operators),
        inputs=names(main.inputs),
        outputs=names(main.outputs),
        bytes={str(index): _bytes(tensor, kinds[tensor.type]) for index, tensor in enumerate(main.tensors)},
    )


def _partitions(nodes: Sequence[dict[str, Any]], calls: Sequence[dict[str, Any]]) -> dict[int, int]:
    """Which call runs each of the nodes: back from the tensors that leave it to those that enter it."""
    writer = {int(tensor): index for index, node in enumerate(nodes) for tensor in node["outputs"]}
    found: dict[int, int] = {}
    for number, call in enumerate(calls):
        entering, open_tensors = {int(tensor) for tensor in call["inputs"]}, [int(tensor) for tensor in call["outputs"]]
        while open_tensors:
            tensor = open_tensors.pop()
            index = writer.get(tensor)
            if tensor not in entering and index is not None and index not in found:
                found[index] = number
                open_tensors.extend(int(tensor) for tensor in nodes[index]["inputs"])
    return found


def _data(model: Any, tensor: Any) -> Any:
    """The bytes of a constant; None for an activation."""
    data = model.buffers[tensor.buffer].data
    return data if data is not None and len(data) else None


def _bytes(tensor: Any, kind: str) -> int:
    elements = math.prod(tensor.shape) if tensor.shape is not None else 1
    bits = re.search(r"\d+", kind)  # BOOL and STRING have none
    return math.ceil(int(elements) * (int(bits[0]) if bits else 8) / 8)
