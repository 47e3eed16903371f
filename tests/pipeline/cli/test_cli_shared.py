"""Runs share their results: a full hit where nothing changed; one weight, version or key of the recipe is a miss."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from commands import events_of, planish
from safetensors.torch import load_file, save_file

from pipeline import evidence
from pipeline.environment import environment
from targets.arm.parts import is_ready

pytestmark = [
    pytest.mark.slow,
    pytest.mark.emulator,
    pytest.mark.export,
    pytest.mark.skipif(not is_ready(), reason="the ARM64 emulator is not set up: planish targets setup pixel-4-cpu"),
]
FULL_HIT_S = 5.0


def fitted(folder: Path, *words: object, weights: object = "weights.safetensors") -> tuple[set[str], set[str]]:
    """Stages that a run made, and those it took from the store; the original meets its goal."""
    job = ["model.py:tiny", "--weights", weights, "--data", "labelled.npz", "--test", "test.npz", "--format", "onnx"]
    done = planish("fit", *job, "--target", "pixel-4-cpu", "--latency", "200%", "-o", folder, *words)
    assert done.exit_code == 0, done.stderr
    stages = [event for event in events_of(folder) if event["event"] == "stage"]
    return tuple({row["stage"] for row in stages if row["cached"] == source} for source in (False, "store"))


def test_what_changed_is_made_again_and_nothing_else(
    in_user_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, shared = fitted(tmp_path / "first")
    network, artifact = "candidates/00/network", "candidates/00/onnx"
    assert {"base", network, artifact, "candidates/00/parity"} <= made and not shared

    began = time.monotonic()
    again, served = fitted(tmp_path / "again")
    assert time.monotonic() - began < FULL_HIT_S
    assert not again and served == made

    weights = load_file("weights.safetensors")
    weights["head.weight"][0, 0] += 1e-3
    save_file(weights, tmp_path / "weights.safetensors")
    again, _ = fitted(tmp_path / "weight", weights=tmp_path / "weights.safetensors")
    assert {"base", network, artifact} <= again

    again, served = fitted(tmp_path / "key", "--channels-first")
    assert artifact in again and network in served

    monkeypatch.setattr(evidence, "environment", lambda: environment() | {"onnx": "another"})
    again, served = fitted(tmp_path / "version")
    assert artifact in again and network in served
