"""ConvNeXt-Atto (Liu et al., CVPR 2022; the smallest of the sizes that followed, widths 40 to 320)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of [N, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """Depthwise 7x7, norm and MLP with the channels last, scaled, beside a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1, self.act, self.pwconv2 = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        hidden = self.gamma * self.pwconv2(self.act(self.pwconv1(hidden)))
        return x + hidden.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Input [N, 3, 224, 224], output [N, classes]."""

    def __init__(
        self, widths: tuple[int, ...] = (40, 80, 160, 320), depths: tuple[int, ...] = (2, 2, 6, 2), classes: int = 1000
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 4, 4), ChannelNorm(widths[0], eps=1e-6))
        stages = []
        for index, (width, depth) in enumerate(zip(widths, depths)):
            before = widths[index - 1] if index else width
            down = [ChannelNorm(before, eps=1e-6), nn.Conv2d(before, width, 2, 2)] if index else []
            stages.append(nn.Sequential(*down, *(Block(width) for _ in range(depth))))
        self.stages = nn.Sequential(*stages)
        self.norm, self.head = nn.LayerNorm(widths[-1], eps=1e-6), nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stages(self.stem(x)).mean((2, 3))))
