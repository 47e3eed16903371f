"""The cost of an operator as a small sum of non-negative terms: how kernels tile the work, and what they touch.

A matrix-multiply kernel computes a tile of `rows` pixels by `columns` channels at a time and steps through the input
channels `depth` at a time; a partial tile costs as much as a whole one. That rounding, more than the number of
multiplications, is what makes one width cheap and the next one dear, so the tile is part of what is fitted.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from targets.operator import Operator

ROWS, COLUMNS, DEPTH = (1, 2, 4, 6, 8, 16), (1, 2, 4, 8, 16), (1, 2, 4)
WIDE, NARROW = 8, 2  # output channels of XNNPACK's two float kernels on ARM64
Tile = tuple[int, int, int]


@dataclass(frozen=True)
class ClassModel:
    """Milliseconds of one class of operators: `sum(weight * term)`, all weights non-negative."""

    tile: Tile  # rows (pixels), columns (output channels), depth (input channels)
    weights_ms: tuple[float, ...]
    median_error: float  # relative, on configurations the fit has not seen
    p90_error: float
    configurations: int  # fitted and held out together

    def milliseconds(self, name: str, operator: Operator) -> float:
        return _dot(self.weights_ms, terms(name, operator, self.tile))


def classify(operator: Operator, format: str) -> str:
    """The class of operators whose model prices `operator` in a table for `format`.

    XNNPACK (TFLite) has a second matrix kernel, two channels wide and about half as fast for each multiplication. Its
    rules for taking it, in fully-connected-nc.c (which also serves 1x1 convolutions of stride 1) and in
    convolution-nhwc.c, make "narrow" classes of their own: 70 output channels are slower than 72.
    MLAS (ONNX Runtime) lays out patches as a matrix, row by row when the stride is 1 and pixel by pixel when it is not.
    """
    if operator.kind == "pool":
        return "global_pool" if operator.is_global_pool else "pool"
    if operator.kind == "elementwise":
        return "elementwise"
    strided = "_strided" if format == "onnx" and operator.stride != (1, 1) else ""
    if operator.is_depthwise:
        return {(3, 3): "depthwise3", (5, 5): "depthwise5"}.get(operator.kernel, "depthwise") + strided
    channels = operator.out_channels // operator.groups
    if operator.groups == 1 and operator.kernel == operator.stride == (1, 1):
        name = "pointwise" if operator.kind == "conv" else "vector" if operator.pixels == 1 else "matrix"
        wasted, wasted_narrow = -channels % WIDE, -channels % NARROW
        narrow = channels < WIDE or (wasted_narrow < wasted and 100 * wasted > channels)
    else:
        name, narrow = "dense" + strided, channels < WIDE
    return f"{name}_narrow" if narrow and format == "tflite" else name


def terms(name: str, operator: Operator, tile: Tile) -> tuple[float, ...]:
    """The terms of class `name`, none of which falls when a size or a number of channels grows."""
    rows, columns, depth = tile
    taps, pixels = operator.kernel[0] * operator.kernel[1], operator.pixels
    inputs = operator.in_size[0] * operator.in_size[1] * operator.in_channels
    outputs = pixels * operator.out_channels
    lanes = _tiles(operator.out_channels, columns)
    if name == "elementwise":
        return inputs, 1
    if name == "global_pool":
        return inputs, taps * lanes, _tiles(taps, rows) * lanes, lanes, 1
    if name == "pool" or name.startswith("depthwise"):
        lines = operator.out_size[0] * lanes
        return (
            pixels * lanes * taps,
            pixels * lanes,
            pixels * taps,
            pixels,
            lines * taps,
            lines,
            operator.out_size[0],
            lanes,
            1,
        )
    bands = _tiles(pixels, rows)
    blocks = operator.groups * bands * _tiles(operator.out_channels // operator.groups, columns)
    steps = _tiles(operator.in_channels // operator.groups, depth)
    # The second line: what a runtime copies that lays out patches as a matrix, by element and by image line.
    return (
        blocks * taps * steps,
        blocks * taps,
        blocks,
        operator.groups * bands * taps,
        operator.groups * bands,
        pixels * taps * operator.in_channels,
        operator.out_size[0] * taps * operator.in_channels,
        outputs,
        inputs,
        1,
    )


def _tiles(size: int, tile: int) -> int:
    return -(-size // tile)


def fit(name: str, timed: Sequence[tuple[Operator, float]]) -> tuple[ClassModel, list[float]]:
    """Fit class `name` to (operator, milliseconds) pairs by non-negative least squares of the relative error.

    Every fifth pair is held out; returns the model and its relative errors on those. The tile is the one with the least
    error on the others.
    """
    held = timed[::5]
    seen = [pair for index, pair in enumerate(timed) if index % 5]
    if name == "elementwise":
        tilings = [(1, 1, 1)]
    elif name == "pool" or name.startswith("depthwise"):
        tilings = [(1, columns, 1) for columns in COLUMNS]
    elif name == "global_pool":
        tilings = [(rows, columns, 1) for rows in range(1, 9) for columns in (*COLUMNS, 32, 64)]
    else:
        tilings = list(itertools.product(ROWS, COLUMNS, DEPTH))
    _, tile, weights = min((_least_squares(name, seen, tile) for tile in tilings), key=lambda found: found[0])
    errors = sorted(abs(_dot(weights, terms(name, operator, tile)) / ms - 1) for operator, ms in held)
    p90 = errors[int(0.9 * (len(errors) - 1))]
    return ClassModel(tile, weights, statistics.median(errors), p90, len(timed)), errors


def _dot(weights: Sequence[float], values: Sequence[float]) -> float:
    return sum(weight * value for weight, value in zip(weights, values, strict=True))


def _least_squares(
    name: str, timed: Sequence[tuple[Operator, float]], tile: Tile
) -> tuple[float, Tile, tuple[float, ...]]:
    """(residual, tile, weights) of one tile."""
    import numpy
    from scipy.optimize import nnls

    matrix = numpy.array([terms(name, operator, tile) for operator, _ in timed], dtype=float)
    matrix /= numpy.array([ms for _, ms in timed])[:, None]
    scale = matrix.max(axis=0)
    weights, residual = nnls(matrix / scale, numpy.ones(len(timed)))
    return float(residual), tile, tuple(float(weight) for weight in weights / scale)


def to_json(model: ClassModel) -> dict[str, Any]:
    return {
        "tile": list(model.tile),
        "weights_ms": list(model.weights_ms),
        "median_error": model.median_error,
        "p90_error": model.p90_error,
        "configurations": model.configurations,
    }


def from_json(record: dict[str, Any]) -> ClassModel:
    return ClassModel(**{**record, "tile": tuple(record["tile"]), "weights_ms": tuple(record["weights_ms"])})
