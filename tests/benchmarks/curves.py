"""Curves as a standalone SVG file: quality over the share of the latency, a line and a marker a method.

`reports.plots` draws the page of one run with the page's own style sheet; a file in a repository brings its colours
along. The colours are those of Okabe and Ito, which colour-blind readers tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from markupsafe import escape

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d1f", "#7f7f7f")
PANEL, HEIGHT, LEGEND = 430, 400, 150
LEFT, TOP, BOTTOM = 52, 48, 46
MARKERS = (
    "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z",
    "M-4 -4h8v8h-8z",
    "M0 -5.5l5 9h-10z",
    "M0 -5.5l5.5 5.5l-5.5 5.5l-5.5 -5.5z",
    "M0 5.5l5 -9h-10z",
)

Curve = Sequence[tuple[float, float]]  # (share of the latency in percent, quality in percent)


@dataclass(frozen=True)
class Panel:
    """One set of axes: a title, the original's quality as a level line, and the curves by the method's name.

    `intervals` are (share, low, high) of points of a curve, by its name; `least` is the quality at the axis's foot.
    """

    title: str
    base: float
    curves: Mapping[str, Curve]
    intervals: Mapping[str, Sequence[tuple[float, float, float]]] = field(default_factory=dict)
    least: int = 0


def draw(panels: Sequence[Panel], metric: str, across: str) -> str:
    """The file's text; panels stand side by side on the same scale and share a legend."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.curves))
    shares = [x for panel in panels for curve in panel.curves.values() for x, _ in curve]
    low, high = 10 * math.floor(min(shares) / 10 - 0.1), 10 * math.ceil(max(shares) / 10 + 0.1)
    width = PANEL * len(panels) + LEGEND
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="12" fill="#222">',
        f'<rect width="{width}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for number, panel in enumerate(panels):
        parts += _axes(panel, number * PANEL, (low, high), metric, across)
        place = partial(_place, number * PANEL, (low, high), panel.least)
        for name, spreads in panel.intervals.items():
            for share, below, above in spreads:
                (x, bottom), (_, top) = place(share, max(below, panel.least)), place(share, above)
                colour = COLOURS[names.index(name) % len(COLOURS)]
                parts.append(f'<path d="M{x:.1f} {top:.1f}V{bottom:.1f}" stroke="{colour}" opacity="0.45"/>')
        for name, curve in panel.curves.items():
            parts += _line([place(*point) for point in curve], names.index(name))
    for row, name in enumerate(names):
        y = TOP + 14 + 22 * row
        parts += [*_line([(width - LEGEND + 8, y), (width - LEGEND + 32, y)], row)]
        parts.append(_text(width - LEGEND + 42, y + 4, name))
    return "\n".join([*parts, "</svg>", ""])


def _place(left: float, shares: tuple[int, int], least: int, share: float, quality: float) -> tuple[float, float]:
    inner = PANEL - LEFT - 14
    x = left + LEFT + inner * (share - shares[0]) / (shares[1] - shares[0])
    return x, HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (quality - least) / (100 - least)


def _axes(panel: Panel, left: float, shares: tuple[int, int], metric: str, across: str) -> list[str]:
    parts = [_text(left + LEFT, TOP - 30, panel.title, weight="bold"), _text(left + LEFT, TOP - 12, f"{metric}, %")]
    place = partial(_place, left, shares, panel.least)
    for share in range(shares[0], shares[1] + 1, 10):
        (x, bottom), (_, top) = place(share, panel.least), place(share, 100)
        parts.append(f'<path d="M{x:.1f} {top:.1f}V{bottom:.1f}" stroke="#e4e4e4"/>')
        parts.append(_text(x, bottom + 17, str(share), "middle"))
    for quality in range(panel.least, 101, (100 - panel.least) // 5):
        (start, y), (end, _) = place(shares[0], quality), place(shares[1], quality)
        parts.append(
            f'<path d="M{start:.1f} {y:.1f}H{end:.1f}" stroke="{"#e4e4e4" if quality > panel.least else "#555"}"/>'
        )
        parts.append(_text(start - 8, y + 4, str(quality), "end"))
    (start, y), (end, _) = place(shares[0], panel.base), place(shares[1], panel.base)
    parts.append(f'<path d="M{start:.1f} {y:.1f}H{end:.1f}" stroke="#555" stroke-dasharray="5 4"/>')
    parts.append(_text(start + 6, y - 6, f"original {panel.base:.1f} %"))
    parts.append(_text((start + end) / 2, HEIGHT - 10, across, "middle"))
    return parts


def _line(points: Sequence[tuple[float, float]], number: int) -> list[str]:
    colour, shape = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    marks = [f'<path d="{shape}" transform="translate({x:.1f} {y:.1f})" fill="{colour}"/>' for x, y in points]
    return [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>', *marks]


def _text(x: float, y: float, text: str, anchor: str = "start", weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">{escape(text)}</text>'
