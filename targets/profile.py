"""Typed loader of `profiles/*.toml`: what a target is, with the source of every number."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from targets.core import Core, load_core
from targets.errors import UsageError, nearest
from targets.facts import FactFile, between, invalid

PROFILES = Path(__file__).parent / "profiles"
CONSTANTS = Path(__file__).parent / "gpu" / "constants"
LINE_BYTES = 64
Architecture = Literal["adreno-6xx", "adreno-7xx", "mali-bifrost", "mali-valhall", "powervr", "apple-a9", "apple-a11"]
Kind = Literal["host", "emulator", "gpu"]


@dataclass(frozen=True)
class L1Cache:
    """First-level data cache of one core; its latency is part of the core's scheduling model."""

    kib: int = between(4, 512)
    ways: int = between(1, 32)


@dataclass(frozen=True)
class L2Cache:
    """Second-level cache: of one core, or shared by the cores of the cluster."""

    kib: int = between(32, 32768)
    ways: int = between(1, 32)
    latency_ns: float = between(0.5, 100, "ns")  # of a load that hits here
    shared: bool


@dataclass(frozen=True)
class L3Cache:
    """Last-level cache, shared by all cores."""

    kib: int = between(128, 65536)
    ways: int = between(1, 32)
    latency_ns: float = between(1, 200, "ns")


@dataclass(frozen=True)
class Dram:
    """Main memory."""

    latency_ns: float = between(20, 500, "ns")  # of a random load
    bandwidth_gb_s: float = between(0.5, 500, "GB/s")  # practical, reads and writes together
    shared_bandwidth_gb_s: float | None = between(0.5, 500, "GB/s")  # the same when several cores ask; None: as much


@dataclass(frozen=True)
class Gpu:
    """The GPU of a device, whose inferences are modelled (`targets.gpu`)."""

    name: str
    architecture: Architecture
    units: int = between(1, 64)  # compute units as the TFLite delegate counts them
    lanes: int = between(8, 8192)  # multiply-adds in fp32 a clock, of all units
    clock_mhz: float = between(100, 3000, "MHz")
    bandwidth_gb_s: float = between(1, 500, "GB/s")  # peak of the memory's interface
    constants: str  # of `targets/gpu/constants`; another GPU's are carried over


@dataclass(frozen=True)
class Profile:
    """A target: the cores of one cluster of one device, its GPU, or this machine.

    A host target is measured by the clock: `core` and everything about caches and memory is None. So it is of a GPU,
    which has `gpu` instead.
    """

    name: str
    title: str
    kind: Kind
    device: str
    soc: str
    notes: str
    core: Core | None
    clock_ghz: float | None = between(0.1, 6, "GHz")  # highest sustained of the cluster
    cores: int | None = between(1, 16)  # in the cluster: the most threads
    l1d: L1Cache | None
    l2: L2Cache | None
    l3: L3Cache | None  # not every chip has one
    dram: Dram | None
    gpu: Gpu | None
    version: str  # first 12 hex digits of the SHA-256 of the TOML text and of its core's, or of the GPU's constants
    sources: dict[str, str]  # field -> where the value comes from
    unknown: dict[str, str]  # field -> why it is unknown, and what stands in


PROSE = ("title", "kind", "device", "soc", "notes")
HARDWARE = ("core", "clock_ghz", "cores", "l1d", "l2", "dram")


def load_profile(name: str) -> Profile:
    """The profile called `name`.

    Raises:
        UsageError: `TARGET_UNKNOWN`, or `PROFILE_INVALID` for a file that breaks the rules of `targets.facts`.
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
    """Parse and check one TOML file; the profile's name is the file's.

    Raises:
        UsageError: `PROFILE_INVALID`.
    """
    file = FactFile.open(path)
    core_name = file.facts.pop("core", None)
    facts = file.read(Profile, without=("name", "core", "version", "sources", "unknown"))
    facts["core"] = core_name
    _check_hardware(path, facts)
    file.require_sources(facts, prose=PROSE)
    core = load_core(core_name, asked_by=path) if core_name is not None else None
    behind = core.version_text if core else _constants(path, facts["gpu"]) if facts["gpu"] else ""
    digest = hashlib.sha256((file.text + behind).encode())
    return Profile(
        **facts | {"core": core},
        name=path.stem,
        version=digest.hexdigest()[:12],
        sources=file.sources,
        unknown=file.unknown,
    )


def _constants(path: Path, gpu: Gpu) -> str:
    """The text of the constants a GPU is modelled by."""
    names = [file.stem for file in sorted(CONSTANTS.glob("*.json")) if file.stem not in ("kernels", "carried_over")]
    if gpu.constants not in names:
        why = f"gpu.constants is '{gpu.constants}'; {nearest(gpu.constants, names)}there are {', '.join(names)}"
        raise invalid(path, why)
    return (CONSTANTS / f"{gpu.constants}.json").read_text(encoding="utf-8")


def _check_hardware(path: Path, facts: dict[str, Any]) -> None:
    """An emulated target has hardware, the others have none, a GPU is its own; caches grow and slow down by level."""
    emulated = facts["kind"] == "emulator"
    if (facts["kind"] == "gpu") != (facts["gpu"] is not None):
        why = "missing: gpu" if facts["kind"] == "gpu" else f"a target of kind {facts['kind']} has no gpu"
        raise invalid(path, why)
    wrong = [name for name in HARDWARE if (facts[name] is not None) != emulated]
    if emulated and wrong:
        raise invalid(path, f"missing: {', '.join(wrong)}")
    if wrong or (facts["l3"] and not emulated):
        how = "modelled" if facts["gpu"] else "measured by the clock"
        raise invalid(path, f"a {facts['kind']} target is {how} and has no {', '.join(wrong or ['l3'])}")
    if not emulated:
        return
    if type(facts["core"]) is not str:
        raise invalid(path, f"core is the name of a file of cores/, a string, not {facts['core']!r}")
    levels = {name: facts[name] for name in ("l1d", "l2", "l3") if facts[name]}
    for name, level in levels.items():
        if level.kib * 1024 % (level.ways * LINE_BYTES):
            raise invalid(path, f"{name}.kib: {level.kib} KiB cannot be split into {level.ways} ways of 64-byte lines")
    for (inner, first), (outer, second) in zip(levels.items(), list(levels.items())[1:]):
        if second.kib <= first.kib:
            raise invalid(path, f"{outer}.kib is {second.kib}, not above {inner}.kib, {first.kib}")
    timed = [(name, level.latency_ns) for name, level in [*levels.items(), ("dram", facts["dram"])] if name != "l1d"]
    for (inner, first), (outer, second) in zip(timed, timed[1:]):
        if second <= first:
            raise invalid(path, f"{outer}.latency_ns is {second:g}, not above {inner}.latency_ns, {first:g}")
