"""Which single operators are timed to learn a cost table: a seeded random design over the sizes mobile networks use."""

from __future__ import annotations

import random
from collections.abc import Callable

from targets.operator import Operator

CHANNELS = (8, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512)
TOKENS = (4, 16, 49, 50, 64, 196, 197)
SIZES = (7, 8, 14, 16, 28, 32, 56, 112)
MOST_MACS = 100_000_000  # keeps an emulated probe to a few seconds
MOST_ELEMENTS = 1_000_000
SEED = 20


def probes() -> list[Operator]:
    """The operators to time; always the same ones in the same order."""
    rng = random.Random(SEED)

    def channels() -> int:
        return rng.choice(CHANNELS) if rng.random() < 0.75 else rng.randint(4, 512)

    def conv(kernel: int, stride: int, groups: str = "one", outputs: int = 0) -> Operator:
        size, inputs, outputs = rng.choice(SIZES), channels(), outputs or channels()
        if groups == "each":
            outputs = inputs
        count = {"one": 1, "each": inputs, "some": rng.choice((2, 4))}[groups]
        if groups == "some":
            inputs, outputs = (max(8, value // count * count) for value in (inputs, outputs))
        return convolution(inputs, outputs, kernel, stride, size, groups=count)

    def stem() -> Operator:
        return convolution(
            rng.choice((1, 3)),
            rng.choice(CHANNELS[:10]),
            rng.choice((3, 5, 7)),
            rng.choice((1, 2)),
            rng.choice((28, 32, 64, 96, 128, 224)),
        )

    def linear(tokens: int, outputs: int = 0) -> Operator:
        return Operator("linear", channels(), outputs or channels(), (1, 1), (1, 1), 1, (tokens, 1), (tokens, 1))

    def pool() -> Operator:
        width, size, kernel = channels(), rng.choice(SIZES), rng.choice((2, 3))
        out = (size - kernel) // 2 + 1
        return Operator("pool", width, width, (kernel, kernel), (2, 2), 1, (size, size), (out, out))

    def wide(kind: str, size: int) -> Operator:
        width = channels()
        kernel, out = ((1, 1), size) if kind == "elementwise" else ((size, size), 1)
        return Operator(kind, width, width, kernel, (1, 1), 1, (size, size), (out, out))

    def some(count: int, draw: Callable[[], Operator]) -> list[Operator]:
        drawn: dict[Operator, None] = {}
        while len(drawn) < count:
            operator = draw()
            elements = (
                operator.in_size[0] * operator.in_size[1] * operator.in_channels
                + operator.pixels * operator.out_channels
            )
            if operator.macs <= MOST_MACS and elements <= MOST_ELEMENTS:
                drawn[operator] = None
        return list(drawn)

    narrow = (4, 6, 10, 12, 18, 20, 36, 44, 50, 60, 68, 84, 100, 138, 154, 210, 275, 297)
    drawn = (
        some(60, lambda: conv(1, 1))
        + some(32, lambda: conv(1, 1, outputs=rng.choice(narrow)))
        + some(60, lambda: conv(3, rng.choice((1, 1, 2))))
        + some(16, lambda: conv(1, 2))
        + some(20, lambda: conv(5, rng.choice((1, 2))))
        + some(16, lambda: conv(7, rng.choice((1, 2))))
        + some(16, stem)
        + some(12, lambda: conv(rng.choice((1, 3)), rng.choice((1, 2)), "some"))
        + some(28, lambda: conv(rng.choice((1, 3, 5)), rng.choice((1, 2)), outputs=rng.randint(1, 7)))
        + some(48, lambda: conv(3, rng.choice((1, 2)), "each"))
        + some(40, lambda: conv(5, rng.choice((1, 2)), "each"))
        + some(36, lambda: conv(7, rng.choice((1, 2)), "each"))
        + some(40, lambda: linear(1))
        + some(28, lambda: linear(1, rng.choice(narrow)))
        + some(28, lambda: linear(rng.choice(TOKENS)))
        + some(28, lambda: linear(rng.choice(TOKENS), rng.choice(narrow)))
        + some(24, lambda: wide("elementwise", rng.choice(SIZES)))
        + some(24, pool)
        + some(32, lambda: wide("pool", rng.choice(SIZES[:6])))
    )
    return list(dict.fromkeys(drawn))


def convolution(inputs: int, outputs: int, kernel: int, stride: int, size: int, *, groups: int = 1) -> Operator:
    """A convolution of square kernel on a square image, padded by half the kernel."""
    out = (size + 2 * (kernel // 2) - kernel) // stride + 1
    return Operator("conv", inputs, outputs, (kernel, kernel), (stride, stride), groups, (size, size), (out, out))
