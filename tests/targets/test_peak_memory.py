"""What artifacts need beside their runtime: it repeats itself, follows weights and activations, and errors are told."""

from __future__ import annotations

import json

import numpy
import pytest

from targets.errors import MissingEnvironmentError, PlanishError, UsageError
from targets.peak_memory import PeakMemory, peak_memory
from targets.probes.design import convolution
from targets.runners import child

FORMATS = ("tflite", "onnx")
COUNTED_LATE = 256 * 1024  # bytes that the kernel may not have added up yet
WEIGHTS = 4 * 512 * 1024 * 9  # bytes of a convolution of 512 to 1024 channels
PICTURES = 4 * (16 + 32) * 256 * 256  # bytes of what the other one takes and gives


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory, writer):
    """(name, format) -> (artifact, inputs): many weights, and large activations."""
    folder = tmp_path_factory.mktemp("memory")
    networks = {"weights": [convolution(512, 1024, 3, 1, 4)], "pictures": [convolution(16, 32, 3, 1, 256)]}
    return {
        (name, format): writer(folder, name, operators, format, samples=3)
        for name, operators in networks.items()
        for format in FORMATS
    }


@pytest.mark.parametrize("format", FORMATS)
def test_the_peak_repeats_itself_and_holds_what_the_artifact_holds(artifacts, format):
    weights, pictures = (
        peak_memory(artifacts[name, format][0], format, artifacts[name, format][1], children=2)
        for name in ("weights", "pictures")
    )
    assert weights.high_bytes - weights.low_bytes <= COUNTED_LATE
    assert pictures.high_bytes - pictures.low_bytes <= COUNTED_LATE
    assert WEIGHTS < weights.bytes < 6 * WEIGHTS  # while it loads, ONNX Runtime holds five copies for a moment
    assert PICTURES < pictures.bytes < 5 * PICTURES  # its convolutions unfold the picture where they do not block it
    assert weights.runtime.split()[0] in ("ai-edge-litert", "onnxruntime") and weights.threads == 1
    assert len(weights.children_bytes) == 2
    assert PeakMemory.from_json(json.loads(json.dumps(weights.to_json()))) == weights


def test_the_number_of_samples_in_the_file_does_not_count(artifacts, tmp_path):
    artifact, inputs = artifacts["pictures", "tflite"]
    with numpy.load(inputs) as archive:
        numpy.savez(tmp_path / "more.npz", **{name: archive[name].repeat(4, axis=0) for name in archive.files})
    few, more = (peak_memory(artifact, "tflite", path, children=1).bytes for path in (inputs, tmp_path / "more.npz"))
    assert abs(more - few) <= COUNTED_LATE


def test_the_median_is_one_that_was_seen():
    assert PeakMemory("onnx", "r 1", 1, (3, 9, 4)).bytes == 4
    seen = PeakMemory("onnx", "r 1", 1, (9, 3))
    assert (seen.low_bytes, seen.bytes, seen.high_bytes) == (3, 3, 9)


def test_what_does_not_fit_its_runtime_is_the_users_error(artifacts, tmp_path):
    artifact, inputs = artifacts["weights", "tflite"]
    with pytest.raises(UsageError) as caught:
        peak_memory(artifact, "tflite", artifacts["pictures", "tflite"][1])
    assert caught.value.code == "ARTIFACT_UNUSABLE" and "one sample is" in caught.value.why
    (tmp_path / "model.onnx").write_bytes(b"rubbish")
    with pytest.raises(UsageError) as caught:
        peak_memory(tmp_path / "model.onnx", "onnx", inputs)
    assert caught.value.where == str(tmp_path / "model.onnx") and "cannot load it" in caught.value.why


@pytest.mark.parametrize(
    ("ends", "error", "code", "why"),
    [
        ("sys.exit('last words')", PlanishError, "RUNTIME_FAILED", "last words"),
        ("done({'unwatched': 'no such file'})", MissingEnvironmentError, "MEMORY_UNKNOWN", "no such file"),
    ],
)
def test_what_the_child_could_not_do_is_told(artifacts, tmp_path, monkeypatch, ends, error, code, why):
    (tmp_path / "watcher.py").write_text(
        "import json, pathlib, sys\n"
        "done = lambda result: pathlib.Path(sys.argv[2]).write_text(json.dumps(result))\n"
        "mode = json.loads(pathlib.Path(sys.argv[1]).read_text())['mode']\n"
        f"done({{}}) if mode == 'prepare' else {ends}\n"
    )
    monkeypatch.setattr(child, "ROOT", tmp_path)
    monkeypatch.setattr("targets.peak_memory.WORKER", "watcher")
    with pytest.raises(error) as caught:
        peak_memory(artifacts["weights", "onnx"][0], "onnx", artifacts["weights", "onnx"][1])
    assert caught.value.code == code and why in caught.value.why
