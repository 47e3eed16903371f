"""What an operator costs on a target: tables learned from single-operator artifacts, run as any artifact is run.

A table belongs to one profile and one format. Costs of operators add up to the network's latency but for `invoke_ms`,
what one call of the runtime costs besides its operators. A table chooses where planning probes; it is never a result.
"""

from __future__ import annotations

import hashlib
import json
import platform
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from targets import cost_model
from targets.cache import cache_root, write_atomic
from targets.cost_model import ClassModel
from targets.errors import MissingEnvironmentError
from targets.operator import Operator
from targets.probes.design import convolution, probes
from targets.profile import PROFILES, Profile
from targets.runners import Job, Timing
from targets.runners.artifact import runtime_version

__all__ = ["CostTable", "Operator", "build"]

FORMATS = ("tflite", "onnx")
COMMITTED = PROFILES / "costs"
CHAIN = 5  # operators in a row, whose time over one operator's tells what a call costs by itself


@dataclass(frozen=True)
class RelativeError:
    """Of the table's costs, on probes its fit has not seen."""

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
    _known: dict[Operator, float] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def load(
        cls, profile: Profile, format: str = "tflite", progress: Callable[[str], None] = lambda message: None
    ) -> CostTable:
        """The table of `profile`: the one planish ships, or for the host the one in the cache, built if need be.

        Raises:
            MissingEnvironmentError: `COST_TABLE_MISSING`, with the command that builds it.
        """
        path = table_path(profile, format)
        if profile.kind == "host" and not path.exists():
            build(profile, progress, formats=(format,))
        record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if record.get("profile_version") != profile.version:
            raise MissingEnvironmentError(
                f"there is no table of operator costs for {profile.name} and {format}",
                where=str(path),
                why="it is of another version of the profile" if record else "no such file",
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
        )

    def milliseconds(self, op: Operator) -> float:
        """Cost of `op` by itself, without `invoke_ms`; above zero."""
        if op not in self._known:
            name = cost_model.classify(op, self.format)
            self._known[op] = self.classes[name].milliseconds(name, op)
        return self._known[op]


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
    """Time every probe on `profile`, fit, and write the tables; minutes on an emulated target.

    Raises:
        MissingEnvironmentError: `EMULATOR_MISSING`.
    """
    return [_build(profile, format, progress) for format in formats]


def _build(profile: Profile, format: str, progress: Callable[[str], None]) -> CostTable:
    operators = probes()
    chained = [convolution(8, 8, 3, 1, 4), convolution(16, 16, 3, 1, 4, groups=16), convolution(16, 16, 1, 1, 4)]
    progress(f"{len(operators)} single-operator artifacts for {profile.name}, {format}")
    models = [[op] for op in operators] + [[op] * count for op in chained for count in (1, CHAIN)]
    timings = _time(models, profile, format, progress)
    times = [statistics.median(timing.samples_ms) for timing in timings]
    singles, chains = times[len(operators) :: 2], times[len(operators) + 1 :: 2]
    invoke_ms = max(0.0, statistics.median(one - (many - one) / (CHAIN - 1) for one, many in zip(singles, chains)))
    by_class: dict[str, list[tuple[Operator, float]]] = {}
    for operator, ms in zip(operators, times):
        # A tenth of a call is what is left of the smallest operators on a noisy host.
        by_class.setdefault(cost_model.classify(operator, format), []).append(
            (operator, max(ms - invoke_ms, invoke_ms / 10))
        )
    progress(f"fitting {len(by_class)} classes of operators")
    fitted = {name: cost_model.fit(name, timed) for name, timed in sorted(by_class.items())}
    errors = sorted(error for model, found in fitted.values() for error in found)
    classes = {name: model for name, (model, _) in fitted.items()}
    error = RelativeError(statistics.median(errors), errors[int(0.9 * (len(errors) - 1))])
    source = (
        f"{len(operators)} single-operator artifacts on {profile.title}, {timings[0].runtime}; "
        f"rebuild with `planish targets cost {profile.name}`"
    )
    record: dict[str, Any] = {
        "profile": profile.name,
        "profile_version": profile.version,
        "format": format,
        "source": source,
        "state": timings[0].state,
        "invoke_ms": invoke_ms,
        "error": vars(error),
        "classes": {name: cost_model.to_json(model) for name, model in classes.items()},
    }
    write_atomic(table_path(profile, format), json.dumps(record, indent=1) + "\n")
    return CostTable(profile.name, format, source, invoke_ms, error, classes)


def _time(models: list[list[Operator]], profile: Profile, format: str, progress: Callable[[str], None]) -> list[Timing]:
    """Build each model's artifact and time them all in one process."""
    import numpy

    from targets.probes import onnx, tflite
    from targets.runners import emulator, host

    make = {"tflite": tflite.build, "onnx": onnx.build}[format]
    rng = numpy.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="planish-cost-") as scratch:
        jobs = []
        for index, model in enumerate(models):
            artifact, inputs = Path(scratch) / f"probe{index}.{format}", Path(scratch) / f"probe{index}.npz"
            content, samples = make(model, rng)
            artifact.write_bytes(content)
            numpy.savez(inputs, **samples)
            jobs.append(Job(artifact, inputs))
        if profile.kind == "host":
            return host.time_artifacts(jobs, format, progress, budget_s=0.05, least_samples=10, warmup_s=0.01)
        return emulator.time_artifacts(jobs, format, profile, progress, warmups=1, phases=1)


def _cpu_name() -> str:
    """The processor's model as Linux names it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "CPU part"))), "")
