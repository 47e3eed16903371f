"""EfficientNet-Lite0 (Tan and Le, ICML 2019; without squeeze-and-excitation), with its public checkpoint's names."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

NORM = {"eps": 1e-3, "momentum": 0.01}
STAGES = (  # expansion, kernel, stride, channels, repeats
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


def padded(x: Tensor, kernel: int, stride: int) -> Tensor:
    """TensorFlow's "same" padding: with stride 2 and an even size, one more on the right than on the left."""
    if stride == 1:
        return F.pad(x, [kernel // 2] * 4)
    whole = max(kernel - stride, 0) if x.shape[-1] % stride == 0 else max(kernel - x.shape[-1] % stride, 0)
    return F.pad(x, [whole // 2, whole - whole // 2] * 2)


class MBConv(nn.Module):
    """Expand, depthwise, project, beside a skip where shapes allow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        self.kernel, self.stride, self.skip = kernel, stride, stride == 1 and inputs == outputs
        hidden = inputs * expand
        if expand > 1:
            self._expand_conv, self._bn0 = nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden, **NORM)
        self._depthwise_conv = nn.Conv2d(hidden, hidden, kernel, stride, groups=hidden, bias=False)
        self._bn1 = nn.BatchNorm2d(hidden, **NORM)
        self._project_conv, self._bn2 = nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs, **NORM)
        self.expands = expand > 1

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        hidden = F.relu6(self._bn1(self._depthwise_conv(padded(hidden, self.kernel, self.stride))))
        hidden = self._bn2(self._project_conv(hidden))
        return x + hidden if self.skip else hidden


class EfficientNetLite0(nn.Module):
    """Input [N, 3, 224, 224], output [N, 1000]."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = nn.Conv2d(3, 32, 3, 2, bias=False), nn.BatchNorm2d(32, **NORM)
        blocks, inputs = [], 32
        for expand, kernel, stride, outputs, repeats in STAGES:
            for index in range(repeats):
                blocks.append(MBConv(inputs, outputs, kernel, stride if index == 0 else 1, expand))
                inputs = outputs
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = nn.Conv2d(inputs, 1280, 1, bias=False), nn.BatchNorm2d(1280, **NORM)
        self._fc = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self._bn0(self._conv_stem(padded(x, 3, 2))))
        for block in self._blocks:
            x = block(x)
        x = F.relu6(self._bn1(self._conv_head(x)))
        return self._fc(x.mean((2, 3)))
