"""Who runs the operators of an artifact, as its own runtime or its own file tells.

The readers stand in this room since they need a runtime or a file and no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from targets.delegation.executorch import read_pte
from targets.delegation.onnx import read_onnx
from targets.delegation.placement import Placement
from targets.delegation.tflite import read_tflite

READERS: dict[str, Callable[[Path], Placement]] = {
    "tflite": read_tflite,
    "onnx": read_onnx,
    "ort": read_onnx,
    "pte": read_pte,
    "pte-vulkan": read_pte,
    "pte-coreml": read_pte,
}
