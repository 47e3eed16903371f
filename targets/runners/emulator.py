"""Times and runs artifacts on an emulated ARM64 core. One emulator process serves many artifacts of a format."""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from targets.arm import qemu
from targets.arm.counts import read_phases
from targets.arm.parts import Emulator, require
from targets.arm.timing import time_phases
from targets.errors import PlanishError
from targets.profile import Profile
from targets.runners import Job, Progress, Timing, unusable
from targets.runners.artifact import runtime_version

GUEST = Path(qemu.__file__).with_name("guest.py")
PHASES = 3  # timed inferences of an artifact; they differ by what the runtime does differently from one to the next


def time_artifacts(
    jobs: Sequence[Job], format: str, profile: Profile, progress: Progress, *, warmups: int = 2, phases: int = PHASES
) -> list[Timing]:
    """Instructions, cycles and milliseconds of each artifact on the profile's core, one thread.

    Raises:
        MissingEnvironmentError: `EMULATOR_MISSING`.
        UsageError: `ARTIFACT_UNUSABLE`.
        PlanishError: `EMULATION_FAILED`, `TIMING_FAILED`.
    """
    emulator = require()
    plan = [
        {
            "mode": "count",
            "artifact": str(job.artifact.absolute()),
            "inputs": str(job.inputs.absolute()),
            "format": format,
            "label": 1 + index * phases,
            "warmups": warmups,
            "phases": phases,
        }
        for index, job in enumerate(jobs)
    ]
    with tempfile.TemporaryDirectory(prefix="planish-emulator-") as scratch:
        counts = Path(scratch) / "counts.bin"
        maps = _session(plan, emulator, profile, Path(scratch), progress, counts)
        by_label = read_phases(counts, maps)
    progress(f"timing {len(by_label)} inferences with the model of {profile.core.name}")
    timed = time_phases([by_label[label] for label in sorted(by_label)], emulator, profile.core.mca_cpu)
    timings = []
    for index in range(len(jobs)):
        mine = timed[index * phases : (index + 1) * phases]
        timings.append(
            Timing(
                samples_ms=tuple(phase.cycles / (profile.clock_ghz * 1e6) for phase in mine),
                runtime=runtime_version(format),
                instructions=statistics.median_low(phase.instructions for phase in mine),
                cycles=statistics.median_low(phase.cycles for phase in mine),
                state={
                    **emulator.versions,
                    "core_model": profile.core.mca_cpu,
                    "clock_ghz": profile.clock_ghz,
                    "threads": 1,
                    "unmodelled_share": max(phase.unmodelled_share for phase in mine),
                    "not_modelled": "memory beyond the first cache, branch misprediction, throttling",
                },
            )
        )
    return timings


def run(
    artifact: Path,
    format: str,
    inputs: Path,
    outputs: Path,
    profile: Profile,
    progress: Progress = lambda message: None,
) -> None:
    """Write the artifact's outputs for every sample of `inputs` to the .npz `outputs`.

    Args:
        inputs: .npz, each array [samples, ...] as in `targets.measure.measure`.
        outputs: one array [samples, ...] an output, named as in the artifact.
    """
    plan = [
        {
            "mode": "run",
            "artifact": str(artifact.absolute()),
            "inputs": str(inputs.absolute()),
            "format": format,
            "outputs": str(outputs.absolute()),
        }
    ]
    with tempfile.TemporaryDirectory(prefix="planish-emulator-") as scratch:
        _session(plan, require(), profile, Path(scratch), progress, None)


def _session(
    plan: list[dict[str, Any]],
    emulator: Emulator,
    profile: Profile,
    scratch: Path,
    progress: Progress,
    counts: Path | None,
) -> str:
    """Run the guest over the plan; returns its memory map."""
    plan_path, result_path, log_path = (scratch / name for name in ("plan.json", "result.json", "stderr"))
    plan_path.write_text(json.dumps({"jobs": plan}), encoding="utf-8")
    command = qemu.command(emulator, profile, [str(GUEST), str(plan_path), str(result_path)], counts=counts)
    with (
        open(log_path, "w", encoding="utf-8") as log,
        subprocess.Popen(
            command,
            env=qemu.environment(emulator),
            cwd=scratch,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
        ) as process,
    ):
        try:
            for done, line in enumerate(process.stdout, start=1):
                progress(f"{profile.core.name}: ran {Path(line.strip()).name} ({done}/{len(plan)})")
        except BaseException:
            process.kill()  # an interrupted caller leaves no emulator behind
            raise
    if process.returncode != 0 or not result_path.exists():
        last = log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
        raise PlanishError(
            f"the runtime did not survive under emulation (exit status {process.returncode})",
            where=", ".join(Path(job["artifact"]).name for job in plan[:3]),
            why=" / ".join(last) or "no output",
            fix="see whether `--target host` runs the artifact; if so, report this with it",
            code="EMULATION_FAILED",
        )
    result = json.loads(result_path.read_text(encoding="utf-8"))
    for job, outcome in zip(plan, result["jobs"]):
        if "error" in outcome:
            raise unusable(job["artifact"], outcome["error"])
    return result["maps"]
