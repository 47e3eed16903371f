"""Emulated latencies beside the published ones of `published.csv`, and how far apart they are.

A published row is comparable in one of two ways. "same runtime": the same kernels run the same operators, so each
latency should agree. "other runtime": other kernels run the same network, so only the order of the networks should.

XNNPACK's own figures are of 2020 and 2022. Those in fp32 are compared with the last TensorFlow Lite before LiteRT, of
2023, the oldest that the emulated Python runs: today's divides a product of matrices among threads and caches in
another way. In int8 that one does not ask XNNPACK, so those are compared with today's.
"""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal

from targets.cache import write_atomic
from targets.errors import UsageError
from targets.measure import Measurement, measure_many
from targets.profile import load_profile
from targets.runners.artifact import PREDECESSOR
from targets.validation.build import artifact
from targets.validation.network import load_network

PUBLISHED = Path(__file__).with_name("published.csv")
RESULTS = Path(__file__).with_name("results.json")
CLOSE = 0.15  # relative error within which a case counts as confirmed
APART = "XNNPACK end2end_bench"  # its networks are lists of operators, each with a static array for what it computes
VERSIONS = ("qemu", "llvm", "libc")  # what a measurement's state says of the emulator

Comparable = Literal["same runtime", "other runtime"]


@dataclass(frozen=True)
class Published:
    """A latency somebody measured on the device."""

    profile: str
    network: str
    precision: str  # "fp32" or "int8"
    threads: int
    published_ms: float
    runtime: str
    source: str
    comparable: Comparable
    note: str


@dataclass(frozen=True)
class Case(Published):
    """A published latency with the emulated one."""

    core: str
    emulated_ms: float
    emulated_runtime: str  # "tflite-runtime 2.14.0"
    profile_version: str

    @property
    def error(self) -> float:
        """Relative: 0.1 is ten percent too slow."""
        return self.emulated_ms / self.published_ms - 1

    def flop_per_cycle(self, latency_ms: float) -> float:
        """Two operations a multiply-accumulate, of each thread's core at the profile's clock."""
        macs = load_network(self.network).macs
        return 2 * macs / (latency_ms * 1e6 * load_profile(self.profile).clock_ghz * self.threads)


@dataclass(frozen=True)
class Results:
    """Every case whose profile has not changed since it was run."""

    command: str
    date: str
    versions: dict[str, str]
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Agreement:
    """How well cases of one runtime agree with what was published."""

    count: int
    median_error: float  # of the absolute relative errors
    worst_error: float  # the one furthest from 0, with its sign
    close: int  # cases within `CLOSE`


@dataclass(frozen=True)
class Order:
    """How well the emulator orders networks that another runtime ran."""

    count: int
    rank_correlation: float | None  # Spearman's; None for fewer than three networks
    ratio: float  # median of emulated / published
    spread: float  # largest ratio over the smallest


@cache
def published() -> tuple[Published, ...]:
    """Every published latency, in the order of the file."""
    with PUBLISHED.open(encoding="utf-8", newline="") as stream:
        return tuple(
            Published(**{**row, "threads": int(row["threads"]), "published_ms": float(row["published_ms"])})
            for row in csv.DictReader(stream)
        )


def choose(profiles: Sequence[str] = (), threads: Sequence[int] = ()) -> list[Published]:
    """The published latencies of these profiles and numbers of threads; all where none are named.

    Raises:
        UsageError: `TARGET_UNKNOWN`; `NOTHING_PUBLISHED` when none is left.
    """
    for profile in profiles:
        load_profile(profile)
    rows = [
        row
        for row in published()
        if (not profiles or row.profile in profiles) and (not threads or row.threads in threads)
    ]
    if not rows:
        known = sorted({f"{row.profile} with {row.threads}" for row in published()})
        raise UsageError(
            "no latency was published for this choice",
            where=" ".join([*(f"--profile {name}" for name in profiles), *(f"--threads {n}" for n in threads)]),
            why=f"there are latencies for {', '.join(known)} thread(s)",
            fix="choose among these, or leave the option out",
            code="NOTHING_PUBLISHED",
        )
    return rows


def run(rows: Sequence[Published], progress: Callable[[str], None]) -> tuple[list[Case], dict[str, str]]:
    """Emulate each row, a profile and number of threads at a time; (cases, versions of runtime and emulator).

    Raises:
        MissingEnvironmentError: `EMULATOR_MISSING`.
        PlanishError: `EMULATION_FAILED`, `RUNTIME_FAILED`, `TIMING_FAILED`.
    """
    found: dict[Published, Case] = {}
    versions: dict[str, str] = {}
    groups = dict.fromkeys((row.profile, row.threads) for row in rows)
    for number, (name, threads) in enumerate(groups, 1):
        profile = load_profile(name)
        chosen = [row for row in rows if (row.profile, row.threads) == (name, threads)]
        place = f"{number} of {len(groups)}: {name}, {threads} thread{'s' * (threads > 1)}"
        wanted = list(dict.fromkeys(_artifact_of(row) for row in chosen))
        progress(f"{place}: building {len(wanted)} networks")
        by_network = {}
        for runtime in (PREDECESSOR, None):
            if not (mine := [one for one in wanted if (one[1:] == ("fp32", True)) == bool(runtime)]):
                continue
            built = [artifact(network, precision, apart=apart) for network, precision, apart in mine]
            measured = measure_many(
                [(one.path, one.format, one.inputs) for one in built],
                profile=profile,
                threads=threads,
                runtime=runtime,
                progress=lambda message, place=place: progress(f"{place}: {message}"),
            )
            by_network.update(zip(mine, measured))
        for row in chosen:
            measurement = by_network[_artifact_of(row)]
            versions |= _versions(measurement)
            found[row] = Case(
                **asdict(row),
                core=profile.core.name,
                emulated_ms=measurement.median_ms,
                emulated_runtime=measurement.runtime,
                profile_version=profile.version,
            )
    return [found[row] for row in rows], versions


def merge(cases: Sequence[Case], versions: dict[str, str], command: str) -> Results:
    """New cases together with the recorded ones they do not replace, in the order they were published."""
    known = read().cases if RESULTS.exists() else ()
    by_row = {_key(case): case for case in (*known, *cases)}
    order = [_key(row) for row in published()]
    kept = tuple(by_row[key] for key in order if key in by_row)
    return Results(command, datetime.now(UTC).date().isoformat(), versions, kept)


def write(results: Results) -> None:
    """Record the results where `read` finds them."""
    write_atomic(RESULTS, json.dumps(asdict(results), indent=1) + "\n")


def read() -> Results:
    """The recorded results; cases of profiles that have changed since are left out, and of another planish's record."""
    record: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    names = {field.name for field in fields(Case)}
    cases = (Case(**{name: case[name] for name in names}) for case in record["cases"] if names <= case.keys())
    current = tuple(case for case in cases if load_profile(case.profile).version == case.profile_version)
    return Results(record["command"], record["date"], record["versions"], current)


def agreement(cases: Sequence[Case]) -> Agreement:
    """Of cases with the same runtime; at least one."""
    errors = [case.error for case in cases]
    return Agreement(
        count=len(errors),
        median_error=statistics.median(map(abs, errors)),
        worst_error=max(errors, key=abs),
        close=sum(abs(error) <= CLOSE for error in errors),
    )


def order(cases: Sequence[Case]) -> Order:
    """Of cases with another runtime on one profile and number of threads; at least one."""
    from scipy.stats import spearmanr

    ratios = [case.emulated_ms / case.published_ms for case in cases]
    correlation = None
    if len(cases) > 2:
        correlation = float(spearmanr([c.published_ms for c in cases], [c.emulated_ms for c in cases]).statistic)
    return Order(len(cases), correlation, statistics.median(ratios), max(ratios) / min(ratios))


def grouped(cases: Iterable[Case], *names: str) -> dict[tuple[Any, ...], list[Case]]:
    """Cases by the values of these fields, in the order they come."""
    groups: dict[tuple[Any, ...], list[Case]] = {}
    for case in cases:
        groups.setdefault(tuple(getattr(case, name) for name in names), []).append(case)
    return groups


def _artifact_of(row: Published) -> tuple[str, str, bool]:
    """(network, precision, whether its operators are apart)."""
    return row.network, row.precision, row.runtime == APART


def _versions(measurement: Measurement) -> dict[str, str]:
    runtime, _, version = measurement.runtime.rpartition(" ")
    return {runtime: version} | {name: measurement.state[name] for name in VERSIONS if name in measurement.state}


def _key(row: Published) -> tuple[object, ...]:
    return (row.profile, row.network, row.precision, row.threads, row.runtime, row.published_ms)
