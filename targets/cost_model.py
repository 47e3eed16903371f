"""The cost of an operator as a small sum of non-negative terms: how kernels tile the work, and what they touch.

A matrix-multiply kernel computes a tile of `rows` pixels by `columns` channels at a time and steps through the input
channels `depth` at a time; a partial tile costs as much as a whole one. That rounding, more than the number of
multiplications, is what makes one width cheap and the next one dear, so the tile is part of what is fitted.

Memory adds terms: weights come once from afar; beyond the first cache every row of tiles fetches them again; and of
activations what a cache cannot hold comes from behind it. Few operators overflow the largest caches, so a byte past a
cache is held to cost no more than memory takes to move it: what is not learned may not run away.

Where a kernel reads several rows of weights side by side, the later ones are cold if they lie past what the prefetcher
has fetched ahead of the first.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from targets.operator import UNARY, Operator

ROWS, COLUMNS, DEPTH = (1, 2, 4, 6, 8, 16), (1, 2, 4, 8, 16), (1, 2, 4)
WIDE, NARROW = 8, 2  # output channels of XNNPACK's two float kernels on ARM64
FLOAT = 4  # bytes
SIDE_BY_SIDE = 4  # rows of weights; a tile of MLAS's matrix kernel on ARM64 (SgemmKernelNeon.S) is as high
ROUNDS, SMALL_ERROR = 5, 0.02  # of reweighting; relative errors below which all count alike
Tile = tuple[int, int, int]
STREAMED = (*UNARY, "add", "mul", "scale", "transpose", "transpose_copy", "transpose_words", "concat", "resize")


@dataclass(frozen=True)
class Memory:
    """What an operator's cost depends on besides the operator."""

    caches: tuple[float, ...]  # bytes of each level, the first first
    reach: float | None  # bytes that the prefetcher runs ahead of a stream; None: unknown


@dataclass(frozen=True)
class ClassModel:
    """Milliseconds of one class of operators: `sum(weight * term)`, all weights non-negative."""

    tile: Tile  # rows (pixels), columns (output channels), depth (input channels)
    weights_ms: tuple[float, ...]
    configurations: int  # fitted

    def milliseconds(self, name: str, operator: Operator, memory: Memory) -> float:
        return _dot(self.weights_ms, terms(name, operator, self.tile, memory))


def classify(operator: Operator, format: str) -> str:
    """The class of operators whose model prices `operator` in a table for `format`.

    XNNPACK (TFLite) has a second matrix kernel, two channels wide and about half as fast for each multiplication. Its
    rules for taking it, in fully-connected-nc.c (which also serves 1x1 convolutions of stride 1) and in
    convolution-nhwc.c, make "narrow" classes of their own: 70 output channels are slower than 72. Its depthwise kernels
    go up to 25 taps; larger ones run as a convolution of as many groups.
    MLAS (ONNX Runtime) lays out patches as a matrix, row by row when the stride is 1 and pixel by pixel when it is not.
    Of a 1x1 convolution on one pixel it reads the weights where they lie, several rows side by side.
    """
    kind = operator.kind
    if kind not in ("conv", "linear"):
        if kind == "transpose" and operator.groups == 1:
            return "transpose_copy"  # of one head: nothing changes places
        if kind == "transpose" and channels_of_a_head(operator) <= 2:
            return "transpose_words"  # moved as words of four or eight bytes, not as blocks
        return "global_pool" if operator.is_global_pool else kind
    strided = "_strided" if format == "onnx" and operator.stride != (1, 1) else ""
    if operator.is_depthwise:
        large = "_large" if operator.kernel[0] * operator.kernel[1] > 25 else ""
        own = {(3, 3): "depthwise3", (5, 5): "depthwise5"}.get(operator.kernel, "depthwise" + large)
        return own if own == "depthwise" else own + strided
    channels = operator.out_channels // operator.groups
    if operator.groups == 1 and operator.kernel == operator.stride == (1, 1):
        if operator.pixels == 1:
            name = "vector" if kind == "linear" else "pixel_rows" if format == "onnx" else "pixel"
        else:
            name = "matrix" if kind == "linear" else "pointwise"
        wasted, wasted_narrow = -channels % WIDE, -channels % NARROW
        narrow = channels < WIDE or (wasted_narrow < wasted and 100 * wasted > channels)
    else:
        name, narrow = ("dense" if operator.groups == 1 else "grouped") + strided, channels < WIDE
    return f"{name}_narrow" if narrow and format == "tflite" else name


def channels_of_a_head(operator: Operator) -> int:
    return operator.out_channels // operator.groups


def terms(name: str, operator: Operator, tile: Tile, memory: Memory) -> tuple[float, ...]:
    """The terms of class `name`, none of which falls when a size or a number of channels grows."""
    rows, columns, depth = tile
    caches = memory.caches
    pixels, channels = operator.out_size[0] * operator.out_size[1], operator.out_channels
    inputs = operator.in_size[0] * operator.in_size[1] * operator.in_channels
    outputs = pixels * channels
    if name in STREAMED:
        held = FLOAT * (inputs + outputs)
        chunks = pixels * operator.groups if name.startswith("transpose") else pixels
        return (outputs, chunks, 1, *(max(0.0, held - cache) for cache in caches))
    taps, lines = operator.kernel[0] * operator.kernel[1], operator.out_size[0]
    if name == "matmul":
        bands, panels = -(-pixels // rows), -(-channels // columns)
        steps, heads = -(-operator.in_channels // depth), operator.groups
        packed = heads * operator.in_channels * channels
        tiles = heads * bands * panels
        return tiles * steps, tiles, packed, heads * inputs, heads * outputs, heads, 1
    lanes = -(-channels // columns)
    held = FLOAT * (inputs + outputs)
    spills = tuple(max(0.0, held - cache) for cache in caches[1:])
    if name == "global_pool":
        return (inputs, taps * lanes, -(-taps // rows) * lanes, lanes, 1, *spills)
    if name in ("pool", "max_pool") or name.startswith("depthwise"):
        swept, row = pixels * lanes, lines * lanes
        read = FLOAT * operator.kernel[0] * operator.in_size[1] * operator.in_channels  # for one line
        again = (lines * max(0.0, read - cache) for cache in caches[:1])
        return (swept * taps, swept, pixels * taps, pixels, row * taps, row, lines, lanes, 1, *again, *spills)
    groups = operator.groups
    bands, panels = -(-pixels // rows), -(-(channels // groups) // columns)
    blocks = groups * bands * panels
    each = operator.in_channels // groups
    steps = -(-each // depth)
    weights = taps * each * channels
    size = FLOAT * weights / groups
    patches = taps * operator.in_channels
    cold = (cold_rows(operator, memory),) if name == "pixel_rows" else ()
    # After the blocks and bands: what a runtime copies that lays out patches as a matrix, by element and image line.
    return (
        blocks * taps * steps,
        blocks * taps,
        blocks,
        groups * bands * taps,
        groups * bands,
        pixels * patches,
        lines * patches,
        outputs,
        inputs,
        1,
        weights,
        *cold,
        *(groups * bands * max(0.0, size - cache) for cache in caches),
        *spills,
    )


def cold_rows(operator: Operator, memory: Memory) -> int:
    """Rows of weights that no prefetch has reached when the product of matrix and vector comes to them.

    From one group of rows to the next the stream of the last row goes on into the first; the row after it lies a row
    further, and so on. The prefetcher has fetched those that begin within its reach.
    """
    if memory.reach is None:
        return 0
    row = FLOAT * operator.in_channels
    cold = sum(further * row > memory.reach for further in range(1, SIDE_BY_SIDE))
    return -(-operator.out_channels // SIDE_BY_SIDE) * cold


def overflows(name: str, memory: Memory) -> int:
    """How many of the class's terms, the last ones, count bytes past a cache."""
    caches = memory.caches
    if name in STREAMED:
        return len(caches)
    if name == "matmul":
        return 0
    spills = len(caches[1:])
    if name == "global_pool":
        return spills
    pooled = name in ("pool", "max_pool") or name.startswith("depthwise")
    return spills + len(caches[:1] if pooled else caches)


def fit(
    name: str, timed: Sequence[tuple[Operator, float]], memory: Memory, bandwidth_gb_s: float | None = None
) -> ClassModel:
    """Fit class `name` to (operator, milliseconds) pairs by the least absolute relative error; no weight is negative.

    Not its square: an operator that the terms cannot tell from others, and is many times cheaper, would draw all of
    them down. The tile is the one with the least error.

    Args:
        bandwidth_gb_s: of memory; bounds what a byte past a cache costs.
    """
    dearest = None if bandwidth_gb_s is None else 1e-6 / bandwidth_gb_s  # milliseconds a byte
    if name in STREAMED:
        tilings = [(1, 1, 1)]
    elif name in ("pool", "max_pool") or name.startswith("depthwise"):
        tilings = [(1, columns, 1) for columns in COLUMNS]
    elif name == "global_pool":
        tilings = [(rows, columns, 1) for rows in range(1, 9) for columns in (*COLUMNS, 32, 64)]
    else:
        tilings = list(itertools.product(ROWS, COLUMNS, DEPTH))
    fits = (_least_error(name, timed, tile, memory, dearest) for tile in tilings)
    _, tile, weights = min(fits, key=lambda found: found[0])
    return ClassModel(tile, weights, len(timed))


def _dot(weights: Sequence[float], values: Sequence[float]) -> float:
    return sum(weight * value for weight, value in zip(weights, values, strict=True))


def _least_error(
    name: str, timed: Sequence[tuple[Operator, float]], tile: Tile, memory: Memory, dearest: float | None
) -> tuple[float, Tile, tuple[float, ...]]:
    """(residual, tile, weights) of one tile."""
    import numpy
    from scipy.optimize import lsq_linear, nnls

    matrix = numpy.array([terms(name, operator, tile, memory) for operator, _ in timed], dtype=float)
    matrix /= numpy.array([ms for _, ms in timed])[:, None]
    scale = matrix.max(axis=0)
    scale[scale == 0] = 1.0  # a cache that nothing overflows
    matrix /= scale
    most = numpy.full(len(scale), numpy.inf)
    if dearest is not None and (bytes_ := overflows(name, memory)):
        most[-bytes_:] = dearest * scale[-bytes_:]
    emphasis = numpy.ones(len(timed))
    for _ in range(ROUNDS):  # least squares, reweighted towards the least absolute error
        rows = matrix * emphasis[:, None]
        weights, _ = nnls(rows, emphasis)
        if (weights > most).any():
            weights = lsq_linear(rows, emphasis, (0, most), method="bvls").x.clip(min=0)
        errors = numpy.abs(matrix @ weights - 1)
        emphasis = 1 / numpy.sqrt(numpy.maximum(errors, SMALL_ERROR))
    return float(errors.mean()), tile, tuple(float(weight) for weight in weights / scale)


def to_json(model: ClassModel) -> dict[str, Any]:
    return {
        "tile": list(model.tile),
        "weights_ms": list(model.weights_ms),
        "configurations": model.configurations,
    }


def from_json(record: dict[str, Any]) -> ClassModel:
    return ClassModel(**{**record, "tile": tuple(record["tile"]), "weights_ms": tuple(record["weights_ms"])})
