"""Strict reading of TOML files of facts into frozen dataclasses.

Every field of the dataclass is in the file, with its type and a plausible value; every fact has a source; no other key
is there. A latency is only as good as the facts it stands on, so a file that breaks a rule is not read at all.
"""

from __future__ import annotations

import dataclasses
import tomllib
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from targets.errors import UsageError

TYPE_NAMES = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}


def between(low: float, high: float, unit: str = "") -> Any:
    """A dataclass field for a number from `low` to `high`; what lies outside is a slip of the pen, not a fact."""
    return field(metadata={"between": (low, high, unit)})


@dataclass(frozen=True)
class FactFile:
    """One TOML file, split into its facts, where they come from, and which of them stand in for unknown ones."""

    path: Path
    text: str
    facts: dict[str, Any]
    sources: dict[str, str]  # "l2.latency_ns" -> where the value comes from
    unknown: dict[str, str]  # "l2.latency_ns" -> why it is unknown, and what stands in

    @classmethod
    def open(cls, path: Path) -> FactFile:
        """
        Raises:
            UsageError: `PROFILE_INVALID` for what is not TOML, or sources that are not strings.
        """
        try:
            text = path.read_text(encoding="utf-8")
            facts = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise invalid(path, f"it is not TOML: {error}") from error
        notes = [facts.pop(name, {}) for name in ("sources", "unknown")]
        for name, table in zip(("sources", "unknown"), notes):
            if not isinstance(table, dict) or not all(isinstance(text, str) and text for text in table.values()):
                raise invalid(path, f'[{name}] is a table of strings, its keys in quotes: "l2.latency_ns" = "..."')
        return cls(path, text, facts, *notes)

    def read(self, kind: type, *, without: Iterable[str] = ()) -> dict[str, Any]:
        """The facts as arguments of the dataclass `kind`; fields named in `without` are none of the file's."""
        return _read_table(self.path, kind, self.facts, "", frozenset(without))

    def require_sources(self, facts: Mapping[str, Any], *, prose: Iterable[str] = ()) -> None:
        """Each fact has a source but for `prose`, and nothing else has one, or is called unknown."""
        names = set(leaves(facts))
        if missing := sorted(names - set(prose) - self.sources.keys()):
            raise invalid(self.path, f"[sources] does not say where the value comes from: {', '.join(missing)}")
        for table, given in (("sources", self.sources), ("unknown", self.unknown)):
            if strays := sorted(given.keys() - names):
                raise invalid(self.path, f"[{table}] names what is no field of the file: {', '.join(strays)}")


def invalid(path: Path, why: str) -> UsageError:
    """The one error of a file of facts; `why` names the field."""
    return UsageError(
        f"the description of '{path.stem}' cannot be used",
        where=str(path),
        why=why,
        fix="correct the file; the other files beside it are examples",
        code="PROFILE_INVALID",
    )


def leaves(facts: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    """Names of the facts, those of tables with a dot: "l2.latency_ns"."""
    for name, value in facts.items():
        if dataclasses.is_dataclass(value):
            yield from leaves(vars(value), f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _read_table(path: Path, kind: type, table: Any, prefix: str, without: frozenset[str] = frozenset()) -> dict:
    if not isinstance(table, dict):
        raise invalid(path, f"{prefix.rstrip('.')} is a table")
    wanted = {entry.name: entry for entry in dataclasses.fields(kind) if entry.name not in without}
    optional = {name for name in wanted if type(None) in get_args(_hints(kind)[name])}
    if missing := sorted(wanted.keys() - optional - table.keys()):
        raise invalid(path, f"missing: {', '.join(prefix + name for name in missing)}")
    if unknown := sorted(table.keys() - wanted.keys()):
        raise invalid(path, f"unknown: {', '.join(prefix + name for name in unknown)}")
    return {
        name: _read_value(path, _hints(kind)[name], table[name], prefix + name, entry.metadata.get("between"))
        if name in table
        else None
        for name, entry in wanted.items()
    }


def _read_value(path: Path, kind: Any, value: Any, name: str, bounds: tuple[float, float, str] | None) -> Any:
    if isinstance(kind, types.UnionType):  # T | None: a fact that some targets do not have
        kind = next(part for part in get_args(kind) if part is not type(None))
    if dataclasses.is_dataclass(kind):
        return kind(**_read_table(path, kind, value, f"{name}."))
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise invalid(path, f"{name} is one of {', '.join(get_args(kind))}, not {value!r}")
        return value
    if get_origin(kind) is tuple:
        if type(value) is not list or not all(type(item) is str for item in value):
            raise invalid(path, f"{name} is a list of strings")
        return tuple(value)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise invalid(path, f"{name} is {TYPE_NAMES[kind]}, not {value!r}")
    if bounds and not bounds[0] <= value <= bounds[1]:
        low, high, unit = bounds
        raise invalid(path, f"{name} is {value:g}; it must lie between {low:g} and {high:g} {unit}".rstrip())
    return value
