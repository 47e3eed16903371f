"""The networks of LayerMerge's tables in words, their stem left out, the segments' latencies of its predecessor, and a
target on which merging pays."""

from __future__ import annotations

from pathlib import Path

from pipeline.compress.layermerge import Chain, Layer, Span
from targets.operator import Operator

MOBILENET_V2_SKIPS = {5: 8, 11: 14, 14: 17, 20: 23, 23: 26, 26: 29, 32: 35, 35: 38, 41: 44, 44: 47}


def resnet34() -> Chain:
    layers, width = [], 64
    for outputs, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            stride = 2 if block == 0 and outputs > 64 else 1
            layers += [Layer(width, outputs, (3, 3), (stride, stride)), Layer(outputs, outputs, (3, 3))]
            width = outputs
    return Chain(tuple(layers), frozenset({0, 7, 15, 27}), {i: i + 2 for i in range(0, 32, 2)})


def resnet50() -> Chain:
    layers, width = [], 64
    for inner, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            stride = 2 if block == 0 and inner > 64 else 1
            layers += [Layer(width, inner), Layer(inner, inner, (3, 3), (stride, stride)), Layer(inner, 4 * inner)]
            width = 4 * inner
    return Chain(tuple(layers), frozenset({0, 11, 23, 41}), {i: i + 3 for i in range(0, 48, 3)})


def mobilenet_v2() -> Chain:
    layers, width = [], 32
    for expand, outputs, blocks, stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for block in range(blocks):
            hidden, step = width * expand, stride if block == 0 else 1
            layers += [] if expand == 1 else [Layer(width, hidden)]
            layers += [Layer(hidden, hidden, (3, 3), (step, step), hidden), Layer(hidden, outputs)]
            width = outputs
    return Chain(tuple(layers), frozenset({0, 5, 11, 20, 41}), MOBILENET_V2_SKIPS)


def published_latencies(network: str) -> tuple[dict[Span, float], dict[Span, tuple[float, tuple[int, ...]]]]:
    """T by segment, and T_opt with its positions where that is less."""
    times, faster, inside = {}, {}, False
    for row in Path(__file__).with_name("kim2023_latencies.txt").read_text().splitlines():
        if not row[0].isdigit():
            inside = row == network
        elif inside:
            start, end, time, *split = row.split()
            times[int(start), int(end)] = float(time)
            if split:
                faster[int(start), int(end)] = (float(split[0]), tuple(map(int, split[1].split(","))))
    return times, faster


class ByWork:
    """Prices like a cost table: 5 us an operator and 1 ns a thousand multiply-accumulates, so depth is what costs."""

    def milliseconds(self, operator: Operator) -> float:
        return 0.005 + operator.macs * 1e-9
