"""Networks that delegates take whole, or stumble over, each with one thing that is worth finding."""

from __future__ import annotations

import torch
from export_networks import CHANNELS, CLASSES
from torch import Tensor, nn


class Twist(nn.Module):
    """No delegate has an arc tangent."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.atan(x)


class Shift(nn.Module):
    """TFLite rolls along the second axis only, and the converter brings the third one there and back."""

    def forward(self, x: Tensor) -> Tensor:
        return x.roll(1, 2)


class Normalise(nn.Module):
    """A layer norm of channels: the network itself moves them behind and back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Plain(nn.Module):
    """Two convolutions with `middle` between them, and a head."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(CHANNELS, 8, 3, 2, 1), nn.ReLU())
        self.blocks = nn.ModuleDict({"middle": middle, "last": nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())})
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks["last"](self.blocks["middle"](self.stem(x))))
