"""What a file says of itself, in the terms of the network; no converter takes part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from pipeline.export.artifact import sha256_of
from pipeline.verify.edge_cases import OWN, Group
from pipeline.verify.from_file import artifact_at, format_of
from pipeline.verify.levels import check_host
from pipeline.verify.reference import Case, Reference
from targets.errors import UsageError

HEADER = '<ir_version: 8, opset_import: ["" : 18]> graph '
RELU = HEADER + "({type}[{sizes}] x) => ({type}[{sizes}] y) {{ y = Relu(x) }}"
TWO = HEADER + "(float[1, 3] x, float[1, 3] z) => (float[1, 3] y) { y = Add(x, z) }"


def written(folder: Path, sizes: str, type: str = "float", text: str = RELU) -> Path:
    """An ONNX file that rectifies."""
    path = folder / "network.onnx"
    onnx.save(onnx.parser.parse_model(text if text is TWO else text.format(sizes=sizes, type=type)), path)
    return path


def rectifier(*shape: int) -> Reference:
    """The network: a rectifier of samples of that shape."""
    samples = np.random.default_rng(0).standard_normal((4, *shape), np.float32)
    return Reference((Case(Group(OWN, samples), (np.maximum(samples, 0),)),))


@pytest.mark.parametrize(
    ("sizes", "shape", "layout"),
    [
        ("1, 3, 4, 5", (3, 4, 5), "NCHW"),
        ("1, 4, 5, 3", (3, 4, 5), "NHWC"),
        ("n, 4, 5, 3", (3, 4, 5), "NHWC"),
        ("1, 7", (7,), "NC"),
        ("1, 6, 7", (6, 7), ""),
        ("1, 1, 1, 1", (1, 1, 1), "NCHW"),
    ],
)
def test_the_layout_is_found_by_comparison(sizes, shape, layout, tmp_path):
    path = written(tmp_path, sizes)
    artifact = artifact_at(path, rectifier(*shape))
    (put,), (got,) = artifact.inputs, artifact.outputs
    assert (put.layout, got.layout, put.name, got.name, put.dtype) == (layout, layout, "x", "y", "float32")
    assert put.shape == got.shape and put.shape[0] == 1 and sorted(put.shape[1:]) == sorted(shape)
    assert (artifact.format, artifact.sha256, artifact.bytes) == ("onnx", sha256_of(path), path.stat().st_size)
    assert check_host(artifact, rectifier(*shape)).passed


def test_what_fits_both_layouts_is_asked_for(tmp_path):
    path = written(tmp_path, "1, 4, 4, 4")
    with pytest.raises(UsageError) as caught:
        artifact_at(path, rectifier(4, 4, 4))
    assert (caught.value.code, caught.value.exit_code) == ("CONTRACT_AMBIGUOUS", 2)
    assert "--layout" in caught.value.fix and "'x'" in caught.value.where
    for layout in ("NCHW", "NHWC"):
        assert artifact_at(path, rectifier(4, 4, 4), layout).inputs[0].layout == layout


@pytest.mark.parametrize(
    ("sizes", "type", "text", "code"),
    [
        ("1, 3, 4, 6", "float", RELU, "CONTRACT_SHAPE"),
        ("1, 60", "float", RELU, "CONTRACT_SHAPE"),
        ("1, 3, 4, 5", "int32", RELU, "CONTRACT_TYPE"),
        ("", "float", TWO, "CONTRACT_INPUTS"),
    ],
)
def test_samples_that_cannot_be_fed(sizes, type, text, code, tmp_path):
    with pytest.raises(UsageError) as caught:
        artifact_at(written(tmp_path, sizes, type, text), rectifier(3, 4, 5))
    assert caught.value.code == code and str(tmp_path) in caught.value.where


def test_an_output_of_another_shape_is_for_parity_to_judge(tmp_path):
    whole = rectifier(3, 4, 5)
    summed = Reference((Case(whole.own.group, (whole.own.outputs[0].sum((2, 3)),)),))
    artifact = artifact_at(written(tmp_path, "1, 3, 4, 5"), summed)
    assert artifact.outputs[0].layout == ""
    parity = check_host(artifact, summed)
    assert parity.failed and "[4, 3, 4, 5], the network's are [4, 3]" in parity.reasons[0]


def test_files_that_are_none(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    (tmp_path / "model.txt").write_text("nothing")
    for name, code in (
        ("broken.onnx", "ARTIFACT_UNUSABLE"),
        ("missing.onnx", "ARTIFACT_UNUSABLE"),
        ("model.txt", "FORMAT_UNKNOWN"),
    ):
        with pytest.raises(UsageError) as caught:
            artifact_at(tmp_path / name, rectifier(3))
        assert caught.value.code == code and name in caught.value.where


@pytest.mark.parametrize(
    ("content", "format"), [(b"", "pte"), (b"\0VulkanBackend\0", "pte-vulkan"), (b"\0CoreMLBackend\0", "pte-coreml")]
)
def test_the_delegate_of_a_program_is_read_from_it(content, format, tmp_path):
    path = tmp_path / "any name.pte"
    path.write_bytes(b"ET12" + content)
    assert format_of(path).name == format


def test_of_what_does_not_run_here_only_the_file_is_known(tmp_path):
    package = tmp_path / "model.mlpackage"
    package.mkdir()
    (package / "weights").write_bytes(b"12345")
    artifact = artifact_at(package, rectifier(3))
    assert (artifact.format, artifact.inputs, artifact.bytes) == ("coreml", (), 5)
    assert check_host(artifact, rectifier(3)).verdict == "not run here"
