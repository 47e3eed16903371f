"""What ONNX Runtime makes of a graph on the CPU, and what its mobile providers might take of it.

The CPU provider runs every operator it loads, so there is one partition and nothing falls back. What can go wrong is
what the optimised graph holds: transposes, and reorders between blocked layouts.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from targets.delegation.placement import Placed, Placement, moves_data, of_activations
from targets.graph import read_graph
from targets.runners.artifact import runtime_version

if TYPE_CHECKING:
    from onnxruntime.tools.mobile_helpers.usability_checker import PartitioningInfo

VIEWS = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast", "QuantizeLinear", "DequantizeLinear"}
REORDERS = {"ReorderInput", "ReorderOutput"}
BLOCKED_LAYOUTS = "NchwcTransformer"  # an optimiser that exists where the processor has kernels for it


@dataclass(frozen=True)
class Estimate:
    """What another provider would take, going by the names of operators it knows: an estimate, nothing was run.

    Attributes:
        delegate: "NNAPI", "Core ML".
        verdict: whether to try that provider at all, in the words of the source, and what it would leave: "maybe: it
            knows no Atan".
        source: who says so.
    """

    delegate: str
    partitions: int
    nodes: int
    delegated_nodes: int
    verdict: str
    source: str


def read_onnx(path: Path, *, blocked: bool = False) -> Placement:
    """The graph of an .onnx or .ort file as a session of the CPU provider runs it.

    Args:
        blocked: let the session choose blocked layouts (NCHWc) as this machine's processor has them. A phone's may not,
            so they stay out unless its own operators are known to be such.

    Raises:
        RuntimeError: ONNX Runtime does not take the file.
    """
    import onnx
    from onnx.helper import tensor_dtype_to_np_dtype

    with _optimised(path, blocked) as optimised:
        model = onnx.shape_inference.infer_shapes(onnx.load(optimised))
        graph = read_graph(optimised, "onnx")
    values = {value.name: value for value in (*model.graph.input, *model.graph.value_info, *model.graph.output)}
    constant = {each.name for each in model.graph.initializer}
    constant |= {name for node in model.graph.node if node.op_type == "Constant" for name in node.output}
    operators = []
    for node, its in zip(model.graph.node, graph):
        if node.op_type == "Constant":
            continue
        order = next((list(each.ints) for each in node.attribute if each.name == "perm"), None)
        if node.op_type == "Transpose" and order is None:
            order = list(reversed(range(len(its.in_shapes[0]))))
        moves = node.op_type in REORDERS
        if node.op_type == "Transpose":
            moves = not its.in_shapes[0] or moves_data(its.in_shapes[0], order)
        operators.append(
            Placed(
                kind=node.op_type,
                partition=0,
                inputs=tuple(name for name in node.input if name and name not in constant),
                outputs=tuple(node.output),
                in_shapes=its.in_shapes,
                out_shapes=its.out_shapes,
                module=its.module,
                moves=moves,
                views=node.op_type in VIEWS or (node.op_type == "Transpose" and not moves),
            )
        )

    def size(value: Any) -> int:
        tensor = value.type.tensor_type
        elements = math.prod(dim.dim_value or 1 for dim in tensor.shape.dim)
        return elements * tensor_dtype_to_np_dtype(tensor.elem_type).itemsize

    return Placement(
        delegate="CPU",
        learned="ONNX Runtime's CPU provider runs everything; this is its graph after all optimisations"
        + (" with this machine's blocked layouts" if blocked else " that every processor has"),
        partitions=1,
        operators=of_activations(operators),
        inputs=tuple(each.name for each in model.graph.input if each.name not in constant),
        outputs=tuple(each.name for each in model.graph.output),
        bytes={name: size(value) for name, value in values.items() if value.type.tensor_type.elem_type},
    )


def estimates(path: Path) -> tuple[Estimate, ...]:
    """Of NNAPI and Core ML for an .onnx file, by onnxruntime's `mobile_helpers.usability_checker`.

    It looks operators up in tables of what each provider supports and does not check their attributes; for XNNPACK
    onnxruntime ships no table.
    """
    from onnxruntime.tools.mobile_helpers import usability_checker

    model = usability_checker.ModelProtoWithShapeInfo(path.resolve()).model_with_shape_info
    found = {
        "NNAPI": usability_checker.check_nnapi_partitions(model, True),
        "Core ML": usability_checker.check_coreml_partitions(model, True, "coreml_supported_mlprogram_ops.md"),
    }
    source = f"the usability checker of {runtime_version('onnx')}, by tables of operators"
    return tuple(
        Estimate(name, info.num_partitions, info.num_nodes, info.num_supported_nodes, _verdict(info), source)
        for name, info in found.items()
    )


def _verdict(info: PartitioningInfo) -> str:
    left = ", ".join(sorted(kind.rpartition(":")[2] for kind in info.unsupported_ops))
    return info.suitability().name.lower() + (f": it knows no {left}" if left else "")


@contextmanager
def _optimised(path: Path, blocked: bool) -> Iterator[Path]:
    """The graph of a session as a file."""
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="planish-") as directory:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(Path(directory) / "optimised.onnx")
        try:
            onnxruntime.InferenceSession(
                str(path),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=[] if blocked else [BLOCKED_LAYOUTS],
            )
        except Exception as error:  # onnxruntime's own classes share no public base
            raise RuntimeError(str(error)) from error
        yield Path(options.optimized_model_filepath)
