"""ONNX: torch's FX-based exporter, then onnxsim, then the checker; weights inside the one file.

Opset 18 is what torch's exporter writes natively (other opsets go through a version converter), and with IR version 8
it loads in every ONNX Runtime from 1.14 on, as onnxruntime's compatibility table has it. Nothing of an fp32 network
needs the newer IR versions, which add small floats, 4-bit integers and per-node metadata.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.export.artifact import TensorSpec, layout_of
from pipeline.export.contract import KEY
from pipeline.export.conversion import Conversion, Phase, Request

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from onnx import ModelProto, ValueInfoProto
    from torch.export import ExportedProgram

OPSET, IR_VERSION, RUNTIME_MINIMUM = 18, 8, "1.14"


def convert(program: ExportedProgram, request: Request, phase: Phase) -> Conversion:
    """`program` at batch 1 to ONNX. Inputs keep the network's argument names, outputs are `output_0`, `output_1`, ….

    Images stay NCHW: ONNX operators are defined on it, and so is the artifact's border.
    """
    model = simplified(program, request, phase)
    return Conversion(
        model.SerializeToString(deterministic=True),
        RUNTIME_MINIMUM,
        tuple(map(specification, model.graph.input)),
        tuple(map(specification, model.graph.output)),
    )


def simplified(program: ExportedProgram, request: Request, phase: Phase) -> ModelProto:
    """`program` as a checked ONNX model that tells the contract, and nothing of the user's machine."""
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
    inputs, outputs = (list(map(specification, values)) for values in (model.graph.input, model.graph.output))
    onnx.helper.set_model_props(model, {KEY: request.contract.told(inputs, outputs)})
    phase("checking")
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model, full_check=True)
    return model


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


def specification(value: ValueInfoProto) -> TensorSpec:
    """Name, shape, dtype and layout of an input or output."""
    from onnx.helper import tensor_dtype_to_np_dtype

    shape = tuple(dimension.dim_value for dimension in value.type.tensor_type.shape.dim)
    dtype = tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
    return TensorSpec(value.name, shape, dtype, layout_of(len(shape), channels_last=False))
