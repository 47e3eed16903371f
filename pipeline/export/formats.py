"""The formats that a network can be exported to, in one table.

Whoever lists formats (the command line, a recipe, the exporters themselves) takes them from `FORMATS`. A row says which
module converts, what the file is called, what loads it, and whether that can be had on this machine: only what runs is
checked for parity, everything else is said to be "not run here".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from targets.errors import UsageError, nearest

_APPLE = "Core ML runs on Apple's systems alone"


@dataclass(frozen=True)
class Format:
    """One kind of artifact.

    Attributes:
        name: how a person asks for it: `--format tflite`.
        title: what it is, for reports.
        module: converts; it has `convert(program, request, phase) -> Conversion`.
        file: name of the artifact, a directory for `coreml`.
        runtime: what loads it; its oldest release that does is told by each artifact.
        packages: distributions that the conversion needs, whose versions are recorded.
        runs_on_host: whether the runtime exists for this machine, and for the emulated phone.
        why_not: if not, why; a clause that fits behind "not run here:".
        channels_last: whether the border can be NHWC; otherwise inputs and outputs are as the network has them.
    """

    name: str
    title: str
    module: str
    file: str
    runtime: str
    packages: tuple[str, ...]
    runs_on_host: bool = True
    why_not: str = ""
    channels_last: bool = False


_ONNX = ("torch", "onnx", "onnxscript", "onnxsim", "onnxruntime")
_EXECUTORCH = ("torch", "executorch")
_TABLE = (
    Format("onnx", "ONNX", "pipeline.export.onnx", "model.onnx", "onnxruntime", _ONNX),
    Format("ort", "ONNX Runtime's ORT format", "pipeline.export.ort", "model.ort", "onnxruntime", _ONNX),
    Format(
        "tflite",
        "TFLite",
        "pipeline.export.litert",
        "model.tflite",
        "tensorflow-lite",
        ("torch", "litert-torch", "litert-converter", "ai-edge-litert"),
        channels_last=True,
    ),
    Format("pte", "ExecuTorch, XNNPACK", "pipeline.export.executorch", "model.pte", "executorch", _EXECUTORCH),
    Format(
        "pte-vulkan",
        "ExecuTorch, Vulkan",
        "pipeline.export.executorch",
        "model.vulkan.pte",
        "executorch",
        _EXECUTORCH,
        runs_on_host=False,
        why_not="the executorch package for Linux has no Vulkan delegate",
    ),
    Format(
        "pte-coreml",
        "ExecuTorch, Core ML",
        "pipeline.export.executorch",
        "model.coreml.pte",
        "executorch",
        (*_EXECUTORCH, "coremltools"),
        runs_on_host=False,
        why_not=_APPLE,
    ),
    Format(
        "coreml",
        "Core ML",
        "pipeline.export.coreml",
        "model.mlpackage",
        "coreml",
        ("torch", "coremltools"),
        runs_on_host=False,
        why_not=_APPLE,
    ),
)
FORMATS: Mapping[str, Format] = MappingProxyType({format.name: format for format in _TABLE})


def format_named(name: str) -> Format:
    """The row of `name`; UsageError `UNKNOWN_FORMAT` where there is none."""
    if name not in FORMATS:
        raise UsageError(
            f"There is no export to {name!r}.",
            where="--format",
            why=nearest(name, FORMATS) + "Formats: " + ", ".join(FORMATS) + ".",
            fix="name one of these.",
            code="UNKNOWN_FORMAT",
        )
    return FORMATS[name]
