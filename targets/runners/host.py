"""Times and runs artifacts on this machine, in a child process that keeps to one CPU a thread.

Several artifacts are timed in interleaved blocks, so that a change of the machine's clock or load falls on all of them.
After the first blocks the samples' drift decides whether the machine was steady; if not, more blocks follow within the
budget, and the measurement says which it was. Artifacts that are compared take as many rounds each.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from targets.errors import UsageError
from targets.runners import Job, Progress, Timing, executorch
from targets.runners.artifact import runtime_version
from targets.runners.child import result_of
from targets.statistics import drift

WORKER = "targets.runners.host_worker"
BUDGET_S = 5.0  # of timed inference, for each artifact
LEAST_SAMPLES = 30
X86_VECTORS = ("sse", "ssse", "avx", "fma", "f16c", "amx")
STEADY = 0.05  # largest drift of the median, first third to last, of a steady machine


def time_artifacts(
    jobs: Sequence[Job],
    format: str,
    progress: Progress,
    *,
    threads: int = 1,
    budget_s: float = BUDGET_S,
    least_samples: int = LEAST_SAMPLES,
    warmup_s: float = 0.2,
    compared: bool = False,
) -> list[Timing]:
    """Wall-clock samples of each artifact: at least `least_samples`, and up to `budget_s` seconds for each artifact.

    Args:
        compared: take rounds of one block of every artifact until the slowest has used `budget_s`, so that samples can
            be paired round by round; else an artifact is done as soon as it has enough steady samples.

    Raises:
        UsageError: `ARTIFACT_UNUSABLE`, `THREADS_TOO_MANY`.
        MissingEnvironmentError: `EXECUTORCH_RUNNER_MISSING`.
        PlanishError: `RUNTIME_FAILED`.
    """
    cpus = len(os.sched_getaffinity(0))
    if threads > cpus:
        raise UsageError(
            f"{threads} threads cannot be timed on this machine",
            where="--threads",
            why=f"this process may use {cpus} CPUs; threads that share one wait for each other",
            fix=f"ask for at most {cpus}",
            code="THREADS_TOO_MANY",
        )
    plan = {
        "mode": "time",
        "format": format,
        "threads": threads,
        "budget_s": budget_s,
        "least_samples": least_samples,
        "warmup_s": warmup_s,
        "steady": None if compared else STEADY,
        "jobs": [{"artifact": str(job.artifact.absolute()), "inputs": str(job.inputs.absolute())} for job in jobs],
    }
    names = jobs[0].artifact.name if len(jobs) == 1 else f"{len(jobs)} artifacts"
    progress(f"timing {names} on this machine")
    result = _child(plan)
    timings = []
    for samples_ms, rounds in zip(result["samples_ms"], result["rounds"]):
        change = drift(samples_ms)
        timings.append(
            Timing(
                tuple(samples_ms),
                runtime_version(format),
                None,
                None,
                {
                    "machine": f"{platform.system()} {platform.machine()}",
                    "cpus": result["cpus"],
                    "isa": _features(),
                    "threads": threads,
                    "load_average": os.getloadavg()[0],
                    "drift": change,
                    "steady": abs(change) <= STEADY,
                },
                tuple(rounds),
            )
        )
    return timings


def run(artifact: Path, format: str, inputs: Path, outputs: Path, progress: Progress = lambda message: None) -> None:
    """Write the artifact's outputs for every sample of `inputs` to the .npz `outputs`; as `runners.emulator.run`."""
    progress(f"running {artifact.name} on this machine")
    _child(
        {
            "mode": "run",
            "format": format,
            "threads": 1,
            "jobs": [
                {
                    "artifact": str(artifact.absolute()),
                    "inputs": str(inputs.absolute()),
                    "outputs": str(outputs.absolute()),
                }
            ],
        }
    )


def _features() -> list[str]:
    """What this machine's kernel says of its instruction set, by which the runtimes choose their kernels."""
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        name, _, features = next((line for line in lines if line.startswith(("flags", "Features"))), "").partition(":")
    # x86 lists its whole history; of that only the vector instructions matter here.
    return [feature for feature in features.split() if name.strip() != "flags" or feature.startswith(X86_VECTORS)]


def _child(plan: dict[str, Any]) -> dict[str, Any]:
    if plan["format"] == "pte":
        executorch.library()  # compiled here, where an error is told as one
    return result_of(WORKER, plan, [Path(job["artifact"]) for job in plan["jobs"]])
