"""One operator of a network as its cost depends on it: kind and sizes, no weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["conv", "linear", "elementwise", "pool"]


@dataclass(frozen=True)
class Operator:
    """An operator on one sample, float32; activations that runtimes fuse (ReLU, clamp) are part of their producer.

    Sizes are (height, width) in pixels. `linear` has kernel and stride (1, 1) and sizes (tokens, 1); `elementwise` is
    an addition of two tensors of one size; `pool` averages, over the whole input when the kernel is as large as that.
    """

    kind: Kind
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    groups: int
    in_size: tuple[int, int]
    out_size: tuple[int, int]

    @property
    def is_depthwise(self) -> bool:
        return self.kind == "conv" and self.groups > 1 and self.groups == self.in_channels

    @property
    def pixels(self) -> int:
        """Output pixels, or tokens."""
        return self.out_size[0] * self.out_size[1]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of a convolution or linear layer; additions of the other kinds."""
        taps = self.kernel[0] * self.kernel[1]
        depth = self.in_channels // self.groups if self.kind in ("conv", "linear") else 1
        return self.pixels * self.out_channels * taps * depth

    @property
    def is_global_pool(self) -> bool:
        return self.kind == "pool" and self.kernel == self.in_size
