"""A network of which a GPU's delegate leaves an operator in the middle to the CPU, on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import finished

from targets.gpu import places

pytestmark = [pytest.mark.gpu, pytest.mark.export, pytest.mark.slow]
FIT = ("fit", "model.py:split", "--data", "labelled.npz", "--test", "test.npz", "--target", "pixel-4-gpu")


@pytest.fixture(autouse=True)
def driver() -> None:
    if not places.is_ready():
        pytest.skip("the software GPU driver is not set up: run `planish targets setup pixel-4-gpu`")


def test_a_split_has_a_price_and_strict_refuses_it(in_user_folder: Path, tmp_path: Path):
    done = finished(*FIT, "--format", "tflite", "--latency", "10ms", "-o", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "report.json").read_text())
    (found,), (measured,) = record["base"]["delegation"], record["base"]["measurements"]
    assert found["delegate"] == "LiteRT GPU" and found["partitions"] == 1
    assert ("RELU_0_TO_1", "middle") in {(left["kind"], left["module"]) for left in found["fallbacks"]}
    split = measured["split"]
    assert split["left"]["RELU_0_TO_1"] == 1 and split["cpu"] == "pixel-4-cpu" and not split["stands_in"]
    assert sum(split["left"].values()) == found["nodes"] - found["delegated_nodes"]
    assert split["crossing_bytes"] == found["crossing_bytes"] > 0
    assert 0 < split["crossing_ms"] < split["split_ms"] < measured["median_ms"]
    (warning,) = [text for text in record["warnings"] if "is split" in text]
    assert "1 RELU_0_TO_1" in warning and "No figure for synchronisation" in warning
    assert "No figure for synchronisation" in (tmp_path / "run" / "report.html").read_text()

    done = finished(*FIT, "--format", "tflite", "--latency", "10ms", "--strict", "-o", tmp_path / "strict")
    assert done.returncode == 4 and "NOT_DELEGATED" in done.stderr
    assert "RELU_0_TO_1 in 'middle' is not taken by LiteRT GPU" in " ".join(done.stderr.split())
    assert "TRANSPOSE in 'middle'" not in done.stderr


def test_inspect_names_what_would_not_run_on_the_gpu(in_user_folder: Path):
    done = finished(
        *("inspect", "model.py:split", "--data", "labelled.npz", "--target", "pixel-4-gpu", "--format", "tflite"),
        "--json",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["modelled"] and found["once_ms"] > 0 and all(row["predicted_ms"] > 0 for row in found["layers"])
    told = found["gpu"]
    assert told["unknown"] is None and 0 < told["on_gpu"] < told["operators"]
    assert "RELU_0_TO_1 in 'middle' is not taken by LiteRT GPU." in told["left"]
    assert told["refused"] == {"RELU_0_TO_1": "Not supported op RELU_0_TO_1"}
