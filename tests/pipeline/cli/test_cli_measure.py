"""`planish measure` of one network in several formats: sorted by speed, with a recommendation where there is one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import planish
from PIL import Image

from targets.arm.setup import is_ready
from targets.probes import onnx, tflite
from targets.probes.design import convolution

LIGHT = [convolution(3, 8, 3, 1, 12)]
HEAVY = [convolution(3, 64, 3, 1, 12), convolution(64, 64, 3, 1, 12)]


@pytest.fixture
def written(tmp_path, monkeypatch) -> Path:
    """A folder with light.tflite, heavy.onnx, larger.onnx, which takes larger images, samples.npz and images/."""
    monkeypatch.chdir(tmp_path)
    networks = {"light.tflite": LIGHT, "heavy.onnx": HEAVY, "larger.onnx": [convolution(3, 8, 3, 1, 20)]}
    for name, operators in networks.items():
        build = {"tflite": tflite, "onnx": onnx}[name.partition(".")[2]].build
        (tmp_path / name).write_bytes(build([operators], np.random.default_rng(0)).content)
    pixels = np.random.default_rng(1).random((2, 3, 12, 12), np.float32)
    np.savez(tmp_path / "samples.npz", x=pixels)
    (tmp_path / "images/some").mkdir(parents=True)
    Image.fromarray((255 * pixels[0]).astype(np.uint8).transpose(1, 2, 0)).save(tmp_path / "images/some/one.png")
    return tmp_path


def result(*words: object) -> dict:
    done = planish("measure", *words, "--target", "host", "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout.splitlines()[-1])


def test_the_fastest_comes_first_and_is_recommended(written):
    done = planish("measure", "heavy.onnx", "light.tflite", "--target", "host", "--data", "samples.npz")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["light.tflite", "heavy.onnx"]
    said = " ".join(lines[3:])
    assert said.startswith("TFLite/XNNPACK is ") and said.endswith("ONNX Runtime/MLAS here: ship light.tflite")


def test_json_keeps_the_order_asked_and_has_the_recommendation(written):
    found = result("heavy.onnx", "light.tflite", "--data", "samples.npz")
    assert [m["format"] for m in found["measurements"]] == ["onnx", "tflite"]
    advice = found["recommendation"]
    assert (advice["decision"], advice["artifact"]) == ("fastest", "light.tflite")
    medians = [m["median_ms"] for m in found["measurements"]]
    assert advice["ratio"] == pytest.approx(medians[0] / medians[1])


def test_nothing_is_recommended_for_one_artifact(written):
    assert result("light.tflite", "--data", "samples.npz")["recommendation"] is None


def test_artifacts_for_images_of_other_sizes_are_not_compared(written):
    found = result("light.tflite", "larger.onnx", "--data", "images")
    assert len(found["measurements"]) == 2 and found["recommendation"] is None


def test_threads_are_part_of_the_measurement(written):
    assert result("light.tflite", "--data", "samples.npz", "--threads", 1)["measurements"][0]["threads"] == 1
    refused = planish("measure", "light.tflite", "--data", "samples.npz", "--target", "host", "--threads", 0)
    assert refused.exit_code == 2


@pytest.mark.emulator
@pytest.mark.skipif(not is_ready(), reason="the ARM64 emulator is not set up: planish targets setup pixel-4-cpu")
def test_operators_say_why_an_artifact_is_slow(written):
    words = ["measure", "light.tflite", "--target", "pixel-4-cpu", "--data", "samples.npz", "--operators", "--top", 1]
    done = planish(*words)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert any(line.startswith("Convolution F32") and "compute" in line for line in lines)
    assert any(line.startswith("total") and "100.0 %" in line for line in lines)
    assert "% of the time is bound by arithmetic; the dearest is Convolution F32" in " ".join(lines)
    (found,) = json.loads(planish(*words, "--json").stdout.splitlines()[-1])["operators"]
    assert found["artifact"] == "light.tflite" and "bound by arithmetic" in found["why"]
    assert sum(row["share"] for row in found["operators"]) == pytest.approx(1, rel=0.01)


def test_operators_of_this_machine_are_refused(written):
    done = planish("measure", "light.tflite", "--target", "host", "--data", "samples.npz", "--operators")
    assert done.exit_code == 2 and "OPERATORS_NOT_EMULATED" in done.stderr


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--target", "host", "--runtime", "tflite-runtime"), "RUNTIME_UNAVAILABLE"),
        (("--target", "pixel-4-cpu", "--runtime", "tflite-runtime", "--operators"), "OPTIONS_CLASH"),
    ],
)
def test_the_runtime_of_older_apps_is_refused_where_it_does_not_run(written, words, code):
    done = planish("measure", "light.tflite", "--data", "samples.npz", *words)
    assert done.exit_code == 2 and code in done.stderr


def test_the_runtime_of_older_apps_is_named(written):
    if not is_ready():
        pytest.skip("the ARM64 emulator is not set up: run `planish targets setup pixel-4-cpu`")
    words = ["light.tflite", "--target", "pixel-4-cpu", "--data", "samples.npz", "--runtime", "tflite-runtime"]
    done = planish("measure", *words)
    assert done.exit_code == 0 and "tflite-runtime" in done.stdout, done.output
