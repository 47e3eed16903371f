"""Error by depth: how far the values inside an artifact are from the network's, block by block, as inline SVG."""

from __future__ import annotations

import math

from markupsafe import Markup, escape

from reports.verification import CulpritRecord

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 720.0, 300.0, 62.0, 16.0, 26.0, 40.0
_LEAST, _MOST = 1e-9, 10.0  # errors outside are drawn at the edge


def error_by_depth(culprit: CulpritRecord) -> Markup:
    """Relative RMSE (up, logarithmic) by depth (across): a line for the values, dots for what each does by itself.

    Dots above `culprit.rounding` stand out, and the first of them bears the module's name. Needs at least one block.
    """
    blocks = culprit.blocks
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    step = (right - _LEFT) / max(1, len(blocks) - 1)

    def x(index: int) -> float:
        return _LEFT + index * step

    def y(error: float) -> float:
        share = (math.log10(min(max(error, _LEAST), _MOST)) - math.log10(_LEAST)) / math.log10(_MOST / _LEAST)
        return bottom - share * (bottom - _TOP)

    told = f"first wrong: {culprit.module}" if culprit.module else "nothing is wrong by itself"
    parts = [f'<svg class="plot" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{escape(told)}">']
    for power in range(-9, 2, 2):
        level = y(10.0**power)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{level:.1f}" y2="{level:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{level + 4:.1f}" text-anchor="end">1e{power}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{right}"/>')
    middle = (_LEFT + right) / 2
    parts.append(
        f'<text class="axis-name" x="{middle}" y="{_HEIGHT - 10}" text-anchor="middle">depth, in execution order</text>'
    )
    parts.append('<text class="axis-name" x="6" y="14">relative RMSE against the network</text>')
    line = "L".join(f"{x(index):.1f} {y(block.value):.1f}" for index, block in enumerate(blocks))
    parts.append(f'<path class="depth" d="M{line}"/>')
    named = False
    for index, block in enumerate(blocks):
        guilty = culprit.module is not None and block.own > culprit.rounding
        look = "above" if guilty else "base"
        title = f"{block.module}: value {block.value:.2g}, by itself {block.own:.2g}"
        parts.append(
            f'<circle class="mark {look}" cx="{x(index):.1f}" cy="{y(block.own):.1f}" r="{5 if guilty else 2.5}">'
            f"<title>{escape(title)}</title></circle>"
        )
        if guilty and not named:
            named, anchor = True, "end" if x(index) > middle else "start"
            offset = -9 if anchor == "end" else 9
            parts.append(
                f'<text class="label chosen" x="{x(index) + offset:.1f}" y="{y(block.own) - 6:.1f}" '
                f'text-anchor="{anchor}">{escape(culprit.module)}</text>'
            )
    parts.append("</svg>")
    return Markup("".join(parts))
