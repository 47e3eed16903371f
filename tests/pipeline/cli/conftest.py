"""The real command, in this process and in one of its own, and a user's folder: model, weights, samples."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file
from tiny import CLASSES, SHAPE, tiny

from pipeline.cli.main import cli

ROOT = Path(__file__).parents[3]
COMMAND = (sys.executable, "-P", "-c", "from pipeline.cli.main import main; main()")
# One thread: these networks are so small that handing work to a second costs more than the work.
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}


def planish(*words: object) -> Result:
    """A command in this process: `exit_code`, `stdout`, `stderr`."""
    return CliRunner().invoke(cli, [str(word) for word in words])


def started(*words: object, **settings: Any) -> subprocess.Popen[str]:
    """A command in a process of its own."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*COMMAND, *map(str, words)], env=ENVIRONMENT, **{**pipes, **settings})


def finished(*words: object) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, waited for."""
    process = started(*words)
    stdout, stderr = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def structured(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(x: [count, 3, 12, 12] float32, y: [count] int64): a pattern a class, under noise."""
    patterns = np.random.default_rng(0).normal(size=(CLASSES, *SHAPE))
    random = np.random.default_rng(seed)
    y = random.integers(0, CLASSES, count)
    return (patterns[y] + 3.0 * random.normal(size=(count, *SHAPE))).astype("float32"), y


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As `ENVIRONMENT` has it, for the commands that run in this process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def user_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user has: model.py, weights.safetensors with a fitted head, samples with and without labels."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copy(Path(__file__).with_name("tiny.py"), folder / "model.py")
    x, y = structured(400, 1)
    model = tiny()
    with torch.no_grad():  # the head by least squares on random features: trained enough to have something to lose
        features = model.features(torch.from_numpy(x)).double()
        ridge = features.T @ features + 30 * torch.eye(features.shape[1])
        weight = torch.linalg.solve(ridge, features.T @ torch.nn.functional.one_hot(torch.from_numpy(y)).double())
        model.head.weight.copy_(6 * weight.T)
        model.head.bias.zero_()
    save_file(model.state_dict(), folder / "weights.safetensors")
    np.savez(folder / "labelled.npz", x=x, y=y)
    np.savez(folder / "unlabelled.npz", x=x)
    np.savez(folder / "test.npz", **dict(zip("xy", structured(400, 2), strict=True)))
    return folder


@pytest.fixture
def in_user_folder(user_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder as the current directory; a test writes only under its own `tmp_path`."""
    monkeypatch.chdir(user_folder)
    return user_folder
