"""One operator of a .tflite as a file of its own, to be asked about alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def single_operators(path: Path, indices: Sequence[int]) -> Iterator[bytes]:
    """A .tflite for each of these operators of the main graph, with its constants; activations become its inputs."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    content = path.read_bytes()
    for index in indices:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
        main = model.subgraphs[0]
        operator = main.operators[index]
        used = [int(tensor) for tensor in operator.inputs if tensor >= 0]
        main.operators = [operator]
        main.outputs = operator.outputs
        main.inputs = [tensor for tensor in dict.fromkeys(used) if not _is_constant(model, main.tensors[tensor])]
        model.signatureDefs, model.metadata, model.metadataBuffer = [], [], []
        if len(model.subgraphs) == 1:  # with more, an operator may call one of them, and needs its constants
            kept = {main.tensors[tensor].buffer for tensor in used}
            model.buffers = [
                buffer if number in kept else schema.BufferT() for number, buffer in enumerate(model.buffers)
            ]
        packer = flatbuffers.Builder(1 << 16)
        packer.Finish(model.Pack(packer), b"TFL3")
        yield bytes(packer.Output())


def _is_constant(model: Any, tensor: Any) -> bool:
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0
