"""ONNX: torch's FX-based exporter, then onnxsim, then the checker; weights inside the one file.

Opset 18 is what torch's exporter writes natively (other opsets go through a version converter), and with IR version 8
it loads in every ONNX Runtime from 1.14 on, as onnxruntime's compatibility table has it. Nothing of an fp32 network
needs the newer IR versions, which add small floats, 4-bit integers and per-node metadata.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.export.artifact import TensorSpec, layout_of
from pipeline.export.worker import Conversion, Phase, run

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from onnx import ModelProto
    from torch.export import ExportedProgram

OPSET, IR_VERSION, RUNTIME_MINIMUM = 18, 8, "1.14"
PACKAGES = ("torch", "onnx", "onnxscript", "onnxsim", "onnxruntime")


def convert(program: ExportedProgram, channels_last: bool, phase: Phase) -> Conversion:
    """`program` at batch 1 to ONNX. Inputs keep the network's argument names, outputs are `output_0`, `output_1`, ….

    `channels_last` has no say here: ONNX operators are defined on NCHW, and so is the artifact's border.
    """
    import onnx
    import onnxsim
    import torch

    phase("converting to ONNX")
    outputs = len(program.graph_signature.user_outputs)
    exported = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        external_data=False,
        verbose=False,
        output_names=[f"output_{index}" for index in range(outputs)],
    )
    phase("simplifying")
    model, _ = onnxsim.simplify(exported.model_proto)  # its own check uses random input; parity uses the user's
    anonymise(model)
    phase("checking")
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model, full_check=True)
    return Conversion(
        model.SerializeToString(deterministic=True),
        "onnxruntime",
        RUNTIME_MINIMUM,
        tuple(map(_spec, model.graph.input)),
        tuple(map(_spec, model.graph.output)),
    )


def anonymise(model: ModelProto) -> None:
    """Clears what the tools leave about themselves and the user: stack traces with paths, doc strings, versions."""
    model.producer_name, model.producer_version = "planish", ""
    _clear(model)


def _clear(message: Message) -> None:
    """Walks the whole model: nodes, values, weights, subgraphs and functions all have both fields."""
    for field in ("metadata_props", "doc_string"):
        if field in message.DESCRIPTOR.fields_by_name:
            message.ClearField(field)
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in [value] if hasattr(value, "DESCRIPTOR") else value:
                _clear(child)


def _spec(value) -> TensorSpec:
    """From an ONNX ValueInfoProto."""
    from onnx.helper import tensor_dtype_to_np_dtype

    shape = tuple(dimension.dim_value for dimension in value.type.tensor_type.shape.dim)
    dtype = tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
    return TensorSpec(value.name, shape, dtype, layout_of(len(shape), channels_last=False))


if __name__ == "__main__":
    run(convert, packages=PACKAGES)
