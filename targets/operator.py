"""One operator of a network as its cost depends on it: kind and sizes, no weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Weighted = Literal["conv", "linear"]
Unary = Literal["clamp", "hardswish", "gelu", "silu", "sigmoid", "softmax", "norm"]
Binary = Literal["add", "mul", "scale"]
Moved = Literal["pool", "max_pool", "resize", "transpose", "concat"]
Kind = Weighted | Literal["matmul"] | Unary | Binary | Moved
UNARY, BINARY = get_args(Unary), get_args(Binary)


@dataclass(frozen=True)
class Operator:
    """An operator on one sample, float32; a ReLU or clamp behind a layer with weights is part of it.

    Sizes are (height, width) in pixels, or (tokens, 1) of [tokens, channels]: then kernel and stride are (1, 1).

    Kinds:
        conv, linear: with weights and biases.
        matmul: [groups, tokens, in_channels] times [groups, in_channels, out_channels], as in attention: `groups` are
            its heads and the channels are those of one head.
        clamp: a ReLU or clamp behind anything else.
        add, mul: of two tensors of one size; scale: a tensor times one factor a channel.
        softmax, norm (over channels, with scale and shift): `in_size` is the number of rows.
        pool, max_pool: average and largest; over the whole input when the kernel is as large as that.
        resize: bilinear. transpose: [tokens, channels] to [groups, tokens, channels / groups] or back.
        concat: two tensors of half the channels each.
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
        """Multiply-accumulates of a convolution, linear layer or product; additions of the other kinds."""
        if self.kind == "matmul":
            return self.groups * self.pixels * self.in_channels * self.out_channels
        taps = self.kernel[0] * self.kernel[1]
        depth = self.in_channels // self.groups if self.kind in ("conv", "linear") else 1
        return self.pixels * self.out_channels * taps * depth

    @property
    def elements(self) -> int:
        """Values read and written, without weights."""
        heads = self.groups if self.kind == "matmul" else 1
        return heads * (self.in_size[0] * self.in_size[1] * self.in_channels + self.pixels * self.out_channels)

    @property
    def is_global_pool(self) -> bool:
        return self.kind == "pool" and self.kernel == self.in_size


def convolution(inputs: int, outputs: int, kernel: int, stride: int, size: int, *, groups: int = 1) -> Operator:
    """A convolution of square kernel on a square image, padded by half the kernel."""
    out = (size + 2 * (kernel // 2) - kernel) // stride + 1
    return Operator("conv", inputs, outputs, (kernel, kernel), (stride, stride), groups, (size, size), (out, out))


def linear(inputs: int, outputs: int, tokens: int = 1) -> Operator:
    return Operator("linear", inputs, outputs, (1, 1), (1, 1), 1, (tokens, 1), (tokens, 1))


def matmul(heads: int, tokens: int, depth: int, columns: int) -> Operator:
    """[heads, tokens, depth] times [heads, depth, columns]."""
    return Operator("matmul", depth, columns, (1, 1), (1, 1), heads, (tokens, 1), (tokens, 1))


def pointwise(kind: Kind, channels: int, size: tuple[int, int], groups: int = 1) -> Operator:
    """An operator whose output is as large as its input."""
    return Operator(kind, channels, channels, (1, 1), (1, 1), groups, size, size)


def attention(tokens: int, channels: int, heads: int) -> list[Operator]:
    """The operators of multi-head self-attention on [tokens, channels], its four linear layers included."""
    depth, rows = channels // heads, (tokens, 1)
    return [
        *[linear(channels, channels, tokens)] * 3,
        *[pointwise("transpose", channels, rows, heads)] * 3,
        matmul(heads, tokens, depth, tokens),
        pointwise("softmax", tokens, (heads * tokens, 1)),
        matmul(heads, tokens, tokens, depth),
        pointwise("transpose", channels, rows, heads),
        linear(channels, channels, tokens),
    ]
