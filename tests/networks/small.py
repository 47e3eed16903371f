"""Small networks that hold one of everything, for tests of ingestion and editing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.resnet import BasicBlock


class Fused(nn.Module):
    """A fused bottleneck: 3x3 expand, norm, ReLU, 1x1 project, norm, plus the input."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(channels, hidden, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(hidden, eps=1e-3)
        self.act = nn.ReLU(inplace=True)
        self.project = nn.Conv2d(hidden, channels, 1, bias=False)
        self.out = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(self.project(self.act(self.norm(self.expand(x)))))


class Small(nn.Module):
    """Input [N, 3, 12, 12], output [N, 5]. One ReLU module is called twice, another activation is a function."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.offset = nn.Parameter(torch.zeros(1, 8, 1, 1))
        self.fused = Fused(8, 24)
        self.basic = BasicBlock(8, 16, 2)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.2)
        self.hidden = nn.Linear(16, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x)) + self.offset
        x = self.basic(self.relu(self.fused(x)))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.head(F.gelu(self.hidden(self.drop(x))))


def randomise_norms(network: nn.Module) -> nn.Module:
    """Norms as training leaves them, not the identity."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


def small() -> nn.Module:
    torch.manual_seed(0)
    return randomise_norms(Small())
