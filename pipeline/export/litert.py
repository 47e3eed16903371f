"""TFLite: litert-torch, with a channels-last border on request.

TFLite's convolutions are NHWC inside. An NCHW border costs a transpose at each end, and a phone's camera delivers NHWC
anyway, so the border is channels-last unless the app asks otherwise.

The minimum runtime comes from the file itself, where the converter notes the TensorFlow Lite release that first had
every operator version in use. LiteRT, its successor under a new name and numbering, is newer than all of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.export.artifact import TensorSpec, layout_of
from pipeline.export.axes import without_fifth_axes
from pipeline.export.conversion import Conversion, Phase, Request
from pipeline.export.metadata import with_metadata

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_IMAGE_RANK = 4


def convert(program: ExportedProgram, request: Request, phase: Phase) -> Conversion:
    """`program` at batch 1 to TFLite, one signature: `args_0`, … to `output_0`, ….

    With `request.channels_last`, inputs and outputs of rank 4 are NHWC; other ranks are left as they are.
    """
    import litert_torch
    import torch

    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op != "output"}
    inputs = [values[name] for name in program.graph_signature.user_inputs]
    outputs = [values[name] for name in program.graph_signature.user_outputs]
    images = [index for index, value in enumerate(inputs) if request.channels_last and value.ndim == _IMAGE_RANK]
    maps = [index for index, value in enumerate(outputs) if request.channels_last and value.ndim == _IMAGE_RANK]
    examples = [torch.zeros(tuple(value.shape), dtype=value.dtype) for value in inputs]
    for index in images:
        examples[index] = examples[index].permute(0, 2, 3, 1).contiguous()
    network = litert_torch.to_channel_last_io(without_fifth_axes(program.module()), args=images, outputs=maps)
    network.training = False  # the program itself was saved in eval mode; this quiets the converter's warning
    phase("converting to TFLite")
    model = litert_torch.convert(network, tuple(examples)).model_content()
    phase("checking")
    conversion = _described(model, request.channels_last)
    inputs, outputs = request.contract.of_inputs(conversion.inputs), request.contract.of_outputs(conversion.outputs)
    return replace(conversion, content=with_metadata(model, inputs, outputs))


def _described(model: bytes, channels_last: bool) -> Conversion:
    """Reads names, shapes and the minimum runtime back from the finished file."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_litert.schema_py_generated import ModelT

    signature = Interpreter(model_content=model, num_threads=1).get_signature_runner()

    def specs(details: dict[str, dict[str, Any]]) -> tuple[TensorSpec, ...]:
        shapes = {name: tuple(map(int, detail["shape"])) for name, detail in details.items()}
        return tuple(
            TensorSpec(name, shape, details[name]["dtype"].__name__, layout_of(len(shape), channels_last=channels_last))
            for name, shape in sorted(shapes.items(), key=lambda item: int(item[0].rsplit("_", 1)[1]))
        )

    flatbuffer = ModelT.InitFromPackedBuf(model, 0)
    metadata = {entry.name.decode(): bytes(flatbuffer.buffers[entry.buffer].data) for entry in flatbuffer.metadata}
    return Conversion(
        model,
        metadata["min_runtime_version"].rstrip(b"\0").decode(),
        specs(signature.get_input_details()),
        specs(signature.get_output_details()),
    )
