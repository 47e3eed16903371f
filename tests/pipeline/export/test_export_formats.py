"""Every format: its contract, that it computes the network, the same bytes every time, nothing of the user's."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from export_networks import NETWORKS, build, eager, exported, images, saved, workspace

from pipeline.export.artifact import Artifact, bytes_of, files_of, sha256_of
from pipeline.export.contract import KEY, Contract
from pipeline.export.coreml import MODEL
from pipeline.export.formats import FORMATS
from pipeline.export.metadata import FIELD, IDENTIFIER, LABELS_FILE
from pipeline.export.ort_order import in_order
from pipeline.export.together import export_all
from pipeline.verify.execute import from_layout, run_artifact, to_layout
from targets.errors import MissingEnvironmentError

pytestmark = [pytest.mark.export, pytest.mark.slow]
HERE = Path(__file__).parent
RUN_HERE = [name for name, format in FORMATS.items() if format.runs_on_host]
CONTRACT = Contract(-1.0, 2.0, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), tuple(f"class {index}" for index in range(10)))
DELEGATED = ("pte", "pte-vulkan", "pte-coreml")


@pytest.fixture(scope="module")
def spoken() -> list[tuple[str, str]]:
    return []


@pytest.fixture(scope="module")
def artifacts(spoken) -> dict[str, Artifact]:
    """The residual network in every format, exported side by side."""
    found = export_all(
        saved("residual"),
        formats=list(FORMATS),
        directory=workspace() / "every",
        contract=CONTRACT,
        progress=lambda format, phase: spoken.append((format, phase)),
    )
    assert all(isinstance(artifact, Artifact) for artifact in found.values()), found
    return found


@pytest.fixture(scope="module")
def again(tmp_path_factory) -> dict[str, Artifact]:
    """The same network saved by another process, from sources in another directory, with another hash seed."""
    directory = tmp_path_factory.mktemp("else where")
    shutil.copy(HERE / "export_networks.py", directory / "my_networks.py")
    code = "import pathlib, my_networks as n; n.save(n.build(n.Residual), pathlib.Path('network too.pt2'))"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(HERE.parents[2])}
    subprocess.run([sys.executable, "-c", code], cwd=directory, check=True, capture_output=True, env=environment)
    return export_all(
        directory / "network too.pt2", formats=list(FORMATS), directory=directory / "out", contract=CONTRACT
    )


@pytest.mark.parametrize("name", FORMATS)
def test_contract(name, artifacts):
    artifact, format = artifacts[name], FORMATS[name]
    assert (artifact.format, artifact.path.name, artifact.runtime) == (name, format.file, format.runtime)
    last = format.channels_last
    (spec,), (scores,) = artifact.inputs, artifact.outputs
    assert (spec.shape, spec.layout) == (((1, 28, 24, 3), "NHWC") if last else ((1, 3, 28, 24), "NCHW"))
    assert spec.name == {"tflite": "args_0"}.get(name, "input_0" if name in DELEGATED else "image")
    assert (spec.dtype, spec.minimum, spec.maximum, spec.mean) == ("float32", -1.0, 2.0, CONTRACT.mean)
    assert (scores.name, scores.shape, scores.layout, scores.labels) == ("output_0", (1, 10), "NC", CONTRACT.labels)
    assert re.search(r"\d", artifact.runtime_minimum) and set(artifact.tool_versions) == set(format.packages)
    assert artifact.bytes == bytes_of(artifact.path) > 20_000
    assert 100 < artifact.peak_mib < 4000 and artifact.seconds > 1
    assert (artifact.delegation is not None) == (name in DELEGATED)
    assert Artifact.from_json(json.loads(json.dumps(artifact.to_json(workspace()))), workspace()) == artifact
    artifact.require_unchanged()


def told_by(artifact: Artifact) -> dict[str, list[dict[str, object]]]:
    """The contract as the file itself holds it."""
    if artifact.format == "coreml":
        from coremltools.proto import Model_pb2

        description = Model_pb2.Model.FromString((artifact.path / MODEL).read_bytes()).description
        assert "RGB image" in description.input[0].shortDescription
        return json.loads(description.metadata.userDefined[KEY])
    import onnxruntime

    session = onnxruntime.InferenceSession(str(artifact.path), providers=["CPUExecutionProvider"])
    return json.loads(session.get_modelmeta().custom_metadata_map[KEY])


@pytest.mark.parametrize("name", ["onnx", "ort", "coreml"])
def test_the_file_itself_tells_the_contract(name, artifacts):
    told = told_by(artifacts[name])
    (given,), (scores,) = told["inputs"], told["outputs"]
    assert (given["mean"], given["maximum"], given["layout"]) == ([0.5, 0.5, 0.5], 2.0, "NCHW")
    assert tuple(scores["labels"]) == CONTRACT.labels


def test_tflite_has_its_own_metadata_and_the_labels_as_a_file(artifacts):
    from ai_edge_litert.schema_py_generated import ModelT

    content = artifacts["tflite"].path.read_bytes()
    with zipfile.ZipFile(artifacts["tflite"].path) as archive:
        assert archive.read(LABELS_FILE).decode().split("\n")[:-1] == list(CONTRACT.labels)
    model = ModelT.InitFromPackedBuf(content, 0)
    held = {entry.name.decode(): bytes(model.buffers[entry.buffer].data) for entry in model.metadata}
    metadata = held[FIELD]
    assert metadata[4:8] == IDENTIFIER and b"an RGB image, float32 NHWC" in metadata
    pixels = np.array([0.5 * 255] * 3, np.float32).tobytes()  # the schema's normalisation is of stored pixels
    assert pixels in metadata and "min_runtime_version" in held
    assert (content.index(b"TFL3", 8) - 4) % 64 == 0  # the converter's file, with its weights where kernels load them


@pytest.mark.parametrize("name", FORMATS)
def test_progress_says_which_format(name, artifacts, spoken):
    phases = [phase for format, phase in spoken if format == name]
    assert phases[0] == "loading the converter" and phases[-1] == "writing the artifact"


@pytest.mark.parametrize("name", FORMATS)
def test_same_network_same_bytes(name, artifacts, again):
    assert again[name].sha256 == artifacts[name].sha256
    for beside in artifacts[name].beside:
        assert sha256_of(again[name].path.with_name(beside)) == sha256_of(artifacts[name].path.with_name(beside))


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_of_the_users_machine_is_inside(name, artifacts):
    files = [*files_of(artifacts[name].path), *(artifacts[name].path.with_name(b) for b in artifacts[name].beside)]
    private = [
        str(HERE),
        "export_networks",
        str(workspace()),
        sys.prefix,
        "site-packages",
        f"{Path.home()}/",
        ".export-",
    ]
    private += [socket.gethostname()] if len(socket.gethostname()) > 5 else []
    for file in files:
        content = file.read_bytes()
        assert not [text for text in private if text.encode() in content], file


@pytest.mark.parametrize("name", RUN_HERE)
def test_computes_the_network(name, artifacts):
    (spec,), (scores,) = artifacts[name].inputs, artifacts[name].outputs
    (found,) = run_artifact(artifacts[name], to_layout(images(8), spec))
    (expected,) = eager(build(NETWORKS["residual"]), images(8))
    assert np.abs(from_layout(found, scores) - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("name", sorted(set(FORMATS) - set(RUN_HERE)))
def test_what_does_not_run_here_says_so(name, artifacts):
    with pytest.raises(MissingEnvironmentError) as caught:
        run_artifact(artifacts[name], images(1))
    assert caught.value.code == "NOT_RUN_HERE" and FORMATS[name].why_not in caught.value.why


def test_ort_is_for_any_processor_and_names_what_it_needs(artifacts):
    from onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs.InferenceSession import InferenceSession

    artifact = artifacts["ort"]
    graph = InferenceSession.GetRootAsInferenceSession(artifact.path.read_bytes(), 0).Model().Graph()
    nodes = [graph.Nodes(index) for index in range(graph.NodesLength())]
    domains = {"": "ai.onnx"}
    used = {(domains.get(node.Domain().decode(), node.Domain().decode()), node.OpType().decode()) for node in nodes}
    assert ("com.microsoft", "FusedConv") in used and {domain for domain, _ in used} == {"ai.onnx", "com.microsoft"}
    (config,) = artifact.beside
    lines = [line.split(";") for line in artifact.path.with_name(config).read_text().splitlines()]
    listed = {(domain, operator) for domain, _, operators in lines for operator in operators.split(",")}
    assert listed == used


def test_ort_files_differ_in_nothing_but_an_order(artifacts, tmp_path):
    """ONNX Runtime's own hash tables put a part of the file in another order each time, in one process as in two."""
    import onnxruntime

    written = set()
    for index in range(8):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / f"{index}.ort")
        options.add_session_config_entry("session.save_model_format", "ORT")
        onnxruntime.InferenceSession(
            str(artifacts["onnx"].path), options, ["CPUExecutionProvider"], disabled_optimizers=["NchwcTransformer"]
        )
        written.add(in_order((tmp_path / f"{index}.ort").read_bytes()))
    (content,) = written
    assert in_order(content) == content
    name = artifacts["onnx"].inputs[0].name
    found, plain = (
        onnxruntime.InferenceSession(model).run(None, {name: images(1)})
        for model in (content, (tmp_path / "0.ort").read_bytes())
    )
    assert np.array_equal(found[0], plain[0])


def test_core_ml_package_is_whole(artifacts):
    from coremltools.models.utils import load_spec

    package = artifacts["coreml"].path
    manifest = json.loads((package / "Manifest.json").read_text())
    entries = manifest["itemInfoEntries"]
    assert {entry["name"] for entry in entries.values()} == {"model.mlmodel", "weights"}
    assert all((package / "Data" / entry["path"]).exists() for entry in entries.values())
    assert entries[manifest["rootModelIdentifier"]]["name"] == "model.mlmodel"
    assert sorted(file.relative_to(package).parts[0] for file in files_of(package)) == ["Data", "Data", "Manifest.json"]
    spec = load_spec(str(package))
    assert spec.specificationVersion == 7  # iOS 16
    assert bytes_of(package / "Data" / "com.apple.CoreML" / "weights") > 4 * 4_000  # float32


def test_delegates_are_told_in_the_users_modules(artifacts):
    for name, backend in zip(DELEGATED, ("XnnpackBackend", "VulkanBackend", "CoreMLBackend")):
        delegation = artifacts[name].delegation
        (delegate,) = delegation["delegates"]
        assert (delegation["partitions"], delegation["outside"], delegate["backend"]) == (1, [], backend)
        assert {"stem.0", "first.4", "shortcut.0", "head"} <= {one["module"] for one in delegate["operators"]}
        assert (delegate["input_bytes"], delegate["output_bytes"]) == (4 * 3 * 28 * 24, 4 * 10)


def test_operators_left_outside_are_named():
    """XNNPACK takes no mean over tokens; what stands between two partitions is listed with its kernel."""
    delegation = exported("transformer", "pte").delegation
    means = [one for one in delegation["outside"] if one["operator"] == "aten.mean.dim"]
    assert [(one["module"], one["kernel"], one["output_bytes"]) for one in means] == [("", "aten::mean.out", 4 * 32)]
    assert 1 <= means[0]["position"] <= delegation["partitions"] == len(delegation["delegates"])


def test_two_networks_are_not_taken_for_each_other(artifacts):
    """Core ML's delegate keeps what it compiled under this identifier, on the user's phone."""
    mine, other = (
        set(re.findall(rb"executorch_[0-9a-f-]{36}", artifact.path.read_bytes()))
        for artifact in (artifacts["pte-coreml"], exported("mobile", "pte-coreml"))
    )
    assert len(mine) == 1 and len(other) == 1 and mine != other


def test_several_outputs_keep_their_order():
    artifact = exported("features", "pte")
    assert [(spec.name, spec.layout) for spec in artifact.outputs] == [
        ("output_0", "NC"),
        ("output_1", "NCHW"),
        ("output_2", ""),
    ]
    for found, expected in zip(run_artifact(artifact, images(2)), eager(build(NETWORKS["features"]), images(2))):
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
