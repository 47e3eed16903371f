"""How the delegate cuts a kernel's work: outputs a thread computes, threads of a work group, number of groups.

A thread computes a block of width x height pixels times `depth` slices; partial blocks, groups and waves cost as much
as whole ones. That, more than the number of multiplications, makes one width cheap and the next one dear: 76 slices
on a map of 14 x 14 cost half again as much as 72 on an Adreno, since 38 slices of blocks leave no room in a group of
256 threads for a row of 7.

The rules are those of tensorflow v2.10, lite/delegates/gpu/common: tasks/conv_generic.cc (blocks),
task/work_group_picking.cc (groups, the fast tuning that is its default), gpu_info.cc (units).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

from targets.gpu.kernel import WINOGRAD_TILE, Kernel
from targets.profile import Architecture

GROUP = 256  # threads, at most
WAVE = 64  # threads of an Adreno that go together
QUAD = 8  # of a Mali
SIMD = 32  # of PowerVR and Apple
FULL_WAVE = 128  # by which the delegate counts an Adreno's waves in half precision


@dataclass(frozen=True)
class Unit:
    """What the delegate knows of a GPU."""

    architecture: Architecture
    units: int  # compute units as the delegate counts them

    @property
    def vendor(self) -> str:
        return self.architecture.partition("-")[0]


@dataclass(frozen=True)
class Work:
    """A kernel as it is dispatched."""

    block: tuple[int, int, int]  # width, height, slices a thread computes
    groups: int
    threads: int  # of one group, rounded up to whole waves

    @property
    def total(self) -> int:
        return self.groups * self.threads

    @property
    def outputs(self) -> int:
        """Slices of pixels a thread computes."""
        return self.block[0] * self.block[1] * self.block[2]


@lru_cache(maxsize=4)  # terms and correction ask one after the other
def convolution_work(unit: Unit, kernel: Kernel) -> Work:
    """Work of a convolution kernel; of a Winograd convolution the products in the middle."""
    if kernel.choice == "winograd":
        tiles = -(-kernel.out_size[0] // WINOGRAD_TILE) * -(-kernel.out_size[1] // WINOGRAD_TILE)
        height, width = 36, tiles
    else:
        height, width = kernel.out_size
    depth = kernel.out_slices
    simple = kernel.choice == "winograd" or (kernel.taps == (1, 1) and kernel.stride == 1)
    block = _block(unit, width, height, depth, simple)
    if kernel.choice == "winograd" or height == 1:  # each row of the 36 has weights of its own; tokens are one row
        block = (block[0] * block[1], 1, block[2])
    grid = (_up(width, block[0]), _up(height, block[1]), _up(depth, block[2]))
    groups, threads = _groups(unit, *grid)
    return Work(block, groups, threads)


def depthwise_work(unit: Unit, kernel: Kernel) -> Work:
    """Work of a depthwise convolution: 3x3 of stride 1 computes 2 x 2 pixels a thread, on Apple 1 x 2 of stride 2."""
    height, width = kernel.out_size
    block = (1, 1, 1)
    if kernel.taps == (3, 3) and kernel.stride == 1:
        block = (2, 2, 1)
    elif kernel.taps == (3, 3) and kernel.stride == 2 and unit.vendor == "apple":
        block = (1, 2, 1)
    groups, threads = _plain_groups(_up(width, block[0]), _up(height, block[1]), kernel.out_slices)
    return Work(block, groups, _whole(unit, threads))


def _up(amount: int, step: int) -> int:
    return -(-amount // step)


def _block(unit: Unit, width: int, height: int, depth: int, simple: bool) -> tuple[int, int, int]:
    """Width, height and slices of a thread; `simple`: a window of one pixel and stride 1."""
    if unit.vendor == "adreno":
        waves = width * height * depth / unit.units / FULL_WAVE
        return (1, 1, 1) if waves <= 6 else (2, 1, 1) if waves <= 12 else (2, 1, 2) if waves <= 24 else (2, 2, 2)
    if unit.vendor == "mali":
        return _mali_block(unit, width, height, depth, simple)
    if unit.vendor == "powervr":
        return (2, 1, 4 if depth % 4 == 0 or depth >= 8 else 2 if depth % 2 == 0 or depth >= 4 else depth)
    return _apple_block(unit, width, height, depth)


def _mali_block(unit: Unit, width: int, height: int, depth: int, simple: bool) -> tuple[int, int, int]:
    share = width * height * depth / unit.units
    size = 1 if share <= 256 else 2 if share <= 256 * 6 else 4 if share <= 256 * 16 else 8
    if not simple and unit.architecture == "mali-bifrost":
        size = min(size, 4)
    if size < 4:
        block = (size, 1, 1)
    elif depth in (1, 3):
        block = (2, 2, 1)
    else:
        block = (2, 1 if size == 4 else 2, 2)
    return (1, block[0] * block[1], block[2]) if width == 1 else block


def _apple_block(unit: Unit, width: int, height: int, depth: int) -> tuple[int, int, int]:
    waves = _up(width * height * depth, SIMD)
    size = next((size for size in (8, 4, 2) if waves >= unit.units * 8 * size), 1)
    across, down, slices = 1, 1, 1
    if size >= 2 and unit.architecture == "apple-a11":
        across, down = (2, 1) if height % 2 and width % 2 == 0 else (1, 2)
        size //= 2
    if size >= 4 and (depth % 4 == 0 or depth >= 16):
        slices, size = 4, size // 4
    elif size >= 2 and (depth % 2 == 0 or depth >= 4):
        slices, size = 2, size // 2
    return across, down, 3 if size >= 4 and depth == 3 else slices


def _groups(unit: Unit, across: int, down: int, deep: int) -> tuple[int, int]:
    """(groups, threads of one) of a convolution over a grid of threads."""
    if unit.vendor in ("adreno", "mali"):
        layers = _divisor(deep, 64 if unit.vendor == "adreno" else 16)
        plane = GROUP // layers
        wide = min(across, plane)
        high = min(plane // wide, down)
        if high == down and down % 2 == 0:
            high = down // 2
        count = _up(across, wide) * _up(down, high) * (deep // layers)
        return count, _whole(unit, wide * high * layers)
    row = _up(across * down, SIMD) * deep
    if unit.vendor == "powervr":
        return row, SIMD
    count = min(_up(across, 8) * _up(down, 4) * deep, row)
    every = _up(across * down * deep, SIMD)
    tolerated = 1.0 if unit.architecture == "apple-a11" else 1.04
    return every if row / every > tolerated else count, SIMD


def _plain_groups(across: int, down: int, deep: int) -> tuple[int, int]:
    layers = next((size for size in (8, 4, 2) if deep % size == 0), None) or _divisor(deep, 8)
    plane = GROUP // layers
    wide = min(_up(across, 2), plane)
    high = min(plane // wide, down)
    return _up(across, wide) * _up(down, high) * (deep // layers), wide * high * layers


def _whole(unit: Unit, threads: int) -> int:
    wave = {"adreno": WAVE, "mali": QUAD}.get(unit.vendor, SIMD)
    return _up(threads, wave) * wave


@cache
def _divisor(number: int, most: int) -> int:
    return next(size for size in range(min(number, most), 0, -1) if number % size == 0)
