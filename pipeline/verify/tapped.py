"""An artifact's interior values: a copy of the file whose outputs are all the values it computes.

The copy runs in the same runtime with the same delegate, and its weights and operators are the file's own. Asking for
a value keeps the runtime from fusing across it: what ONNX Runtime fuses only at load time runs unfused here.
"""

from __future__ import annotations

import graphlib
import struct
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from pipeline.export.artifact import Artifact
from pipeline.verify import tapped_program
from pipeline.verify.execute import silent_stderr, to_layout
from targets.errors import VerificationError
from targets.runners.artifact import ArtifactError, open_artifact

_MOST_BYTES = 2**28  # of what an artifact computes; following the network through it takes some three times as much


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

    @property
    def samples(self) -> int:
        return len(self.tensors[0])


@dataclass(frozen=True)
class Tap:
    """A value in the file.

    Attributes:
        position: among the copy's outputs.
        quantization: scale and zero point where integers stand for real = (stored - zero point) * scale.
    """

    position: int
    quantization: tuple[float, int] | None = None


def interior(artifact: Artifact, samples: np.ndarray) -> Values:
    """Every value that `artifact` computes on `samples` [N, ...], which are in the network's layout.

    Of a large network it is fewer samples, from the first on: all of it is held at once.

    Raises:
        VerificationError: `RUN_FAILED` when the copy cannot be made, or the runtime refuses it.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / artifact.path.name
            taps, outputs = _TAPPERS[artifact.format](artifact.path, copy)
            with silent_stderr():
                runtime = open_artifact(copy, artifact.format)
            fed = np.ascontiguousarray(to_layout(samples, artifact.inputs[0]), dtype=artifact.inputs[0].dtype)
            rows = [_run(runtime, fed[:1], taps)]
            fitting = _MOST_BYTES // sum(value.nbytes for value in rows[0] if value is not None)
            rows += [_run(runtime, fed[index : index + 1], taps) for index in range(1, min(fitting, len(fed)))]
    except (ArtifactError, RuntimeError, ValueError) as error:
        raise VerificationError(
            f"The values inside the {artifact.format} artifact cannot be looked at.",
            where=str(artifact.path),
            why=str(error),
            fix="export it again; if that does not help, compare the outputs of smaller parts of the network.",
            code="RUN_FAILED",
        ) from error
    kept = [index for index, value in enumerate(rows[0]) if value is not None]
    return Values(
        tuple(np.stack([row[index] for row in rows]) for index in kept), tuple(kept.index(index) for index in outputs)
    )


def _run(runtime: Any, sample: np.ndarray, taps: Sequence[Tap]) -> list[np.ndarray | None]:
    """The values as real numbers; None for those that stand for none: shapes, indices, masks."""
    runtime.feed([sample])
    runtime.invoke()
    found = list(runtime.outputs().values())
    return [_real(found[tap.position], tap) for tap in taps]


def _real(stored: np.ndarray, tap: Tap) -> np.ndarray | None:
    if tap.quantization is not None:
        scale, zero_point = tap.quantization
        return (stored.astype(np.float32) - zero_point) * np.float32(scale)
    return stored.astype(np.float32) if np.issubdtype(stored.dtype, np.floating) else None


Tapped = tuple[list[Tap], list[int]]


def _tap_onnx(path: Path, copy: Path) -> Tapped:
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    graph = model.graph
    known = {value.name: value for value in (*graph.value_info, *graph.output)}
    computed = [name for node in graph.node for name in node.output if name in known]
    own = [value.name for value in graph.output]
    graph.output.extend(known[name] for name in computed if name not in own)
    onnx.save(model, copy)
    return _taps(computed, [value.name for value in graph.output], own)


def _tap_ort(path: Path, copy: Path) -> Tapped:
    """The file is a flatbuffer whose graph refers to the list of its outputs' names: a longer one goes to the end."""
    from onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs.InferenceSession import InferenceSession

    data = bytearray(path.read_bytes())
    graph = InferenceSession.GetRootAs(data, 0).Model().Graph()
    nodes = [graph.Nodes(index) for index in range(graph.NodesLength())]
    made_by = {node.Outputs(index): node for node in nodes for index in range(node.OutputsLength())}
    order = graphlib.TopologicalSorter(
        {
            name: [node.Inputs(index) for index in range(node.InputsLength()) if node.Inputs(index) in made_by]
            for name, node in made_by.items()
        }
    )
    computed = [name for name in order.static_order() if name]
    own = [graph.Outputs(index) for index in range(graph.OutputsLength())]
    names = own + [name for name in computed if name not in own]
    field = graph._tab.Pos + graph._tab.Offset(16)  # `outputs` of table Graph
    data += bytes(-len(data) % 4)
    struct.pack_into("<I", data, field, len(data) - field)
    strings, start = bytearray(), 4 * len(names)
    offsets = []
    for index, name in enumerate(names):
        offsets.append(start + len(strings) - 4 * index)  # from where the offset itself stands
        strings += struct.pack("<I", len(name)) + name + b"\0"
        strings += bytes(-len(strings) % 4)
    copy.write_bytes(data + struct.pack(f"<{1 + len(names)}I", len(names), *offsets) + strings)
    return _taps(computed, names, own)


def _tap_tflite(path: Path, copy: Path) -> Tapped:
    import flatbuffers
    from ai_edge_litert.schema_py_generated import ModelT

    model = ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    graph = model.subgraphs[0]
    computed = [int(tensor) for operator in graph.operators for tensor in operator.outputs]
    own = [int(tensor) for tensor in graph.outputs]
    outputs = own + [tensor for tensor in computed if tensor not in own]
    graph.outputs = np.array(outputs, np.int32)
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    copy.write_bytes(builder.Output())
    return _taps(computed, outputs, own, {tensor: _quantization(graph.tensors[tensor]) for tensor in computed})


def _quantization(tensor: Any) -> tuple[float, int] | None:
    """Scale and zero point of a value quantised as a whole."""
    quantization = tensor.quantization
    if quantization is None or quantization.scale is None or len(quantization.scale) != 1:
        return None
    return float(quantization.scale[0]), int(quantization.zeroPoint[0])


def _tap_program(path: Path, copy: Path) -> Tapped:
    return _taps(*tapped_program.tap(path, copy))


Name = TypeVar("Name", bytes, str, int)


def _taps(
    computed: Sequence[Name],
    outputs: Sequence[Name],
    own: Sequence[Name],
    quantized: Mapping[Name, tuple[float, int] | None] = MappingProxyType({}),
) -> Tapped:
    """Args: what the file computes, in order; the outputs of the copy; the file's own outputs; how they are stored."""
    position = {name: index for index, name in enumerate(outputs)}
    return [Tap(position[name], quantized.get(name)) for name in computed], [computed.index(name) for name in own]


_TAPPERS: dict[str, Callable[[Path, Path], Tapped]] = {
    "onnx": _tap_onnx,
    "ort": _tap_ort,
    "tflite": _tap_tflite,
    "pte": _tap_program,
}
