"""What comes out of a conversion: the file, its contract, and the same bytes every time."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from export_networks import CONTRACT, NETWORKS, build, exported, images, save, workspace

from pipeline.export.artifact import Artifact
from pipeline.export.child import export
from pipeline.export.staging import PREFIX as STAGING_PREFIX
from targets.errors import VerificationError

pytestmark = [pytest.mark.export, pytest.mark.slow]
FORMATS = ("onnx", "tflite")
HERE = Path(__file__).parent


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", NETWORKS)
def test_contract(name, format):
    artifact = exported(name, format)
    last = format == "tflite"
    (spec,) = artifact.inputs
    assert spec.shape == ((1, 28, 24, 3) if last else (1, 3, 28, 24))
    assert (spec.layout, spec.dtype) == ("NHWC" if last else "NCHW", "float32")
    assert (spec.minimum, spec.maximum) == (-1.0, 2.0)
    assert spec.name == ("args_0" if last else "image" if name == "residual" else "x")
    assert [output.name for output in artifact.outputs] == [f"output_{i}" for i in range(len(artifact.outputs))]
    assert (artifact.outputs[0].shape, artifact.outputs[0].layout) == ((1, 10), "NC")
    assert artifact.outputs[0].minimum is None
    assert artifact.path.stat().st_size == artifact.bytes
    assert artifact.runtime in {"onnxruntime", "tensorflow-lite"} and artifact.runtime_minimum[0].isdigit()
    artifact.require_unchanged()


def test_feature_maps_follow_the_border():
    _, features, rows = exported("features", "tflite").outputs
    assert (features.shape, features.layout) == ((1, 14, 12, 8), "NHWC")
    assert (rows.shape, rows.layout) == ((1, 14, 12), "")
    _, features, _ = exported("features", "onnx").outputs
    assert (features.shape, features.layout) == ((1, 8, 14, 12), "NCHW")


def test_json_round_trip_survives_a_move(tmp_path):
    artifact = exported("residual", "onnx")
    text = json.dumps(artifact.to_json(workspace()))
    assert str(workspace()) not in text
    assert Artifact.from_json(json.loads(text), workspace()) == artifact
    assert Artifact.from_json(json.loads(text), tmp_path).path == tmp_path / "residual" / "onnx" / "model.onnx"


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> Path:
    """The same networks saved by another process, from sources in another directory, with another hash seed."""
    directory = tmp_path_factory.mktemp("elsewhere")
    shutil.copy(HERE / "export_networks.py", directory / "my_networks.py")
    code = (
        "import pathlib, my_networks as n\n"
        "for name in ('residual', 'transformer'):\n"
        "    n.save(n.build(n.NETWORKS[name]), pathlib.Path(name + ' too.pt2'))"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=directory,
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(HERE.parents[2])},
    )
    return directory


@pytest.mark.parametrize("name, format", [("residual", "onnx"), ("transformer", "tflite")])
def test_same_network_same_bytes(name, format, elsewhere, monkeypatch):
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    saved = Path(f"{name} too.pt2")
    again = export(saved, format=format, directory=Path(name) / format, contract=CONTRACT, log=Path("log"))
    assert again.sha256 == exported(name, format).sha256


@pytest.mark.parametrize("format", FORMATS)
def test_file_tells_nothing_of_the_users_machine(format):
    content = exported("transformer", format).path.read_bytes()
    for private in (str(HERE), "export_networks", str(workspace()), sys.prefix, "site-packages"):
        assert private.encode() not in content


def test_onnx_is_one_file_for_the_stated_runtime():
    import onnx

    artifact = exported("mobile", "onnx")
    assert [file.name for file in artifact.path.parent.iterdir()] == ["model.onnx"]
    model = onnx.load(artifact.path)
    assert (model.ir_version, [(o.domain, o.version) for o in model.opset_import]) == (8, [("", 18)])
    kinds = [node.op_type for node in model.graph.node]
    assert "BatchNormalization" not in kinds and kinds.count("Conv") == 4


def test_channels_first_export_replaces_the_earlier_file(tmp_path):
    """From a network saved at batch 1; what else lies in the directory stays."""
    directory = tmp_path / "tflite"
    directory.mkdir()
    (directory / "model.tflite").write_bytes(b"earlier")
    (directory / "parity.json").write_text("{}")
    phases = []
    artifact = export(
        save(build(NETWORKS["features"]), tmp_path / "network.pt2", batch=1, symbolic=False),
        format="tflite",
        directory=directory,
        channels_last=False,
        log=tmp_path / "logs" / "tflite.log",
        progress=phases.append,
    )
    artifact.require_unchanged()
    assert (artifact.inputs[0].shape, artifact.inputs[0].layout) == ((1, 3, 28, 24), "NCHW")
    assert (artifact.outputs[1].shape, artifact.outputs[1].layout) == ((1, 8, 14, 12), "NCHW")
    assert artifact.inputs[0].minimum is None
    assert sorted(file.name for file in directory.iterdir()) == ["model.tflite", "parity.json"]
    assert phases[0] == "loading the converter" and phases[-1] == "writing the artifact"
    assert not list(tmp_path.glob(f"{STAGING_PREFIX}*"))
    assert "peak memory" in (tmp_path / "logs" / "tflite.log").read_text()


def test_edited_or_missing_file_is_refused(tmp_path):
    from pipeline.verify.execute import run_artifact

    artifact = exported("mobile", "onnx")
    copy = Artifact.from_json(artifact.to_json(workspace()), tmp_path)
    copy.path.parent.mkdir(parents=True)
    copy.path.write_bytes(artifact.path.read_bytes() + b"\0")
    with pytest.raises(VerificationError) as caught:
        run_artifact(copy, images(1))
    assert caught.value.code == "ARTIFACT_CHANGED" and copy.sha256[:12] in caught.value.why
    copy.path.unlink()
    with pytest.raises(VerificationError, match="not the file that was exported"):
        run_artifact(copy, images(1))
