"""The README's demo, as a user runs it: the example meets 60 % of its latency on an emulated Pixel 4."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from reports.records import ManifestRecord, read_run
from targets.arm.setup import is_ready

ROOT = Path(__file__).resolve().parents[2]
FASHION = ROOT / "examples" / "fashion"


@pytest.mark.slow
@pytest.mark.emulator
@pytest.mark.export
@pytest.mark.skipif(not is_ready(), reason="the ARM64 emulator is not set up: planish targets setup pixel-4-cpu")
def test_the_demo_meets_its_goal_and_loses_at_most_a_point(tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = [f"{FASHION}/model.py:trained", "--data", f"{FASHION}/calibration.npz", "--test", f"{FASHION}/test.npz"]
    goal = ["--target", "pixel-4-cpu", "--latency", "60%", "--max-drop", "1pt", "--linearize", "2", "-o", str(run)]
    command = [sys.executable, "-c", "from pipeline.cli.main import main; main()", "fit", *arguments, *goal]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    record = read_run(run / "report.json")
    before, after = record.base, record.chosen
    print(done.stdout)
    assert record.verdict == "met"
    assert record.primary(after).median_ms <= 0.6 * record.primary(before).median_ms
    assert after.quality.lost <= 1.0 and after.quality.samples == 2000
    assert {m.format for m in after.measurements} == {"tflite", "onnx"}
    assert all(parity.passed for parity in after.parity)
    assert {edit.kind for edit in after.edits} == {"linearize", "merge", "refit", "narrow", "recover"}
    manifest = ManifestRecord.model_validate_json((run / "bundle" / "manifest.json").read_text())
    for artifact in manifest.artifacts:
        content = (run / "bundle" / artifact.file).read_bytes()
        assert hashlib.sha256(content).hexdigest() == artifact.sha256
    tflite = next(artifact for artifact in manifest.artifacts if artifact.format == "tflite")
    assert tflite.inputs[0].shape == (1, 28, 28, 1) and tflite.inputs[0].layout == "NHWC"
    assert (tflite.inputs[0].minimum, tflite.inputs[0].maximum) == (0.0, 1.0)
