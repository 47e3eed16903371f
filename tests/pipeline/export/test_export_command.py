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
ODD = """
import torch
from torch import nn

class Twist(nn.Module):
    def forward(self, x):
        return torch.atan(x)

class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.middle, self.last = nn.Conv2d(3, 8, 3, 2, 1), Twist(), nn.Conv2d(8, 10, 3, 2, 1)

    def forward(self, x):
        return self.last(self.middle(self.stem(x))).mean((2, 3))

def odd():
    torch.manual_seed(0)
    return Odd()
"""


def exported(tmp_path: Path, *formats: str, model: str = MODEL, more: tuple[str, ...] = ("--json",)):
    np.savez(tmp_path / "data.npz", x=images(16), y=np.arange(16) % 10)
    words = ["export", model, "--data", str(tmp_path / "data.npz"), "-o", str(tmp_path / "out"), *more]
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


def test_strict_refuses_what_no_delegate_takes_and_names_it(tmp_path):
    """No delegate has an arc tangent: TFLite's converter writes ATAN2, ExecuTorch keeps its own kernel."""
    (tmp_path / "odd.py").write_text(ODD)
    done = exported(tmp_path, "tflite", "pte", model=f"{tmp_path / 'odd.py'}:odd", more=("--strict",))
    assert done.exit_code == 4 and done.stdout == ""
    assert done.stderr.count("error[NOT_DELEGATED]") == 2
    for operator in ("ATAN2", "aten::atan"):
        assert f"{operator} in 'middle' is not taken by XNNPACK." in done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"pte.log", "tflite.log"}
