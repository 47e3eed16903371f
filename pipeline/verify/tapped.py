"""An artifact's interior values: a copy of the file whose outputs are all the values it computes.

The copy runs in the same runtime with the same delegate, and its weights and operators are the file's own. Asking for
a value keeps the runtime from fusing across it: what ONNX Runtime fuses only at load time runs unfused here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.export.artifact import Artifact
from pipeline.verify.execute import to_layout
from targets.runners.artifact import open_artifact


@dataclass(frozen=True)
class Values:
    """What an artifact computed on some samples.

    Attributes:
        tensors: [N, ...] float32 each, batch 1 stacked, in the file's order of execution; quantised ones as the real
            numbers that they stand for.
        outputs: which of them are the artifact's outputs, in its order.
    """

    tensors: tuple[np.ndarray, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Tap:
    """A value in the file: where the copy's outputs have it, and what its integers stand for.

    Attributes:
        position: among the copy's outputs.
        scale, zero_point: of a quantised value; real = (stored - zero_point) * scale.
    """

    position: int
    scale: float = 1.0
    zero_point: int = 0


def interior(artifact: Artifact, samples: np.ndarray) -> Values:
    """Every value that `artifact` computes on `samples` [N, ...], which are in the network's layout."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / artifact.path.name
        taps, outputs = _TAPPERS[artifact.format](artifact.path, copy)
        runtime = open_artifact(copy, artifact.format)
        fed = np.ascontiguousarray(to_layout(samples, artifact.inputs[0]), dtype=artifact.inputs[0].dtype)
        rows: list[list[np.ndarray]] = [[] for _ in taps]
        for index in range(len(fed)):
            runtime.feed([fed[index : index + 1]])
            runtime.invoke()
            found = list(runtime.outputs().values())
            for row, tap in zip(rows, taps, strict=True):
                row.append(_real(found[tap.position], tap))
    return Values(tuple(map(np.stack, rows)), tuple(outputs))


def can_look_into(artifact: Artifact) -> bool:
    return artifact.format in _TAPPERS


def _real(stored: np.ndarray, tap: Tap) -> np.ndarray:
    return ((stored.astype(np.float32) - tap.zero_point) * np.float32(tap.scale)).astype(np.float32)


def _tap_onnx(path: Path, copy: Path) -> tuple[list[Tap], list[int]]:
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    graph = model.graph
    known = {value.name: value for value in (*graph.value_info, *graph.output)}
    computed = [name for node in graph.node for name in node.output if name in known and _is_float(known[name])]
    own = [value.name for value in graph.output]
    graph.output.extend(known[name] for name in computed if name not in own)
    onnx.save(model, copy)
    positions = {value.name: position for position, value in enumerate(graph.output)}
    return [Tap(positions[name]) for name in computed], [computed.index(name) for name in own]


def _is_float(value: Any) -> bool:
    import onnx

    return value.type.tensor_type.elem_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)


def _tap_tflite(path: Path, copy: Path) -> tuple[list[Tap], list[int]]:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    graph = model.subgraphs[0]
    real = {schema.TensorType.FLOAT32, schema.TensorType.FLOAT16}
    stored = {schema.TensorType.INT8, schema.TensorType.UINT8, schema.TensorType.INT16}
    scales = {index: _scale(tensor) for index, tensor in enumerate(graph.tensors)}
    computed = [
        int(index)
        for operator in graph.operators
        for index in operator.outputs
        if graph.tensors[index].type in real or (graph.tensors[index].type in stored and scales[index])
    ]
    own = [int(index) for index in graph.outputs]
    outputs = own + [index for index in computed if index not in own]
    graph.outputs = np.array(outputs, np.int32)
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    copy.write_bytes(builder.Output())
    taps = [Tap(outputs.index(index), *(scales[index] or ())) for index in computed]
    return taps, [computed.index(index) for index in own]


def _scale(tensor: Any) -> tuple[float, int] | None:
    """Scale and zero point of a value quantised as a whole."""
    quantization = tensor.quantization
    if quantization is None or quantization.scale is None or len(quantization.scale) != 1:
        return None
    return float(quantization.scale[0]), int(quantization.zeroPoint[0])


_TAPPERS: dict[str, Callable[[Path, Path], tuple[list[Tap], list[int]]]] = {"onnx": _tap_onnx, "tflite": _tap_tflite}
