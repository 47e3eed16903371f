"""The user's side of the command-line tests: a small network as someone would write it, and ones that go wrong."""

from __future__ import annotations

import torch
from networks.small import Fused, randomise_norms
from torch import Tensor, nn

CLASSES, SHAPE = 5, (3, 12, 12)


class Tiny(nn.Module):
    """Input [N, 3, 12, 12], output [N, 5]: a stem, a fused bottleneck and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.act = nn.ReLU()
        self.fused = Fused(16, 32)
        self.head = nn.Linear(16 * 6 * 6, CLASSES)

    def features(self, x: Tensor) -> Tensor:
        return self.fused(self.act(self.stem(x))).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return randomise_norms(Tiny())


class Ordered(Tiny):
    """Sorts its features, which ONNX can and TFLite cannot."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.sort(self.features(x), dim=1)[0])


def ordered() -> nn.Module:
    torch.manual_seed(0)
    return randomise_norms(Ordered())


class Clamp(nn.Module):
    """What LiteRT's GPU delegate does not take, and its CPU kernels do."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(x, 0, 1)


class Split(Tiny):
    """With such an operator in `middle`, between what the delegate takes."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = Clamp()

    def features(self, x: Tensor) -> Tensor:
        return self.fused(self.middle(self.stem(x))).flatten(1)


def split() -> nn.Module:
    torch.manual_seed(0)
    return randomise_norms(Split())


class Wide(nn.Module):
    """Input [N, 3, 12, 12], output [N, 5], and four million bytes of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(432, 2300)
        self.head = nn.Linear(2300, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(x.flatten(1))))


def raising() -> nn.Module:
    raise KeyError("the checkpoint has no width")


class Branching(nn.Module):
    """Control flow that depends on the data."""

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 0:
            return x.flatten(1)[:, :CLASSES]
        return -x.flatten(1)[:, :CLASSES]


class Plain(nn.Module):
    """Input [N, 3, 12, 12], output [N, 5], and nothing that could be made smaller without a loss worth it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(432, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


class Stubborn(Plain):
    """Does not let itself be switched to inference."""

    def train(self, mode: bool = True) -> nn.Module:
        raise RuntimeError("this network only trains")
