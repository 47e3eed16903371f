"""A small vision transformer (Dosovitskiy et al., ICLR 2021), with the mean of the tokens instead of a class token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Norm, attention and norm, MLP, each beside a skip: [N, T, D] to [N, T, D]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        parts = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        seen = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        x = x + self.proj(seen.reshape(batch, tokens, width))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """Input [N, channels, size, size], output [N, classes]."""

    def __init__(
        self, width: int, depth: int, heads: int, *, size: int, patch: int, channels: int = 3, classes: int = 1000
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.place = nn.Parameter(torch.randn(1, (size // patch) ** 2, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.place
        return self.head(self.norm(self.blocks(tokens)).mean(1))


def small_vit() -> ViT:
    """Input [N, 1, 28, 28], output [N, 10]: 49 patches of 4 x 4."""
    return ViT(96, 6, 3, size=28, patch=4, channels=1, classes=10)


def vit_tiny() -> ViT:
    """ViT-Ti/16: input [N, 3, 224, 224], output [N, 1000]."""
    return ViT(192, 12, 3, size=224, patch=16)
