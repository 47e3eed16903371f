"""Typed loader of `profiles/*.toml`: what a target is, with the source of every number.

A profile is strict: an unknown key, a missing key, a wrong type or a number without a source is an error, because a
latency is only as good as the facts it stands on.
"""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from targets.errors import UsageError, nearest

PROFILES = Path(__file__).parent / "profiles"
Kind = Literal["host", "emulator"]


@dataclass(frozen=True)
class Core:
    """One CPU core, as the runtime sees it and as the timing model needs it."""

    name: str  # "Cortex-A76"
    midr_part: int  # the part number of the core's MIDR_EL1, e.g. 0xd0b
    clock_ghz: float
    mca_cpu: str  # LLVM scheduling model that fits the core, not always the model of the same name
    qemu_cpu: str  # decides the hardware capabilities the runtime is told of
    features: tuple[str, ...]  # the "Features" line of /proc/cpuinfo


@dataclass(frozen=True)
class Profile:
    """A target: one core of one device, or this machine."""

    name: str
    title: str
    kind: Kind
    device: str
    soc: str
    core: Core | None  # None for the host, which is measured by the clock
    version: str  # first 12 hex digits of the SHA-256 of the TOML text
    sources: dict[str, str]  # field -> where the value comes from
    notes: str


def load_profile(name: str) -> Profile:
    """The profile called `name`.

    Raises:
        UsageError: `TARGET_UNKNOWN`, or `PROFILE_INVALID` for a file that breaks the rules above.
    """
    names = [path.stem for path in sorted(PROFILES.glob("*.toml"))]
    if name not in names:
        raise UsageError(
            f"there is no target called '{name}'",
            where="--target",
            why=f"known targets: {', '.join(names)}",
            fix=f"{nearest(name, names)}run `planish targets list`",
            code="TARGET_UNKNOWN",
        )
    return read_profile(PROFILES / f"{name}.toml")


def list_profiles() -> list[Profile]:
    """Every profile planish ships, by name."""
    return [read_profile(path) for path in sorted(PROFILES.glob("*.toml"))]


@cache
def read_profile(path: Path) -> Profile:
    """Parse and check one TOML file; the profile's name is the file's."""
    text = path.read_text(encoding="utf-8")
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _invalid(path, str(error)) from error
    sources = table.pop("sources", {})
    core_table = table.pop("core", None)
    if not isinstance(sources, dict) or not all(isinstance(source, str) for source in sources.values()):
        raise _invalid(path, "[sources] is a table of strings")
    _check(path, table, {"title": str, "kind": str, "device": str, "soc": str, "notes": str}, "")
    if table["kind"] not in get_args(Kind):
        raise _invalid(path, f"kind is one of {', '.join(get_args(Kind))}, not '{table['kind']}'")
    if (table["kind"] == "emulator") != (core_table is not None):
        raise _invalid(path, "an emulator target has a [core] table and a host target has none")
    core = _read_core(path, core_table, sources) if core_table is not None else None
    return Profile(
        name=path.stem, core=core, sources=sources, version=hashlib.sha256(text.encode()).hexdigest()[:12], **table
    )


def _read_core(path: Path, table: Any, sources: dict[str, str]) -> Core:
    hints = get_type_hints(Core)
    _check(
        path,
        table,
        {field.name: list if field.name == "features" else hints[field.name] for field in fields(Core)},
        "core.",
    )
    if not all(isinstance(feature, str) for feature in table["features"]):
        raise _invalid(path, "core.features is a list of strings")
    if unsourced := [f"core.{field.name}" for field in fields(Core) if f"core.{field.name}" not in sources]:
        raise _invalid(path, f"no source is given for {', '.join(unsourced)}")
    if not 0 < table["midr_part"] < 0x1000 or not 0 < table["clock_ghz"] < 10:
        raise _invalid(path, "core.midr_part is a 12-bit part number and core.clock_ghz is in gigahertz")
    return Core(**{**table, "features": tuple(table["features"])})


def _check(path: Path, table: Any, wanted: dict[str, type], prefix: str) -> None:
    """Every wanted key is there with exactly its type, and no other key is."""
    if not isinstance(table, dict):
        raise _invalid(path, f"[{prefix.rstrip('.')}] is a table")
    if missing := sorted(wanted.keys() - table.keys()):
        raise _invalid(path, f"missing: {', '.join(prefix + key for key in missing)}")
    if unknown := sorted(table.keys() - wanted.keys()):
        raise _invalid(path, f"unknown: {', '.join(prefix + key for key in unknown)}")
    for key, kind in wanted.items():
        if type(table[key]) is not kind:
            raise _invalid(path, f"{prefix}{key} is {type(table[key]).__name__}, expected {kind.__name__}")


def _invalid(path: Path, why: str) -> UsageError:
    return UsageError(
        f"the target profile '{path.stem}' cannot be used",
        where=str(path),
        why=why,
        fix="correct the TOML file; targets/profiles/pixel-4-cpu.toml is an example",
        code="PROFILE_INVALID",
    )
