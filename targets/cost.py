"""What an operator costs on a target: tables learned from operators timed in artifacts, run as any artifact is run.

A table belongs to one profile and one format. Costs of operators add up to the network's latency but for `invoke_ms`,
what one call of the runtime costs besides its operators. A table chooses where planning probes; it is never a result.
"""

from __future__ import annotations

import hashlib
import json
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from targets import cost_model
from targets.cache import cache_root, write_atomic
from targets.cost_model import ClassModel, Memory
from targets.errors import MissingEnvironmentError, UsageError
from targets.operator import Operator
from targets.probes import design, timing
from targets.probes.timing import Overheads, Timed
from targets.profile import PROFILES, Profile
from targets.runners.artifact import runtime_version

__all__ = ["CostTable", "Operator", "build"]

FORMATS = ("tflite", "onnx")
SAME_KERNELS = {"pte": "tflite", "ort": "onnx"}  # XNNPACK and MLAS again
ALIKE = "scale"  # the class that prices an operator which the runtime fused wherever it was met
COMMITTED = PROFILES / "costs"
MODEL = 6  # of costs, in the tables' files; raise it with any change of `cost_model`'s terms or fit
LINE = 64  # bytes, of every core's caches


@dataclass(frozen=True)
class RelativeError:
    """Of the table's costs, on operators its fit has not seen."""

    median: float
    p90: float


@dataclass(frozen=True)
class CostTable:
    """Milliseconds of operators on one profile, for one format."""

    profile: str
    format: str
    source: str  # what was run, and the command that rebuilds the table
    invoke_ms: float  # one call of the runtime, without operators
    error: RelativeError
    classes: dict[str, ClassModel]
    memory: Memory
    _known: dict[Operator, float] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def load(
        cls, profile: Profile, format: str = "tflite", progress: Callable[[str], None] = lambda message: None
    ) -> CostTable:
        """The table of `profile`: the one planish ships, or for the host the one in the cache, built if need be.

        A format whose runtime has the kernels of another goes by that one's table: ExecuTorch calls XNNPACK as LiteRT
        does, and ORT's format is ONNX Runtime's own.

        Raises:
            MissingEnvironmentError: `COST_TABLE_MISSING`, with the command that builds it.
        """
        if profile.kind == "gpu":
            from targets.gpu.cost_table import GpuCostTable

            return GpuCostTable.load(profile, format)
        format = SAME_KERNELS.get(format, format)
        path = table_path(profile, format)
        if profile.kind == "host" and _record(path).get("model") != MODEL:
            build(profile, progress, formats=(format,))
        record = _record(path)
        if (record.get("profile_version"), record.get("model")) != (profile.version, MODEL):
            raise MissingEnvironmentError(
                f"there is no table of operator costs for {profile.name} and {format}",
                where=str(path),
                why="it is of another version of the profile or of planish" if record else "no such file",
                fix=f"run `planish targets cost {profile.name}`",
                code="COST_TABLE_MISSING",
            )
        return cls(
            record["profile"],
            record["format"],
            record["source"],
            record["invoke_ms"],
            RelativeError(**record["error"]),
            {name: cost_model.from_json(model) for name, model in record["classes"].items()},
            Memory(tuple(record["caches"]), record["reach"]),
        )

    def milliseconds(self, op: Operator) -> float:
        """Cost of `op` by itself, without `invoke_ms`; above zero. Planning asks hundreds of thousands of times."""
        known = self._known.get(op)
        if known is None:
            name = cost_model.classify(op, self.format)
            model = self.classes.get(name) or self.classes[ALIKE]
            known = self._known[op] = model.milliseconds(name if name in self.classes else ALIKE, op, self.memory)
        return known


def _record(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def shipped_errors(profile: Profile) -> dict[str, RelativeError | None]:
    """For each format the error that the profile's shipped table states; None where there is no valid table."""
    errors: dict[str, RelativeError | None] = {}
    for format in FORMATS if profile.kind == "emulator" else ():
        try:
            errors[format] = CostTable.load(profile, format).error
        except MissingEnvironmentError:
            errors[format] = None
    return errors


def table_path(profile: Profile, format: str) -> Path:
    """Where a table belongs: beside the profile, or in the cache for the host, whose machine its name then tells."""
    if profile.kind == "emulator":
        return COMMITTED / f"{profile.name}.{format}.json"
    machine = f"{platform.machine()} {_cpu_name()} {runtime_version(format)}"
    return cache_root() / "costs" / f"host-{hashlib.sha256(machine.encode()).hexdigest()[:12]}.{format}.json"


def build(
    profile: Profile, progress: Callable[[str], None] = lambda message: None, *, formats: tuple[str, ...] = FORMATS
) -> list[CostTable]:
    """Time operators on `profile`, fit, and write the tables; minutes on an emulated target.

    What has been timed stays in the cache, so a build that was stopped goes on where it was.

    Raises:
        UsageError: `COSTS_NOT_TIMED` for a GPU.
        MissingEnvironmentError: `EMULATOR_MISSING`.
    """
    if profile.kind == "gpu":
        raise UsageError(
            f"the costs of {profile.name} are not timed",
            where=profile.name,
            why="they are fitted on published latencies and ship with planish",
            fix="run `planish targets validate --published FOLDER --refit` with the folder of the published tables",
            code="COSTS_NOT_TIMED",
        )
    return [_build(profile, format, progress) for format in formats]


def _build(profile: Profile, format: str, progress: Callable[[str], None]) -> CostTable:
    progress(f"operators of {profile.name}, {format}")
    beside = timing.overheads(profile, format, progress)
    learned, unseen = _times(profile, format, beside, progress)
    memory = _memory(profile)
    by_class: dict[str, list[tuple[Operator, float]]] = {}
    for operator, ms in learned:
        by_class.setdefault(cost_model.classify(operator, format), []).append((operator, ms))
    progress(f"fitting {len(by_class)} classes of operators")
    bandwidth = profile.dram.bandwidth_gb_s if profile.dram else None
    classes = {name: cost_model.fit(name, timed, memory, bandwidth) for name, timed in sorted(by_class.items())}
    what = f"{len(learned)} operators in random chains" if profile.kind == "emulator" else f"{len(learned)} operators"
    source = (
        f"{what} on {profile.title}, {beside.runtime}; error on {len(unseen)} others; "
        f"rebuild with `planish targets cost {profile.name} --format {format}`"
    )
    table = CostTable(profile.name, format, source, beside.invoke_ms, RelativeError(0.0, 0.0), classes, memory)
    table = replace(table, error=error_on(table, unseen))
    record: dict[str, Any] = {
        "model": MODEL,
        "profile": profile.name,
        "profile_version": profile.version,
        "format": format,
        "source": source,
        "state": beside.state,
        "invoke_ms": beside.invoke_ms,
        "error": vars(table.error),
        "caches": list(memory.caches),
        "reach": memory.reach,
        "classes": {name: cost_model.to_json(model) for name, model in classes.items()},
    }
    write_atomic(table_path(profile, format), json.dumps(record, indent=1) + "\n")
    return table


def error_on(table: CostTable, timed: Sequence[tuple[Operator, float]]) -> RelativeError:
    """Median and 90th percentile of how far the table's costs are from the measured ones."""
    errors = sorted(abs(table.milliseconds(operator) / ms - 1) for operator, ms in timed)
    return RelativeError(statistics.median(errors), errors[int(0.9 * (len(errors) - 1))])


def unseen_times(profile: Profile, format: str, progress: Callable[[str], None] = lambda message: None) -> Timed:
    """`design.UNSEEN` operators of no table's fit, timed as a table's own."""
    return _times(profile, format, timing.overheads(profile, format, progress), progress, learn=False)[1]


def _times(
    profile: Profile, format: str, beside: Overheads, progress: Callable[[str], None], *, learn: bool = True
) -> tuple[Timed, Timed]:
    """Operators to learn from, and `design.UNSEEN` others, no operator twice."""
    artifacts, others = design.artifacts() if learn else [], design.unseen_artifacts()
    learned = {operator for chains in design.artifacts() for chain in chains for operator in chain[1:]}
    if profile.kind == "emulator":
        found = timing.time_chains([*artifacts, *others], profile, format, beside, progress)
        seen, fresh = (sum(part, []) for part in (found[: len(artifacts)], found[len(artifacts) :]))
    else:
        unseen = dict.fromkeys(op for chains in others for chain in chains for op in chain[1:] if op not in learned)
        wanted = [*(learned if learn else ()), *list(unseen)[: design.UNSEEN]]
        times = timing.time_singles(wanted, profile, format, beside, progress)
        seen, fresh = ([pair for pair in times if (pair[0] in learned) is mine] for mine in (True, False))
    fresh = list({operator: (operator, ms) for operator, ms in fresh if operator not in learned}.values())
    return seen, fresh[: design.UNSEEN]


def _memory(profile: Profile) -> Memory:
    """Of the host nothing is known, and its fit is without the terms that need it."""
    levels = (profile.l1d, profile.l2, profile.l3)
    caches = tuple(1024.0 * level.kib for level in levels if level is not None)
    return Memory(caches, float(LINE * profile.core.prefetch.lines) if profile.core else None)


def _cpu_name() -> str:
    """The processor's model as Linux names it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "CPU part"))), "")
