"""Parity and accuracy of real artifacts on real images, healthy and damaged."""

import dataclasses

import numpy as np
import pytest
from export_networks import NETWORKS, Contrast, build, eager, exported, images, noise, save

from pipeline.export.artifact import Artifact, sha256_of
from pipeline.export.child import export
from pipeline.verify.execute import predictions, run_artifact
from pipeline.verify.parity import check, require
from targets.errors import UsageError, VerificationError

pytestmark = [pytest.mark.export, pytest.mark.slow]
FORMATS = ("onnx", "tflite")
SAMPLES = 64


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", NETWORKS)
def test_healthy_export_passes(name, format):
    artifact, samples = exported(name, format), images(SAMPLES)
    parity = check(artifact, eager(build(NETWORKS[name]), samples), samples)
    require(parity, artifact)
    assert parity.passed and parity.samples == SAMPLES and parity.artifact_sha256 == artifact.sha256
    assert len(parity.outputs) == (3 if name == "features" else 1)
    for output in parity.outputs:
        assert output.relative_rmse < 1e-5 and output.sqnr_db > 100 and output.cosine > 1 - 1e-9
    assert parity.outputs[0].top1_agreement == 1.0


def perturbed(artifact: Artifact, directory) -> Artifact:
    """The artifact with its largest weight off by 3 %, as a new artifact."""
    path = directory / artifact.path.name
    if artifact.format == "onnx":
        import onnx
        from onnx import numpy_helper

        model = onnx.load(artifact.path)
        largest = max(model.graph.initializer, key=lambda weight: numpy_helper.to_array(weight).size)
        largest.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(largest) * np.float32(1.03), largest.name))
        onnx.save(model, path)
    else:
        import flatbuffers
        from ai_edge_litert.schema_py_generated import ModelT

        model = ModelT.InitFromPackedBuf(artifact.path.read_bytes(), 0)
        largest = max((buffer for buffer in model.buffers if buffer.data is not None), key=lambda b: len(b.data))
        weights = np.frombuffer(bytes(largest.data), np.float32) * np.float32(1.03)
        largest.data = np.frombuffer(weights.tobytes(), np.uint8)
        builder = flatbuffers.Builder()
        builder.Finish(model.Pack(builder), b"TFL3")
        path.write_bytes(builder.Output())
    return dataclasses.replace(artifact, path=path, sha256=sha256_of(path))


@pytest.mark.parametrize("format", FORMATS)
def test_perturbed_weights_fail(format, tmp_path):
    samples = images(SAMPLES)
    artifact = perturbed(exported("residual", format), tmp_path)
    parity = check(artifact, eager(build(NETWORKS["residual"]), samples), samples)
    assert not parity.passed and 1e-3 < parity.outputs[0].relative_rmse < 0.5
    with pytest.raises(VerificationError) as caught:
        require(parity, artifact)
    error = caught.value
    assert (error.code, error.exit_code) == ("PARITY_FAILED", 4)
    assert f"{parity.outputs[0].relative_rmse:.2g}" in error.why and "64 samples" in error.why
    assert len(str(error).splitlines()) == 4


def test_right_on_noise_and_wrong_on_images_fails(tmp_path):
    """The artifact saturates above what noise reaches; only images show it."""
    wrong = export(
        save(build(Contrast, 45.0), tmp_path / "network.pt2"),
        format="tflite",
        directory=tmp_path / "tflite",
        log=tmp_path / "log",
    )
    network = build(Contrast)
    require(check(wrong, eager(network, noise(SAMPLES)), noise(SAMPLES)), wrong)
    parity = check(wrong, eager(network, images(SAMPLES)), images(SAMPLES))
    with pytest.raises(VerificationError) as caught:
        require(parity, wrong)
    assert caught.value.code == "PARITY_FAILED"


@pytest.mark.parametrize("format", FORMATS)
def test_accuracy_of_the_artifact(format):
    samples = images(SAMPLES)
    labels = eager(build(NETWORKS["residual"]), samples)[0].argmax(axis=1)
    labels[:16] = (labels[:16] + 1) % 10
    batches = np.split(samples, [10, 11, 40])  # of any size
    assert (predictions(exported("residual", format), batches).argmax(1) == labels).mean() == 0.75


def test_file_that_is_no_model(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"not a flatbuffer" * 10)
    broken = dataclasses.replace(exported("mobile", "tflite"), path=path, sha256=sha256_of(path))
    with pytest.raises(VerificationError) as caught:
        run_artifact(broken, images(1).transpose(0, 2, 3, 1))
    assert caught.value.code == "RUN_FAILED"


def test_samples_of_another_size():
    with pytest.raises(UsageError) as caught:
        check(exported("mobile", "onnx"), [np.zeros((2, 10))], np.zeros((2, 3, 32, 32), np.float32))
    assert caught.value.code == "SAMPLE_SHAPE" and "[3, 28, 24] NCHW" in caught.value.why
