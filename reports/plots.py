"""The latency-quality plot, drawn as inline SVG: no library, no script, colours left to the page's style sheet.

Markers differ by shape as well as by colour, so that the plot reads in grey and for colour-blind readers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

from reports.quantities import milliseconds, quality

_FONT_PX = 12.0
_MARGIN_LEFT, _MARGIN_RIGHT, _MARGIN_TOP, _MARGIN_BOTTOM = 58.0, 16.0, 26.0, 46.0
_MARKER_PX = 5.5


@dataclass(frozen=True)
class Point:
    """One measured candidate: `x` in ms, `y` its quality, each with its interval; `link` is a fragment of the page.

    `front`: none of the others is both faster and better.
    """

    label: str
    x_ms: float
    low_ms: float
    high_ms: float
    y: float
    y_low: float
    y_high: float
    outcome: str
    chosen: bool = False
    front: bool = False
    link: str = ""


@dataclass(frozen=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: _Box) -> float:
        """Shared area, in square pixels."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return width * height if width > 0 and height > 0 else 0.0


@dataclass(frozen=True)
class _Axis:
    """Maps values of `low`..`high` to pixels `start`..`end` and knows its round ticks."""

    low: float
    high: float
    start: float
    end: float
    step: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, limit: float = math.inf) -> list[tuple[float, str]]:
        """Multiples of the step inside the axis and not above `limit`, spelled with one number of decimals."""
        decimals = max(0, -math.floor(math.log10(self.step) + 1e-9))
        first, last = math.ceil(self.low / self.step - 1e-9), math.floor(min(self.high, limit) / self.step + 1e-9)
        return [(index * self.step, f"{index * self.step:.{decimals}f}") for index in range(first, last + 1)]


def _axis(values: Sequence[float], start: float, end: float, spacing_px: float) -> _Axis:
    """An axis over the values with room at both ends; equal values get a span of their own."""
    low, high = min(values), max(values)
    span = high - low
    if span < 1e-6 * max(abs(high), 1e-6):
        span = max(0.1 * abs(high), 1e-3)
    pad = 0.08 * span if high > low else span
    low, high = low - pad, high + pad
    if 0 > low >= -pad:
        low = 0.0
    rough = (high - low) * spacing_px / abs(end - start)
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= rough * 0.999)
    return _Axis(low, high, start, end, step)


def latency_quality(
    points: Sequence[Point],
    *,
    target_ms: float | None,
    floor: float | None,
    metric: str,
    unit: str = "%",
    higher_is_better: bool = True,
    width: int = 720,
    height: int = 400,
) -> Markup:
    """Latency (ms, across) against quality (up), with the target, the quality floor and the Pareto front.

    Args:
        points: at least one; coincident points are allowed, their labels move apart.
        target_ms: the latency asked for, drawn as an upright line.
        floor: the least quality allowed (the most, where lower is better), drawn as a level line.
        metric: names the upright axis.
        unit: of the quality; empty where it has none.
        width, height: size of the drawing in CSS pixels at scale 1.
    """
    left, right, top, bottom = _MARGIN_LEFT, width - _MARGIN_RIGHT, _MARGIN_TOP, height - _MARGIN_BOTTOM
    across = [value for each in points for value in (each.low_ms, each.x_ms, each.high_ms)]
    x = _axis(across + ([target_ms] if target_ms is not None else []), left, right, 64)
    levels = [value for each in points for value in (each.y_low, each.y, each.y_high)]
    y = _axis(levels + ([floor] if floor is not None else []), bottom, top, 40)

    description = f"Latency against {metric}: " + "; ".join(
        f"{each.label} {milliseconds(each.x_ms)}, {quality(each.y, unit)}" for each in points
    )
    parts = [f'<svg class="plot" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(description)}">']
    for value, text in x.ticks():
        parts.append(f'<line class="grid" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>')
        parts.append(_text(x(value), bottom + 17, text, "tick", "middle"))
    for value, text in y.ticks(limit=100.0 if unit == "%" else math.inf):
        parts.append(f'<line class="grid" x1="{left:.1f}" x2="{right:.1f}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(_text(left - 8, y(value) + 4, text, "tick", "end"))
    parts.append(f'<path class="axis" d="M{left:.1f} {top:.1f}V{bottom:.1f}H{right:.1f}"/>')
    parts.append(_text((left + right) / 2, height - 8, "latency, ms (less is better)", "axis-name", "middle"))
    better = "more is better" if higher_is_better else "less is better"
    parts.append(_text(left - 48, top - 12, f"{metric}{', %' if unit == '%' else ''} ({better})", "axis-name", "start"))

    taken = [box for each in points for box in _occupied(each, x, y)]
    if target_ms is not None:
        parts += _target(x, target_ms, right, top, bottom, taken)
    if floor is not None:
        name = f"{'floor' if higher_is_better else 'at most'} {quality(floor, unit)}"
        parts += _floor(y(floor), name, left, right, top, bottom, taken)
    parts.append(_front(points, x, y, taken, higher_is_better))
    for each in points:
        parts.append(_whiskers(each, x, y))
    for each in sorted(points, key=lambda each: each.chosen):
        parts.append(_labelled_marker(each, x(each.x_ms), y(each.y), taken, _Box(left, top, right, bottom)))
    parts.append("</svg>")
    return Markup("".join(parts))


def marker(outcome: str, x: float = 0.0, y: float = 0.0) -> Markup:
    """The sign of an outcome: square base, disc met, triangle above, diamond undecided."""
    r = _MARKER_PX
    shapes: dict[str, Callable[[], str]] = {
        "base": lambda: f"M{x - r:.1f} {y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}z",
        "met": lambda: f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z",
        "above": lambda: f"M{x:.1f} {y - r - 1:.1f}l{r + 1} {2 * r}h{-2 * r - 2}z",
        "undecided": lambda: (
            f"M{x:.1f} {y - r - 1.5:.1f}l{r + 1.5} {r + 1.5}l{-r - 1.5} {r + 1.5}l{-r - 1.5} {-r - 1.5}z"
        ),
    }
    return Markup(f'<path class="mark {escape(outcome)}" d="{shapes[outcome]()}"/>')


def _text(x: float, y: float, text: str, css_class: str, anchor: str) -> str:
    return f'<text class="{css_class}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _text_width(text: str) -> float:
    """An upper estimate for a proportional sans serif; there is no font to ask."""
    return 0.65 * _FONT_PX * len(text)


def _occupied(point: Point, x: _Axis, y: _Axis) -> list[_Box]:
    """Where labels should not be: the marker (with its ring) and the two whiskers."""
    across, up = x(point.x_ms), y(point.y)
    r = _MARKER_PX + (6 if point.chosen else 2)
    return [
        _Box(across - r, up - r, across + r, up + r),
        _Box(x(point.low_ms), up - 1, x(point.high_ms), up + 1),
        _Box(across - 1, y(point.y_high), across + 1, y(point.y_low)),
    ]


def _target(x: _Axis, target_ms: float, right: float, top: float, bottom: float, taken: list[_Box]) -> list[str]:
    """The line of the latency asked for with its name; both are added to `taken`."""
    at, name = x(target_ms), f"target {milliseconds(target_ms)}"
    width = _text_width(name)
    anchor, start = ("end", at - 6 - width) if at + 6 + width > right else ("start", at + 6)
    taken += [_Box(at - 1, top, at + 1, bottom), _Box(start, top, start + width, top + 15)]
    return [
        f'<line class="target" x1="{at:.1f}" x2="{at:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>',
        _text(at + (6 if anchor == "start" else -6), top + 11, name, "target-name", anchor),
    ]


def _floor(
    level: float, name: str, left: float, right: float, top: float, bottom: float, taken: list[_Box]
) -> list[str]:
    """The level line of the quality asked for, its name where it covers the least; both are added to `taken`."""
    width = _text_width(name)
    places = [
        (_Box(edge, line - 11, edge + width, line + 3), line)
        for line in (level + 14, level - 5)
        for edge in (right - 4 - width, left + 6, (left + right - width) / 2)
        if top + 11 < line < bottom - 3
    ]
    box, line = min(places, key=lambda place: sum(place[0].overlap(other) for other in taken))
    taken += [_Box(left, level - 1, right, level + 1), box]
    return [
        f'<line class="floor" x1="{left:.1f}" x2="{right:.1f}" y1="{level:.1f}" y2="{level:.1f}"/>',
        _text(box.left, line, name, "floor-name", "start"),
    ]


def _front(points: Sequence[Point], x: _Axis, y: _Axis, taken: list[_Box], higher_is_better: bool) -> str:
    """The best quality reached at each latency: steps from a point of the front to the next slower and better one.

    With limits beside this latency the front may hold points that are worse here, for the sake of another limit.
    """
    sign = 1.0 if higher_is_better else -1.0
    corners: list[tuple[float, float]] = []
    best = -math.inf
    for each in sorted((each for each in points if each.front), key=lambda each: (each.x_ms, -sign * each.y)):
        if sign * each.y > best:
            best = sign * each.y
            corners.append((x(each.x_ms), y(each.y)))
    if len(corners) < 2:
        return ""
    steps = "".join(f"H{across:.1f}V{up:.1f}" for across, up in corners[1:])
    for (left, level), (right, next_level) in pairwise(corners):
        taken.append(_Box(left, level - 1, right, level + 1))
        taken.append(_Box(right - 1, min(level, next_level), right + 1, max(level, next_level)))
    return f'<path class="front" d="M{corners[0][0]:.1f} {corners[0][1]:.1f}{steps}"/>'


def _whiskers(point: Point, x: _Axis, y: _Axis) -> str:
    across, up = x(point.x_ms), y(point.y)
    return (
        f'<path class="whisker" d="M{x(point.low_ms):.1f} {up:.1f}H{x(point.high_ms):.1f}'
        f'M{across:.1f} {y(point.y_low):.1f}V{y(point.y_high):.1f}"/>'
    )


def _labelled_marker(point: Point, x: float, y: float, taken: list[_Box], frame: _Box) -> str:
    """Marker and label; the label takes the nearest place that covers no marker, label or edge."""
    width, radius = _text_width(point.label), _MARKER_PX + (9 if point.chosen else 4)
    best: tuple[float, _Box, str] | None = None
    for distance in (radius, radius + 12, radius + 24, radius + 38):
        for dx, dy in ((1, 0), (0.7, -0.7), (0.7, 0.7), (-1, 0), (-0.7, -0.7), (-0.7, 0.7), (0, -1), (0, 1)):
            centre_y = y + dy * distance
            box_left = x + dx * distance - (width if dx < 0 else width / 2 if dx == 0 else 0)
            box = _Box(box_left, centre_y - 7, box_left + width, centre_y + 7)
            outside = 14 * width - box.overlap(frame)
            cost = sum(box.overlap(other) for other in taken) + 2 * outside + distance
            if best is None or cost < best[0]:
                best = cost, box, "end" if dx < 0 else "start" if dx > 0 else "middle"
    _, box, anchor = best
    taken.append(box)
    nearest_x, nearest_y = min(max(x, box.left), box.right), min(max(y, box.top), box.bottom)
    parts = []
    if math.hypot(nearest_x - x, nearest_y - y) > radius + 4:
        parts.append(f'<line class="leader" x1="{x:.1f}" y1="{y:.1f}" x2="{nearest_x:.1f}" y2="{nearest_y:.1f}"/>')
    if point.chosen:
        parts.append(f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="{_MARKER_PX + 4.5}"/>')
    parts.append(marker(point.outcome, x, y))
    at = {"start": box.left, "middle": (box.left + box.right) / 2, "end": box.right}[anchor]
    parts.append(_text(at, box.bottom - 3, point.label, "label chosen" if point.chosen else "label", anchor))
    body = "".join(parts)
    return f'<a href="#{escape(point.link)}">{body}</a>' if point.link else body
