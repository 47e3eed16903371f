"""The house rules that a machine can hold: imports run downward, and the core needs torch alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
BELOW = {
    "pipeline": {"pipeline", "reports", "calibration", "targets"},
    "reports": {"reports", "targets"},
    "calibration": {"calibration", "targets"},
    "targets": {"targets"},
}
NO_TORCH = {"targets", "reports"}
MODULES = sorted(path for room in BELOW for path in (ROOT / room).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Top-level packages that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downward(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    assert imported(path) & set(BELOW) <= BELOW[room]
    if room in NO_TORCH:
        assert "torch" not in imported(path)


@pytest.mark.parametrize("path", [p for p in MODULES if p.is_relative_to(ROOT / "calibration")], ids=lambda p: p.name)
def test_calibration_takes_only_errors_from_targets(path: Path) -> None:
    from_targets = {
        node.module
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module.startswith("targets")
    }
    assert from_targets <= {"targets.errors"}


def run_python(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_help_imports_no_torch() -> None:
    run_python(
        "import sys\nfrom click.testing import CliRunner\nfrom pipeline.cli.main import cli\n"
        "assert CliRunner().invoke(cli, ['--help']).exit_code == 0\nassert 'torch' not in sys.modules"
    )


def test_reading_an_array_imports_no_torch(tmp_path: Path) -> None:
    """`planish measure` of an artifact that was measured before takes less than importing it does."""
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 3, 4, 4), np.uint8))
    run_python(
        "import sys\nfrom calibration.dataset import open_samples\n"
        f"assert next(open_samples({str(tmp_path / 'x.npz')!r}).arrays(2))[0].shape == (2, 3, 4, 4)\n"
        "import targets.measure, pipeline.cli.measure\nfrom targets.statistics import summarize\n"
        "assert summarize([1.0] * 9).high_ms == 1.0\n"
        "assert not {'torch', 'scipy'} & set(sys.modules)"
    )


def test_the_core_imports_with_torch_alone() -> None:
    """Compression trains on machines that have torch and numpy and nothing else of ours."""
    banned = [
        "safetensors",
        "scipy",
        "flatbuffers",
        "onnx",
        "onnxscript",
        "onnxruntime",
        "onnxsim",
        "litert_torch",
        "ai_edge_litert",
        "executorch",
        "click",
        "rich",
        "pydantic",
        "jinja2",
        "PIL",
    ]
    core = [
        "calibration.dataset",
        "calibration.statistics",
        "calibration.batchnorm",
        "calibration.moments",
        "calibration.regression",
        "pipeline.model.ingest",
        "pipeline.model.edits",
        "pipeline.model.network",
        "pipeline.model.operators",
        *(f"pipeline.compress.{path.stem}" for path in MODULES if path.parent == ROOT / "pipeline" / "compress"),
    ]
    run_python(
        f"import sys\nfor name in {banned}: sys.modules[name] = None\n" + "\n".join(f"import {name}" for name in core)
    )
