"""MobileNetV2 at 224² and real images for it, for `planish export` and `planish measure`.

planish export tests/benchmarks/mobilenet_v2.py:network --data tests/benchmarks/mobilenet_v2.py:images -o DIR
planish measure DIR/model.tflite --target pixel-3a-cpu --data tests/benchmarks/mobilenet_v2.py:images
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))  # for `networks`, also when planish imports this file
from networks.mobilenet import randomised_mobilenet_v2 as network  # noqa: E402, F401


def images() -> list[Tensor]:
    """Sixteen of the example's photographs of clothes, enlarged to [3, 224, 224] float32 in [-1, 1]."""
    with np.load(TESTS.parent / "examples" / "fashion" / "test.npz") as data:
        small = torch.from_numpy(data["x"][:16]).float() / 127.5 - 1
    return list(F.interpolate(small, size=224, mode="bilinear").repeat(1, 3, 1, 1))
