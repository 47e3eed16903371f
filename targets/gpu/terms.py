"""A kernel's microseconds as a sum of non-negative terms: what its threads do, and what they move.

Each term has a resource by which it is carried over to a GPU nobody measured: `compute` goes with lanes times clock,
`latency` with the clock, `memory` with bandwidth; `fixed` (the launch, and what the driver does) stays as it is.

A step is one slice of input channels at one tap: a thread reads the block's pixels and four vectors of weights for each
slice of the block's depth, and multiplies. Groups come to the units in turns, so a count of groups that does not
divide leaves units idle; which number of groups a unit holds at once is not published, and several stand beside one
another for the fit to choose from.
"""

from __future__ import annotations

import math
from typing import Literal

from targets.gpu.dispatch import FULL_WAVE, Unit, Work, convolution_work, depthwise_work
from targets.gpu.kernel import WINOGRAD_TILE, Kernel, slices

Resource = Literal["fixed", "compute", "latency", "memory"]

HELD = (1, 2, 4, 8)  # groups that a unit may hold at once
CACHED_BYTES = 2e6  # about the last cache of the GPUs measured
WEIGHT_BYTES = 32  # of four by four channels
SLICE_PRODUCTS = 4  # vector multiplications of one slice by one slice
WAVES = {"adreno": FULL_WAVE, "mali": 8, "powervr": 32, "apple": 32}  # outputs a unit has in flight, for small maps

CONVOLUTION: dict[str, Resource] = {
    "launch": "fixed",
    "products": "compute",
    "pixels read": "compute",
    "weights read": "compute",
    "steps": "compute",
    "outputs": "compute",
    "outputs added to": "memory",
    "weights": "memory",
    "activations": "memory",
    "products of one thread": "latency",
    "steps of one thread": "latency",
    "strided pixels read": "compute",
    "steps of few channels": "compute",
    "outputs multiplied": "memory",
    "outputs curved": "compute",
    "activations past the cache": "memory",
    "taps of groups": "compute",
    **{f"{what} by {held} groups a unit": "compute" for held in HELD for what in ("products", "steps")},
}
TERMS: dict[str, dict[str, Resource]] = {
    "pointwise": CONVOLUTION,
    "conv": CONVOLUTION,
    "constant": {
        "launch": "fixed",
        "products": "compute",
        "pixels read": "compute",
        "outputs": "compute",
        "outputs added to": "memory",
    },
    "winograd": {
        "launch": "fixed",
        "products": "compute",
        "pixels read": "compute",
        "weights read": "compute",
        "steps": "compute",
        "outputs": "compute",
        "tiles in": "memory",
        "tiles out": "memory",
        "weights": "memory",
        "outputs added to": "memory",
    },
    "dense": {
        "launch": "fixed",
        "weights": "memory",
        "inputs": "memory",
        "groups": "compute",
        "rows of a group": "compute",
        "rows of a unit": "compute",
        "outputs": "memory",
    },
    "depthwise": {
        "launch": "fixed",
        "activations": "memory",
        "outputs curved": "compute",
        "outputs added to": "memory",
        "weights": "memory",
        "activations past the cache": "memory",
        "threads of four": "compute",
        "outputs of four": "compute",
        "waves of four": "compute",
        "threads of two": "compute",
        "outputs of two": "compute",
        "waves of two": "compute",
        "threads": "compute",
        "products": "compute",
        "products of waves": "compute",
        "strided products": "compute",
    },
    "separable": {"launch": "fixed", "products": "compute", "activations": "memory"},
    "mean": {
        "launch": "fixed",
        "inputs": "memory",
        "pixels": "compute",
        "outputs": "compute",
        "outputs of waves": "compute",
        "waves": "compute",
    },
    "pool": {
        "launch": "fixed",
        "outputs": "compute",
        "products": "compute",
        "activations": "memory",
        "inputs": "memory",
    },
    "concat": {
        "launch": "fixed",
        "outputs": "memory",
        "outputs across slices": "compute",
        "layers": "compute",
        "layers of waves": "compute",
        "inputs": "fixed",
        "outputs changed": "compute",
        "pixels": "compute",
        "outputs of more inputs": "memory",
    },
}


def terms(unit: Unit, kernel: Kernel) -> tuple[float, ...]:
    """The values of `TERMS[kernel.choice]`, in its order."""
    return _BY_CHOICE[kernel.choice](unit, kernel)


def _convolution(unit: Unit, kernel: Kernel) -> tuple[float, ...]:
    work = convolution_work(unit, kernel)
    across, down, _ = work.block
    steps = kernel.in_slices * kernel.window
    through, outputs = work.total * steps, work.outputs
    written = kernel.pixels * kernel.out_slices
    moved = kernel.bytes
    turns = [_turns(unit, work, held) * steps for held in HELD]
    return (
        1.0,
        through * outputs,
        through * across * down,
        through * work.block[2],
        through,
        work.total * outputs,
        work.total * outputs * kernel.adds,
        kernel.window * slices(kernel.in_channels) * kernel.out_slices * WEIGHT_BYTES / kernel.groups,
        moved,
        steps * outputs,
        steps,
        through * across * down * (kernel.stride - 1),
        through if kernel.in_channels < 4 else 0,
        kernel.muls * written,
        kernel.curves * written,
        moved if moved > CACHED_BYTES else 0,
        work.total * kernel.window if kernel.groups > 1 else 0,
        *(value for turn in turns for value in (turn * outputs, turn)),
    )


def _turns(unit: Unit, work: Work, held: int) -> int:
    """Threads, as if every unit were busy until the last has finished."""
    return -(-work.groups // (unit.units * held)) * unit.units * held * work.threads


def _constant(unit: Unit, kernel: Kernel) -> tuple[float, ...]:
    written = kernel.pixels * kernel.out_slices
    read = kernel.pixels * kernel.window
    return (1.0, read * kernel.in_channels * kernel.out_slices, read * kernel.in_slices, written, written * kernel.adds)


def _winograd(unit: Unit, kernel: Kernel) -> tuple[float, ...]:
    tiles = -(-kernel.out_size[0] // WINOGRAD_TILE) * -(-kernel.out_size[1] // WINOGRAD_TILE)
    work = convolution_work(unit, kernel)
    through = work.total * kernel.in_slices
    return (
        1.0,
        through * work.outputs,
        through * work.block[0],
        through * work.block[2],
        through,
        work.total * work.outputs,
        36 * tiles * kernel.in_slices,
        36 * tiles * kernel.out_slices,
        36 * kernel.in_slices * kernel.out_slices,
        kernel.adds * kernel.pixels * kernel.out_slices,
    )


def _dense(unit: Unit, kernel: Kernel) -> tuple[float, ...]:
    depth, out = kernel.in_slices, kernel.out_slices
    groups = -(-out // 32)
    return (1.0, depth * out, depth, groups, depth * groups, depth * -(-out // (32 * unit.units)), out)


def _depthwise(unit: Unit, kernel: Kernel) -> tuple[float, ...]:
    work = depthwise_work(unit, kernel)
    written, window, moved = kernel.pixels * kernel.out_slices, kernel.window, kernel.bytes
    waves = math.ceil(work.total / (unit.units * FULL_WAVE))
    block = work.block[0] * work.block[1]
    return (
        1.0,
        moved,
        written * kernel.curves,
        written * kernel.adds,
        kernel.out_slices * window,
        moved if moved > CACHED_BYTES else 0,
        *((work.total, written, waves) if block == 4 else (0, 0, 0)),
        *((work.total, written, waves) if block == 2 else (0, 0, 0)),
        *(
            (work.total, work.total * window, waves * window, work.total * window * (kernel.stride - 1))
            if block == 1
            else (0, 0, 0, 0)
        ),
    )


def _separable(unit: Unit, kernel: Kernel) -> tuple[float, ...]:
    depth = slices(kernel.in_channels)
    return 1.0, kernel.pixels * depth * (kernel.window + SLICE_PRODUCTS * kernel.out_slices), kernel.bytes


def _mean(unit: Unit, kernel: Kernel) -> tuple[float, ...]:
    read, depth = kernel.in_size[0] * kernel.in_size[1], slices(kernel.in_channels)
    waves = -(-read // 64)
    return 1.0, read * depth, read, depth, waves * depth, waves


def _pool(unit: Unit, kernel: Kernel) -> tuple[float, ...]:
    written = kernel.pixels * kernel.out_slices
    read = kernel.in_size[0] * kernel.in_size[1] * slices(kernel.in_channels)
    return 1.0, written, written * kernel.window, kernel.bytes, read


def _concat(unit: Unit, kernel: Kernel) -> tuple[float, ...]:
    written, depth = kernel.pixels * kernel.out_slices, kernel.out_slices
    waves = math.ceil(kernel.pixels / (unit.units * WAVES[unit.vendor]))
    return (
        1.0,
        written,
        written if kernel.in_channels % 4 else 0,
        depth,
        depth * waves,
        kernel.inputs,
        written * (kernel.adds + kernel.muls + kernel.curves),
        kernel.pixels,
        written if kernel.inputs > 2 else 0,
    )


_BY_CHOICE = {
    "pointwise": _convolution,
    "conv": _convolution,
    "constant": _constant,
    "winograd": _winograd,
    "dense": _dense,
    "depthwise": _depthwise,
    "separable": _separable,
    "mean": _mean,
    "pool": _pool,
    "concat": _concat,
}
