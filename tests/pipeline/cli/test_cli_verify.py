"""`planish verify` of files on disk: the table, the verdict and the exit code. The artifacts are written by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import planish
from onnx import ModelProto, numpy_helper

from pipeline.export.artifact import sha256_of

NETWORK = """
import torch
from torch import nn

def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(60, 8), nn.ReLU(), nn.Linear(8, 5))
"""
# `bright` is 0 for every pixel below 0.9, as all noise around grey is.
GRAPH = """<ir_version: 8, opset_import: ["" : 18]>
graph (float[1, 3, 4, 5] x) => (float[1, 5] scores) {
    flat = Flatten (x)
    hidden = Gemm <transB = 1> (flat, w1, b1)
    active = Relu (hidden)
    right = Gemm <transB = 1> (active, w2, b2)
    above = Sub (x, limit)
    bright = Relu (above)
    most = ReduceMax <keepdims = 0> (bright, axes)
    column = Unsqueeze (most, axis)
    term = Mul (column, factor)
    scores = Add (right, term)
}"""


def artifact(weights: list[np.ndarray], factor: float) -> ModelProto:
    model = onnx.parser.parse_model(GRAPH)
    constants = dict(zip(("w1", "b1", "w2", "b2"), weights, strict=True))
    constants |= {"limit": np.float32(0.9), "factor": np.float32([[factor, 0, 0, 0, 0]])}
    constants |= {"axes": np.int64([1, 2, 3]), "axis": np.int64([1])}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items())
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """network.py, right.onnx, wrong.onnx, which errs on bright pixels, images.npz with labels, and dull noise.npz."""
    import torch

    folder = tmp_path_factory.mktemp("verify")
    (folder / "network.py").write_text(NETWORK)
    space: dict = {}
    exec(NETWORK, space)
    network = space["network"]()
    weights = [parameter.detach().numpy() for parameter in network.parameters()]
    onnx.save(artifact(weights, 0.0), folder / "right.onnx")
    onnx.save(artifact(weights, 40.0), folder / "wrong.onnx")
    generator = np.random.default_rng(0)
    images = generator.random((48, 3, 4, 5), np.float32)
    labels = network(torch.from_numpy(images)).argmax(1).numpy()
    np.savez(folder / "images.npz", x=images, y=labels)
    np.savez(
        folder / "noise.npz",
        x=np.float32(0.5) + np.float32(0.04) * generator.standard_normal((48, 3, 4, 5), np.float32),
    )
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "80")


def verify(*words: object, data: str = "images.npz"):
    return planish("verify", *words, "--model", "network.py:network", "--data", data)


def test_what_computes_the_same_passes():
    done = verify("right.onnx")
    assert done.exit_code == 0, done.output
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert max(map(len, lines)) <= 80
    assert "network.py:network: passed at level program" in lines and "right.onnx: passed at level host" in lines
    groups = ["your samples", "zeros", "constant minimum", "constant maximum", "stretched range"]
    for name in [*groups, "swapped channels", "inverted", "noise"]:
        assert sum(f" {name} " in line and line.split()[-1] == "passed" for line in lines) == 2, name
    assert any(line.startswith("top-1 100.00 % (n = 48), network 100.00 %: +0.00 points") for line in lines)
    assert "emulator: not run here: the target is no emulated phone" in lines


def test_right_on_noise_and_wrong_on_images_exits_4():
    done = verify("wrong.onnx", "right.onnx")
    assert done.exit_code == 4
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert "wrong.onnx: failed at level host" in lines and "right.onnx: passed at level host" in lines
    assert any("your samples" in line and line.endswith("failed") for line in lines)
    error = done.stderr[done.stderr.index("error[") :].splitlines()
    assert len(error) == 4 and error[0].startswith("error[PARITY_FAILED]") and "wrong.onnx" in error[1]
    assert "your samples" in error[2] and "constant maximum" in error[2]
    table = next(index for index, line in enumerate(lines) if line.startswith("wrong.onnx"))
    rows = {line[9:25].strip(): line.split()[-1] for line in lines[table + 2 : table + 10]}
    assert rows["zeros"] == rows["constant minimum"] == "passed" and rows["constant maximum"] == "failed"
    noise = verify("wrong.onnx", "--json", data="noise.npz")
    groups = {g["name"]: g for g in json.loads(noise.stdout.splitlines()[-2])["artifacts"][0]["levels"][0]["groups"]}
    assert groups["your samples"]["reasons"] == [] and groups["noise"]["reasons"] == []
    assert noise.exit_code == 4 and groups["stretched range"]["reasons"], "the edge cases give it away all the same"


def test_json_holds_every_figure_and_ends_with_the_result():
    done = verify("right.onnx", "--json")
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["event"], result["verdict"], result["program"]["level"]) == ("result", "passed", "program")
    (row,) = result["artifacts"]
    assert (row["file"], row["format"], row["sha256"]) == ("right.onnx", "onnx", sha256_of(Path("right.onnx")))
    host, emulator = row["levels"]
    assert host["verdict"] == "passed" and emulator["verdict"] == "not run here" and emulator["groups"] == []
    assert host["task"]["artifact"]["metric"] == "top-1" and host["groups"][0]["samples"] == 48
    figures = {"max_abs", "relative_rmse", "sqnr_db", "cosine", "top1_agreement"}
    assert all(figures <= set(output) for group in host["groups"] for output in group["outputs"])


def test_a_failure_ends_the_json_with_the_error():
    done = verify("wrong.onnx", "--json")
    *_, result, error = map(json.loads, done.stdout.splitlines())
    assert (result["event"], result["verdict"]) == ("result", "failed")
    assert (error["event"], error["code"], error["exit_code"]) == ("error", "PARITY_FAILED", 4)


def test_a_wider_precision_permits_more():
    assert verify("right.onnx", "--precision", "int8").exit_code == 0
    assert verify("wrong.onnx", "--precision", "int8").exit_code == 4
    assert "--precision" in verify("right.onnx", "--precision", "fp8").stderr


def test_a_narrow_terminal_keeps_the_verdicts(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    lines = [line.rstrip() for line in verify("right.onnx").stdout.splitlines()]
    rows = [line for line in lines if line.endswith("passed") and "level" not in line]
    assert len(rows) == 16 and max(map(len, rows)) <= 60


def test_core_ml_is_not_run_here_and_no_failure(folder):
    (folder / "model.mlpackage").mkdir(exist_ok=True)
    done = verify("model.mlpackage")
    assert done.exit_code == 0, done.output
    assert "model.mlpackage: not run here" in done.stdout and "host: not run here: Core ML" in done.stdout
    assert "passed at level host" not in done.stdout


def test_what_cannot_be_verified_is_a_usage_error(folder):
    (folder / "empty.tflite").write_bytes(b"")
    assert verify("empty.tflite").exit_code == 2
    done = verify("right.onnx", "--target", "no-such-phone")
    assert done.exit_code == 2 and "error[" in done.stderr
    np.savez(folder / "other.npz", x=np.zeros((4, 60), np.float32))
    assert verify("right.onnx", data="other.npz").exit_code == 2
    np.savez(folder / "labels.npz", x=np.zeros((4, 3, 4, 5), np.float32), y=np.full(4, 5))
    assert "DATA_LABELS" in verify("right.onnx", data="labels.npz").stderr
