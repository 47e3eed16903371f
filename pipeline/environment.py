"""Versions of everything that takes part in a run."""

from __future__ import annotations

import importlib.metadata
import platform
from functools import cache

TOOLS = (
    *("torch", "onnx", "onnxscript", "onnxruntime", "onnxsim", "litert-torch", "ai-edge-litert", "executorch"),
    "coremltools",
)


def environment() -> dict[str, str]:
    """Versions of everything that takes part in a run."""
    return dict(_found())


@cache
def _found() -> dict[str, str]:
    found = {
        "planish": importlib.metadata.version("planish"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    for tool in TOOLS:
        try:
            found[tool] = importlib.metadata.version(tool)
        except importlib.metadata.PackageNotFoundError:
            found[tool] = "not installed"
    return found
