"""Numbers as people read them: three significant digits, a unit always, a true minus sign.

Shared by the console and the HTML report, so that one quantity has one spelling everywhere.
"""

from __future__ import annotations

import math

MISSING = "–"
_MINUS = "−"


def significant(value: float, digits: int = 3) -> str:
    """`8.31`, `12.3`, `0.00420`, `1,234`, `3.20e−7`: as many significant digits, never scientific from 1e-4 up."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits}g}")
    exponent = math.floor(math.log10(abs(rounded)))
    if exponent >= digits:
        text = f"{value:,.0f}"
    elif exponent >= -4:
        text = f"{rounded:,.{max(0, digits - 1 - exponent)}f}"
    else:
        text = f"{rounded / 10.0**exponent:.{digits - 1}f}e{exponent}"
    return text.replace("-", _MINUS)


def milliseconds(value_ms: float | None) -> str:
    return MISSING if value_ms is None else f"{significant(value_ms)} ms"


def interval(low: float, high: float) -> str:
    """`[8.29, 8.34]`; the unit stands on the value it belongs to. A narrow interval gets the digits that show it."""
    texts = significant(low), significant(high)
    if texts[0] == texts[1] and low < high:
        decimals = -math.floor(math.log10(high - low))
        texts = f"{low:.{decimals}f}", f"{high:.{decimals}f}"
    return f"[{texts[0]}, {texts[1]}]"


def percent(value_percent: float | None) -> str:
    """Two decimals: test sets of some thousand samples resolve hundredths of a point."""
    return MISSING if value_percent is None else f"{value_percent:.2f} %"


def percent_interval(low_percent: float, high_percent: float) -> str:
    return f"[{low_percent:.1f}, {high_percent:.1f}]"


def points(delta_points: float | None) -> str:
    """A signed difference of two percentages: `−0.35 pt`, `+0.10 pt`, `±0.00 pt`."""
    return MISSING if delta_points is None else f"{_signed_points(delta_points)} pt"


def _signed_points(delta: float) -> str:
    text = f"{abs(delta):.2f}"
    return f"{'±' if float(text) == 0 else _MINUS if delta < 0 else '+'}{text}"


def quality(value: float | None, unit: str) -> str:
    """In percent, or to four significant digits where the metric is the user's own and has no unit."""
    if value is None:
        return MISSING
    return percent(value) if unit == "%" else significant(value, 4)


def quality_interval(low: float, high: float, unit: str) -> str:
    return percent_interval(low, high) if unit == "%" else f"[{significant(low, 4)}, {significant(high, 4)}]"


def quality_change(delta: float | None, unit: str) -> str:
    """A signed difference of two qualities: points of a percentage, else a number."""
    if delta is None:
        return MISSING
    return points(delta) if unit == "%" else _signed(delta)


def drop(lost: float, unit: str) -> str:
    """What of the quality was or may be lost: `1.00 pt`."""
    return f"{lost:.2f} pt" if unit == "%" else f"{lost:.4g}"


def quality_change_interval(low: float, high: float, unit: str) -> str:
    """`[−0.92, +0.22]`"""
    spell = _signed_points if unit == "%" else _signed
    return f"[{spell(low)}, {spell(high)}]"


def _signed(delta: float) -> str:
    return "±0" if delta == 0 else significant(delta) if delta < 0 else f"+{significant(delta)}"


def measured(value: float | None, unit: str) -> str:
    """A quantity that a limit is set on, by its unit: `8.31 ms`, `1.02 MB`."""
    if value is None:
        return MISSING
    return milliseconds(value) if unit == "ms" else size(round(value))


def measured_interval(low: float, high: float | None, unit: str) -> str:
    """Empty for what is known exactly, like the size of a file; `[8.29, ∞]` without an upper bound."""
    if low == high:
        return ""
    if unit == "ms" and high is not None:
        return interval(low, high)
    bounds = [significant(low) if unit == "ms" else size(round(low)), "∞" if high is None else size(round(high))]
    return f"[{', '.join(bounds)}]"


def against_target(margin_percent: float | None) -> str:
    """`5.8 % under`, `0.34 % over`, `on target`; the words carry the sign."""
    if margin_percent is None:
        return MISSING
    size = abs(margin_percent)
    if size < 0.005:
        return "on target"
    digits = f"{size:.2g}" if size < 10 else f"{size:.0f}"
    return f"{digits} % {'under' if margin_percent < 0 else 'over'}"


def change(before: float, after: float) -> str:
    """Relative change from `before` to `after`: `−45 %`."""
    if before == 0:
        return MISSING
    ratio = 100.0 * (after - before) / before
    text = f"{abs(ratio):.0f} %" if abs(ratio) >= 10 else f"{abs(ratio):.1f} %"
    if text == "0.0 %":
        return "unchanged"
    return f"{_MINUS if ratio < 0 else '+'}{text}"


def speedup(before_ms: float, after_ms: float) -> str:
    """`1.71× faster`, `1.05× slower`, `same speed` (within half a percent)."""
    faster = before_ms / after_ms
    if abs(faster - 1.0) < 0.005:
        return "same speed"
    return f"{significant(faster)}× faster" if faster > 1 else f"{significant(1 / faster)}× slower"


def size(size_bytes: int | None) -> str:
    """Decimal units, as file managers and app stores show them: `1.02 MB`."""
    if size_bytes is None:
        return MISSING
    if size_bytes < 1000:
        return f"{size_bytes} B"
    unit, factor = next((u, f) for u, f in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if size_bytes >= 0.9995 * f)
    return f"{significant(size_bytes / factor)} {unit}"


def count(number: int | None) -> str:
    """`463 k`, `1.20 M`, `3.71 G`: parameters, multiply-accumulates, instructions."""
    if number is None:
        return MISSING
    if number < 1000:
        return str(number)
    unit, factor = next((u, f) for u, f in (("G", 1e9), ("M", 1e6), ("k", 1e3)) if number >= 0.9995 * f)
    return f"{significant(number / factor)} {unit}"


def duration(seconds: float) -> str:
    """`0.42 s`, `12.3 s`, `3 min 05 s`, `1 h 02 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds:.2f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(whole / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"
