"""ONNX Runtime's ORT format, for apps whose runtime is a reduced build: made from our ONNX, by onnxruntime's own tool.

What a full runtime does with a model as it loads it is done here once, since a reduced one cannot do it: constants are
folded, a convolution's activation becomes part of it. The level is "all" less the NCHWc transformation, which stores
weights blocked for the vector width of the machine that converts: onnxruntime's tool leaves it out for any target but
x86, and none of its operators is in the file, which `_checked` makes sure of. What remains is arithmetic that every CPU
has kernels for, an ARM one the same as this one; weights are packed for the CPU where the file is loaded.

The file is of the format's version 6, which ONNX Runtime reads from 1.16 on. A reduced build is of the operators listed
beside it (`build.sh --include_ops_by_config`), and takes its sources from the release that wrote the file.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.export.conversion import Conversion, Phase, Request
from pipeline.export.onnx import simplified, specification
from pipeline.export.ort_order import in_order

if TYPE_CHECKING:
    from torch.export import ExportedProgram

REQUIRED_OPERATORS = "model.required_operators.config"
BLOCKED_DOMAIN = "com.microsoft.nchwc"
RUNTIME_MINIMUMS = {"5": "1.13", "6": "1.16"}  # by the format's version


def convert(program: ExportedProgram, request: Request, phase: Phase) -> Conversion:
    """`program` at batch 1 to ONNX as `onnx.convert` makes it, then to the ORT format; the same names and layout."""
    from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

    model = simplified(program, request, phase)
    phase("converting to the ORT format")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        path.write_bytes(model.SerializeToString(deterministic=True))
        convert_onnx_models_to_ort(path, optimization_styles=[OptimizationStyle.Fixed], target_platform="arm")
        content = in_order(path.with_suffix(".ort").read_bytes())
        required = (Path(scratch) / REQUIRED_OPERATORS).read_text()
    phase("checking")
    return Conversion(
        content,
        RUNTIME_MINIMUMS[_checked(content)],
        tuple(map(specification, model.graph.input)),
        tuple(map(specification, model.graph.output)),
        beside={REQUIRED_OPERATORS: _without_comments(required).encode()},
    )


def _checked(content: bytes) -> str:
    """The version of the format; ValueError for operators of a layout that only the converting machine has."""
    from onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs.InferenceSession import InferenceSession

    session = InferenceSession.GetRootAsInferenceSession(content, 0)
    graph = session.Model().Graph()
    domains = {graph.Nodes(index).Domain().decode() for index in range(graph.NodesLength())}
    if BLOCKED_DOMAIN in domains:
        raise ValueError("onnxruntime stored convolutions in a layout of this machine's processor (NCHWc)")
    return session.OrtVersion().decode()


def _without_comments(config: str) -> str:
    """The tool's comments tell where the model lay on this machine."""
    return "".join(line for line in config.splitlines(keepends=True) if line.strip() and not line.startswith("#"))
