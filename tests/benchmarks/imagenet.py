"""Photographs of the ImageNet classes for benchmarks, and MobileNetV2. `PLANISH_IMAGENET` names their folder:

eval_1000_256px.zip          1,000 photographs, 256 x 256
eval_1000.csv                columns `file` and `class_index` for them
calibration_1000_256px.zip   1,000 others, used without labels
"""

from __future__ import annotations

import csv
import io
import os
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `networks`, also when planish imports this file
from networks.mobilenet import MobileNetV2  # noqa: E402

SIZE, CROP = 256, 224
FILES = ("eval_1000_256px.zip", "eval_1000.csv", "calibration_1000_256px.zip")


def mobilenet_v2() -> tuple[MobileNetV2, Tensor]:
    """Untrained, with an example input; give the weights with --weights."""
    return MobileNetV2(), torch.zeros(2, 3, CROP, CROP)


def calibration() -> dict[str, np.ndarray]:
    """x uint8 [1000, 3, 224, 224]."""
    with zipfile.ZipFile(_folder() / FILES[2]) as archive:
        return {"x": _images(archive, sorted(archive.namelist()))}


def evaluation() -> dict[str, np.ndarray]:
    """x uint8 [1000, 3, 224, 224], y [1000]."""
    with (_folder() / FILES[1]).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with zipfile.ZipFile(_folder() / FILES[0]) as archive:
        x = _images(archive, (row["file"] for row in rows))
    return {"x": x, "y": np.array([int(row["class_index"]) for row in rows])}


def _folder() -> Path:
    return Path(os.environ["PLANISH_IMAGENET"])


def _images(archive: zipfile.ZipFile, names: Iterable[str]) -> np.ndarray:
    edge = (SIZE - CROP) // 2
    crop = slice(edge, edge + CROP)
    pictures = (Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in names)
    return np.stack([np.asarray(picture)[crop, crop].transpose(2, 0, 1) for picture in pictures])
