"""`planish export` with several formats: each checked or said not to run here, and a failure that costs no other."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from export_networks import images

from pipeline.cli.main import cli

pytestmark = [pytest.mark.export, pytest.mark.slow]
MODEL = f"{Path(__file__).with_name('export_networks.py')}:residual"


def exported(tmp_path: Path, *formats: str):
    np.savez(tmp_path / "data.npz", x=images(16), y=np.arange(16) % 10)
    words = ["export", MODEL, "--data", str(tmp_path / "data.npz"), "-o", str(tmp_path / "out"), "--json"]
    return CliRunner().invoke(cli, [*words, *(word for format in formats for word in ("--format", format))])


def test_checked_where_it_runs_and_said_where_it_does_not(tmp_path):
    done = exported(tmp_path, "ort", "coreml")
    assert done.exit_code == 0, done.output
    ort, coreml = json.loads(done.stdout.splitlines()[-1])["artifacts"]
    assert (ort["parity"]["verdict"], coreml["parity"]["verdict"]) == ("passed", "not run here")
    assert ort["artifact"]["inputs"][0]["minimum"] < 0 < ort["artifact"]["peak_mib"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "coreml.log",
        "model.mlpackage",
        "model.ort",
        "model.required_operators.config",
        "ort.log",
    ]


def test_one_failure_costs_no_other_format(tmp_path, monkeypatch):
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "onnxsim.py").write_text("raise RuntimeError('no such luck')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    done = exported(tmp_path, "onnx", "pte")
    assert done.exit_code == 4
    onnx, pte = json.loads(done.stdout.splitlines()[-1])["artifacts"]
    assert onnx["error"]["code"] == "EXPORT_FAILED" and pte["parity"]["verdict"] == "passed"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.pte", "onnx.log", "pte.log"}
