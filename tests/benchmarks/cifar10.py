"""CIFAR-10 and its ResNets for benchmarks. Neither ships with planish: `PLANISH_CIFAR10` names an .npz of the data.

train_x uint8 [50000, 32, 32, 3]   train_y [50000]   test_x uint8 [10000, 32, 32, 3]   test_y [10000]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `networks`, also when planish imports this file
from networks.resnet import CifarResNet  # noqa: E402


def resnet20() -> CifarResNet:
    """Untrained; give the weights with --weights."""
    return CifarResNet(3)


def resnet56() -> CifarResNet:
    """Untrained; give the weights with --weights."""
    return CifarResNet(9)


def train() -> dict[str, np.ndarray]:
    return _part("train")


def test() -> dict[str, np.ndarray]:
    return _part("test")


test.__test__ = False  # data, not a test


def _part(name: str) -> dict[str, np.ndarray]:
    with np.load(os.environ["PLANISH_CIFAR10"]) as data:
        return {"x": data[f"{name}_x"].transpose(0, 3, 1, 2), "y": data[f"{name}_y"].astype(np.int64)}
