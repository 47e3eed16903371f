"""The Fashion-MNIST example keeps what its training log states."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from calibration.dataset import open_samples
from calibration.statistics import collect

FASHION = Path(__file__).parents[2] / "examples" / "fashion"
LOG = json.loads((FASHION / "train_log.json").read_text())
SITES = ["stem.act", *(f"blocks.{number}.act" for number in range(6)), "head.act"]


@pytest.fixture(scope="module")
def model() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fashion_model", FASHION / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["calibration.npz", "test.npz"])
def test_committed_samples(name: str):
    samples = open_samples(FASHION / name, input_shape=(1, 28, 28), classes=10)
    info = samples.validate()
    assert (info.count, info.minimum, info.maximum) == (2000, 0.0, 1.0)
    assert torch.cat([y for _, y in samples.batches(500)]).bincount().tolist() == [200] * 10


def test_accuracy_is_the_stated_one(model):
    network = model.trained()
    samples = open_samples(FASHION / "test.npz")
    with torch.no_grad():
        hits = sum(int((network(x).argmax(1) == y).sum()) for x, y in samples.batches(250))
    assert hits == pytest.approx(2000 * LOG["test_top1"]["committed_2000"], abs=1.5)  # one tie may round otherwise
    assert LOG["test_top1"]["all_10000"] >= 0.925
    assert not network.training


def test_size_is_the_stated_one(model):
    network = model.build()
    macs = 0

    def count(part: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal macs
        macs += part.weight[0].numel() * output.numel()

    for part in network.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            part.register_forward_hook(count)
    network.eval()(torch.zeros(1, 1, 28, 28))
    assert 23.5e6 < macs < 24.5e6
    assert sum(p.numel() for p in network.parameters()) == LOG["parameters"] == 358_066
    assert (FASHION / "weights.safetensors").stat().st_size <= 2_000_000


def test_every_relu_is_a_site_of_its_own(model):
    network = model.trained()
    assert [name for name, part in network.named_modules() if isinstance(part, nn.ReLU)] == SITES
    statistics = collect(network, SITES, open_samples(FASHION / "calibration.npz").take(200).batches(100))
    assert all(0.05 < statistics[site].entropy() <= 1 for site in SITES)
