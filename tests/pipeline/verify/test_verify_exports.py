"""Weights changed after the export, and accuracy, of real artifacts on real images."""

import dataclasses

import numpy as np
import pytest
from export_networks import NETWORKS, build, eager, exported, images

from pipeline.export.artifact import Artifact, sha256_of
from pipeline.verify.execute import predictions, run_artifact
from pipeline.verify.levels import check_host
from pipeline.verify.parity import failure
from pipeline.verify.reference import Reference
from targets.errors import UsageError, VerificationError

pytestmark = [pytest.mark.export, pytest.mark.slow]
FORMATS = ("onnx", "tflite")
SAMPLES = 64


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
    artifact = perturbed(exported("residual", format), tmp_path)
    parity = check_host(artifact, Reference.of(build(NETWORKS["residual"]), images(SAMPLES)))
    assert parity.failed and 1e-3 < parity.outputs[0].relative_rmse < 0.5
    error = failure(parity, artifact.path)
    assert f"{parity.outputs[0].relative_rmse:.2g}" in error.why and "(n = 64)" in error.why


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
        run_artifact(exported("mobile", "onnx"), np.zeros((2, 3, 32, 32), np.float32))
    assert caught.value.code == "SAMPLE_SHAPE" and "[3, 28, 24] NCHW" in caught.value.why
