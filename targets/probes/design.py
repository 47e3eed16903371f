"""Which operators are timed to learn a cost table: random chains of them, seeded, over the sizes mobile networks use.

An operator of a network finds its input where its producer left it, and its weights as far away as everything that ran
since has pushed them. So operators are timed in chains, and many chains make one artifact.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from targets.operator import Kind, Operator, convolution, linear, matmul, pointwise

CHANNELS = (8, 12, 16, 20, 24, 32, 40, 48, 64, 72, 80, 96, 112, 128, 160, 192, 240, 256, 320, 384, 512, 576, 960, 1280)
NARROW = (4, 6, 10, 12, 18, 20, 36, 44, 50, 60, 68, 84, 100, 138, 154, 210, 275, 297)  # no whole tiles of eight
SIZES = (7, 8, 14, 16, 28, 32, 56, 112)
TOKENS = (4, 16, 49, 50, 64, 128, 196, 197)
MOST_OUTPUTS = 800_000
ARTIFACTS, CHAINS = 14, 22  # chains in an artifact
SEED, UNSEEN_SEED = 20, 1999
UNSEEN = 270  # operators that the error is read on
Chain = tuple[Operator, ...]

KERNELS = (3, 3, 3, 3, 3, 2, 5, 5, 7, 9, 11)
IMAGE_STEPS: dict[str, float] = {
    "pointwise": 24,
    "depthwise": 24,
    "dense": 22,
    "dense_narrow": 2,
    "grouped": 4,
    "add": 4,
    "clamp": 3,
    "mul": 3,
    "scale": 4,
    "hardswish": 4,
    "silu": 3,
    "gelu": 2,
    "sigmoid": 3,
    "pool": 5,
    "max_pool": 5,
    "resize": 4,
    "concat": 4,
}
TOKEN_STEPS: dict[str, float] = {"linear": 26, "gelu": 4, "add": 4, "norm": 6, "softmax": 2, "attention": 12}


@dataclass(frozen=True)
class Budget:
    """Of multiply-accumulates of one operator: most are cheap, for they are what many configurations cost little by."""

    usual: int = 8_000_000
    seldom: int = 40_000_000
    share: float = 0.06


def artifacts() -> list[list[Chain]]:
    """The chains of each artifact that a table is learned from; always the same."""
    rng = random.Random(SEED)
    return [[_chain(rng) for _ in range(CHAINS)] for _ in range(ARTIFACTS)]


def unseen_artifacts() -> list[list[Chain]]:
    """Chains of other operators, at least `UNSEEN`, on which the finished table's error is read."""
    learned = {operator for chains in artifacts() for chain in chains for operator in chain[1:]}
    rng = random.Random(UNSEEN_SEED)
    found: list[list[Chain]] = [[]]
    seen: set[Operator] = set()
    while len(seen) < UNSEEN:
        if len(found[-1]) == CHAINS:
            found.append([])
        found[-1].append(_chain(rng))
        seen |= set(found[-1][-1][1:]) - learned
    return found


def _chain(rng: random.Random) -> Chain:
    """Each operator's input is its predecessor's output. The first one is not timed: its input has no producer."""
    draw = _Draw(rng)
    family = rng.random()
    if family < 0.62:
        return draw.image()
    return draw.tokens(1) if family < 0.74 else draw.tokens(rng.choice(TOKENS))


class _Draw:
    def __init__(self, rng: random.Random, budget: Budget = Budget()) -> None:
        self.rng, self.budget = rng, budget

    def channels(self) -> int:
        chance = self.rng.random()
        if chance < 0.68:
            return self.rng.choice(CHANNELS)
        return self.rng.choice(NARROW) if chance < 0.82 else self.rng.randint(1, 512)

    def image(self) -> Chain:
        """A stem or a wide input, then steps; it often ends in a global pool."""
        rng = self.rng
        if rng.random() < 0.3:
            size = rng.choice((28, 32, 64, 96, 128, 224))
            first = self.affordable(
                lambda: convolution(
                    rng.choice((1, 3)), rng.choice(CHANNELS[:9]), rng.choice((3, 5, 7)), rng.choice((1, 2)), size
                )
            )
            # The stem is timed, so something stands before it.
            lift = pointwise("mul", first.in_channels, first.in_size)
            chain = [lift, first]
        else:
            size = rng.choice(SIZES)
            chain = [self.affordable(lambda: pointwise("mul", rng.choice(CHANNELS[:18]), (size, size)))]
        for _ in range(rng.randint(5, 9)):
            chain += self.image_step(chain[-1])
        last = chain[-1]
        if rng.random() < 0.6 and last.out_size[0] > 1:
            channels, size = last.out_channels, last.out_size
            chain.append(Operator("pool", channels, channels, size, (1, 1), 1, size, (1, 1)))
            for _ in range(rng.randint(0, 2)):  # convolutions of one pixel, as in squeeze and excitation
                chain.append(convolution(chain[-1].out_channels, self.channels(), 1, 1, 1))
        return tuple(chain)

    def image_step(self, last: Operator) -> list[Operator]:
        rng, channels, side = self.rng, last.out_channels, last.out_size[0]
        step = rng.choices(list(IMAGE_STEPS), list(IMAGE_STEPS.values()))[0]
        if step in ("add", "mul", "concat", "clamp"):
            # Of a value just made and the one before it, as around a residual block; a ReLU by itself follows a sum.
            depthwise = side * side * channels * channels > self.budget.usual or rng.random() < 0.5
            groups = channels if depthwise else 1
            between = convolution(channels, channels, 3 if depthwise else 1, 1, side, groups=groups)
            if step == "clamp":
                return [between, pointwise("add", channels, last.out_size), pointwise("clamp", channels, last.out_size)]
            wide = channels * (2 if step == "concat" else 1)
            return [between, pointwise(step, wide, last.out_size)] if wide <= 1024 else [between]
        return [self.affordable(lambda: self.one(step if rng.random() < 0.9 else "pointwise", channels, side))]

    def one(self, step: str, channels: int, side: int) -> Operator:
        rng, size = self.rng, (side, side)
        stride = 2 if side >= 8 and rng.random() < 0.25 else 1
        kernel = rng.choice(KERNELS if side > 3 else KERNELS[:6])
        if step == "dense":
            return convolution(channels, self.channels(), kernel, stride, side)
        if step == "dense_narrow":
            return convolution(channels, rng.randint(1, 7), kernel, stride, side)
        if step == "depthwise" and channels > 1:
            return convolution(channels, channels, kernel, stride, side, groups=channels)
        if step == "grouped" and channels % 4 == 0:
            groups = rng.choice((2, 4))
            outputs = max(groups, self.channels() // groups * groups)
            return convolution(channels, outputs, rng.choice((1, 3)), stride, side, groups=groups)
        if step in ("pool", "max_pool") and side >= 6:
            return self.pool(step, channels, side, rng.choice((2, 3)), 2)
        if step == "resize" and 2 <= side <= 32:
            return Operator("resize", channels, channels, (1, 1), (1, 1), 1, size, (2 * side, 2 * side))
        if step in ("scale", "hardswish", "silu", "gelu", "sigmoid"):
            return pointwise(step, channels, size)
        return convolution(channels, self.channels(), 1, stride if rng.random() < 0.3 else 1, side)

    @staticmethod
    def pool(kind: Kind, channels: int, side: int, kernel: int, stride: int) -> Operator:
        out = (side - kernel) // stride + 1
        return Operator(kind, channels, channels, (kernel, kernel), (stride, stride), 1, (side, side), (out, out))

    def tokens(self, tokens: int) -> Chain:
        """Layers on [tokens, channels], among them attention; with one token, of a classifier's head."""
        rng = self.rng
        first = rng.choice((32, 64, 96, 128, 192, 256))
        chain = [self.affordable(lambda: linear(first, self.channels(), tokens))]
        steps = {"linear": 1.0} if tokens == 1 else TOKEN_STEPS
        for _ in range(rng.randint(5, 9)):
            channels, rows = chain[-1].out_channels, (tokens, 1)
            step = rng.choices(list(steps), list(steps.values()))[0]
            heads = rng.choice((1, 2, 3, 4, 6, 8))
            if step == "attention" and channels % heads == 0 and heads * tokens * tokens * channels <= 12_000_000:
                chain += [
                    pointwise("transpose", channels, rows, heads),
                    matmul(heads, tokens, channels // heads, tokens),
                    pointwise("softmax", tokens, (heads * tokens, 1)),
                    matmul(heads, tokens, tokens, channels // heads),
                    pointwise("transpose", channels, rows, heads),
                ]
            elif step in ("linear", "attention"):
                chain.append(self.affordable(partial(self.any_linear, channels, tokens)))
            elif step == "add":
                chain += [pointwise("gelu", channels, rows), pointwise("add", channels, rows)]
            else:
                chain.append(pointwise(step, channels, rows))
        return tuple(chain)

    def any_linear(self, channels: int, tokens: int) -> Operator:
        return linear(channels, self.channels(), tokens)

    def affordable(self, draw: Callable[[], Operator]) -> Operator:
        """The first drawn operator that is cheap enough to emulate."""
        most = self.budget.seldom if self.rng.random() < self.budget.share else self.budget.usual
        while True:
            operator = draw()
            if operator.macs <= most and operator.pixels * operator.out_channels <= MOST_OUTPUTS:
                return operator
