"""Quantities as a user writes them: the unit is part of the value, a bare number is refused."""

from __future__ import annotations

import re

from targets.errors import UsageError

_FORM = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([^\s0-9]*)\s*")
LATENCY_UNITS = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1000.0}


def parse_latency(text: str) -> tuple[float | None, float | None]:
    """`12ms` -> (12.0, None); `60%` -> (None, 0.6), a share of the original's measured latency.

    Raises:
        UsageError: LATENCY_UNIT for a bare number or an unknown unit, LATENCY_VALUE for a value that is not positive.
    """
    value, unit = _split(text, "--latency", [*LATENCY_UNITS, "%"], "12ms")
    if unit == "%":
        return None, value / 100
    return value * LATENCY_UNITS[unit], None


def parse_points(text: str) -> float:
    """`0.5pt` -> 0.5 percentage points."""
    return _split(text, "--max-drop", ["pt"], "0.5pt", zero=True)[0]


def _split(text: str, option: str, units: list[str], example: str, *, zero: bool = False) -> tuple[float, str]:
    match = _FORM.fullmatch(text)
    code = option.strip("-").upper().replace("-", "_")
    if match is None or match[2] not in units:
        why = "it has no unit" if match is not None and not match[2] else "planish cannot read it"
        known = ", ".join(unit for unit in units if unit.isascii())
        raise UsageError(
            f"'{text}' is not a value for {option}",
            where=f"{option} {text}",
            code=f"{code}_UNIT",
            why=f"{why}; the units are {known}",
            fix=f"write the unit with the number, like {option} {example}",
        )
    value = float(match[1])
    if value < 0 or (value == 0 and not zero):
        raise UsageError(
            f"'{text}' is not a value for {option}",
            where=f"{option} {text}",
            code=f"{code}_VALUE",
            why="it must be greater than zero",
            fix=f"give a positive value, like {option} {example}",
        )
    return value, match[2]
