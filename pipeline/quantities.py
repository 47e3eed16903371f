"""Quantities as a user writes them: the unit is part of the value, a bare number is refused."""

from __future__ import annotations

import math
import re

from targets.errors import UsageError

_FORM = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([^\s0-9]*)\s*")
LATENCY_UNITS = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1000.0}
SIZE_UNITS = {"B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
DURATION_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}
AGE_UNITS = {**DURATION_UNITS, "d": 86400.0, "w": 604800.0}


def parse_latency(text: str, name: str = "latency") -> tuple[float | None, float | None]:
    """`12ms` -> (12.0, None); `60%` -> (None, 0.6), a share of the original's measured latency.

    Raises:
        UsageError: LATENCY_UNIT for a bare number or an unknown unit, LATENCY_VALUE for a value that is not positive
            (or P90_...).
    """
    value, unit = _split(text, name, [*LATENCY_UNITS, "%"], "12ms")
    if unit == "%":
        return None, value / 100
    return value * LATENCY_UNITS[unit], None


def parse_size(text: str, name: str = "size") -> tuple[float | None, float | None]:
    """`3MB` -> (3e6, None) bytes; `60%` -> (None, 0.6), a share of the original's. UsageError SIZE_UNIT, SIZE_VALUE."""
    value, unit = _split(text, name, [*SIZE_UNITS, "%"], "3MB")
    return (None, value / 100) if unit == "%" else (value * SIZE_UNITS[unit], None)


def parse_bytes(text: str, name: str) -> float:
    """`10GB` -> 1e10 bytes. UsageError <NAME>_UNIT or <NAME>_VALUE; zero is a value."""
    value, unit = _split(text, name, [*SIZE_UNITS], "10GB", zero=True)
    return value * SIZE_UNITS[unit]


def parse_age(text: str, name: str) -> float:
    """`30d` -> 2592000.0 seconds. UsageError <NAME>_UNIT or <NAME>_VALUE; zero is a value."""
    value, unit = _split(text, name, [*AGE_UNITS], "30d", zero=True)
    return value * AGE_UNITS[unit]


def parse_drop(text: str) -> tuple[float | None, float | None]:
    """`0.5pt` -> (0.5, None) in the metric's unit; `2%` -> (None, 0.02), a share of what the original has.

    Raises:
        UsageError: MAX_DROP_UNIT, MAX_DROP_VALUE; zero is a value.
    """
    value, unit = _split(text, "max-drop", ["pt", "%"], "0.5pt", zero=True)
    return (None, value / 100) if unit == "%" else (value, None)


def parse_duration(text: str) -> float:
    """`10min` -> 600.0 seconds. UsageError RECOVER_UNIT or RECOVER_VALUE; zero is a value."""
    value, unit = _split(text, "recover", [*DURATION_UNITS], "10min", zero=True)
    return value * DURATION_UNITS[unit]


def _split(text: str, name: str, units: list[str], example: str, *, zero: bool = False) -> tuple[float, str]:
    match = _FORM.fullmatch(text)
    code = name.upper().replace("-", "_")
    if match is None or match[2] not in units:
        why = "it is not a number with a unit" if match is None else f"'{match[2]}' is not a unit of it"
        known = ", ".join(unit for unit in units if unit.isascii())
        raise UsageError(
            f"'{text}' is not a value for {name}",
            where=f"--{name} {text}",
            code=f"{code}_UNIT",
            why=f"{why if match is None or match[2] else 'it has no unit'}; the units are {known}",
            fix=f"write the unit with the number: {name} {example}",
        )
    value = float(match[1])
    if not math.isfinite(value) or (value == 0 and not zero):
        raise UsageError(
            f"'{text}' is not a value for {name}",
            where=f"--{name} {text}",
            code=f"{code}_VALUE",
            why="it must be a finite number greater than zero",
            fix=f"give a value like {name} {example}",
        )
    return value, match[2]
