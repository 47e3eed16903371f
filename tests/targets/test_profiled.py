"""The profiled artifact computes what the plain one does, and lists the operators that its runtime ran."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from targets import runners

# Runs as it will in the emulated Python: the runners' folder on the path, nothing of planish.
SCRIPT = """
import json, sys
import numpy
from artifact import ArtifactError, Samples, open_artifact
from profiled import open_profiled
path, format, inputs = sys.argv[1:]
try:
    plain, profiled = open_artifact(path, format), open_profiled(path, format, 2)
    for artifact in (plain, profiled):
        artifact.feed(Samples(inputs, artifact)[0])
        artifact.invoke()
    profiled.invoke()
    pairs = list(zip(plain.outputs().values(), profiled.outputs().values()))
    print(json.dumps({
        "inputs": [[str(i) for i in plain.inputs], [str(i) for i in profiled.inputs]],
        "quantization": [plain.quantization, profiled.quantization],
        "equal": [bool(numpy.array_equal(one, other)) for one, other in pairs],
        "operators": profiled.operators(),
    }))
except ArtifactError as error:
    print(json.dumps({"error": str(error)}))
"""


def profile(artifact: Path, format: str, inputs: Path) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(artifact), format, str(inputs)],
        env={**os.environ, "PYTHONPATH": str(Path(runners.__file__).parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("format", "weighted"), [("tflite", "Convolution (NHWC, F32)"), ("onnx", "Conv")])
def test_a_profiled_artifact_computes_the_same_and_lists_its_operators(small, format, weighted):
    artifact, inputs = small[format]
    found = profile(artifact, format, inputs)
    assert found["equal"] == [True]
    assert found["inputs"][0] == found["inputs"][1] and found["quantization"] == [[None], [None]]
    kinds = [operator["kind"] for operator in found["operators"]]
    assert sum(weighted in kind for kind in kinds) == 2
    assert found["operators"][0]["first"]
    if format == "onnx":
        assert all(operator["out_shapes"] for operator in found["operators"])


def test_only_the_last_invocation_is_listed(small):
    artifact, inputs = small["onnx"]
    operators = profile(artifact, "onnx", inputs)["operators"]
    assert len({operator["name"] for operator in operators}) == len(operators)


@pytest.mark.parametrize("format", ["tflite", "onnx"])
def test_a_file_that_is_no_artifact_is_refused_in_words(small, tmp_path, format):
    broken = tmp_path / f"broken.{format}"
    broken.write_bytes(b"not a model")
    assert "cannot load it" in profile(broken, format, small[format][1])["error"]
