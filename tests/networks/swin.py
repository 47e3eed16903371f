"""Swin-Tiny (Liu et al., ICCV 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def windows(x: Tensor, size: int) -> Tensor:
    """[N, H, W, C] to [N * windows, size * size, C]."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // size, size, width // size, size, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, size * size, channels)


def together(x: Tensor, size: int, height: int, width: int) -> Tensor:
    """The inverse of `windows`."""
    x = x.view(-1, height // size, width // size, size, size, x.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, x.shape[-1])


class WindowAttention(nn.Module):
    """Attention within windows, with a learned bias of the relative place: [B, T, D] to [B, T, D]."""

    def __init__(self, width: int, heads: int, size: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias_table = nn.Parameter(torch.randn((2 * size - 1) ** 2, heads) * 0.02)
        place = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")).flatten(1)
        apart = (place[:, :, None] - place[:, None, :]) + size - 1
        self.register_buffer("index", apart[0] * (2 * size - 1) + apart[1], persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        count, tokens, width = x.shape
        parts = self.qkv(x).reshape(count, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        scores = query @ key.transpose(-2, -1) * (width // self.heads) ** -0.5
        scores = scores + self.bias_table[self.index].permute(2, 0, 1)
        if mask is not None:
            scores = scores.view(-1, len(mask), self.heads, tokens, tokens) + mask[:, None]
            scores = scores.view(-1, self.heads, tokens, tokens)
        return self.proj((scores.softmax(-1) @ value).transpose(1, 2).reshape(count, tokens, width))


class SwinBlock(nn.Module):
    """Shifted by half a window or not: [N, H, W, D] to [N, H, W, D]."""

    def __init__(self, width: int, heads: int, side: int, shifted: bool, size: int = 7) -> None:
        super().__init__()
        self.size, self.shift = size, size // 2 if shifted and side > size else 0
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, size)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.register_buffer("mask", self._mask(side) if self.shift else None, persistent=False)

    def _mask(self, side: int) -> Tensor:
        """Tokens that the shift brought together from opposite borders do not see each other."""
        strips = torch.zeros(1, side, side, 1)
        cuts = (slice(0, -self.size), slice(-self.size, -self.shift), slice(-self.shift, None))
        for number, (row, column) in enumerate((row, column) for row in cuts for column in cuts):
            strips[:, row, column] = number
        of = windows(strips, self.size).squeeze(-1)
        return (of[:, None] != of[:, :, None]).float() * -100.0

    def forward(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        hidden = self.norm1(x)
        if self.shift:
            hidden = torch.roll(hidden, (-self.shift, -self.shift), (1, 2))
        hidden = together(self.attn(windows(hidden, self.size), self.mask), self.size, height, width)
        if self.shift:
            hidden = torch.roll(hidden, (self.shift, self.shift), (1, 2))
        x = x + hidden
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class PatchMerging(nn.Module):
    """[N, H, W, D] to [N, H / 2, W / 2, 2 D]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, -1)))


class Swin(nn.Module):
    """Input [N, 3, 224, 224], output [N, classes]."""

    def __init__(
        self,
        width: int = 96,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        heads: tuple[int, ...] = (3, 6, 12, 24),
        size: int = 224,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        self.patch, self.norm0 = nn.Conv2d(3, width, 4, 4), nn.LayerNorm(width)
        stages, side = [], size // 4
        for index, (depth, count) in enumerate(zip(depths, heads)):
            if index:
                stages.append(PatchMerging(width))
                width, side = 2 * width, side // 2
            stages += [SwinBlock(width, count, side, bool(number % 2)) for number in range(depth)]
        self.layers = nn.Sequential(*stages)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(self.norm0(self.patch(x).permute(0, 2, 3, 1)))
        return self.head(self.norm(x).mean((1, 2)))
