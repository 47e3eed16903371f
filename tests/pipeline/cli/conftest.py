"""A user's folder: model, weights, samples."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import structured
from safetensors.torch import save_file
from tiny import tiny


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
