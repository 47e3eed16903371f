"""Times and runs artifacts on an emulated ARM64 core.

An artifact is timed in an emulator of its own, so that its figure depends on nothing else, and its timing is kept in
the cache: emulation gives the same figure again. Several emulators run side by side.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from targets.arm import chip, operands, pricing, qemu
from targets.arm.parts import PREDECESSOR_WHEELS, Emulator, emulator_parts, require, require_predecessor
from targets.arm.records import MARKS
from targets.arm.wire import Conversation, Record
from targets.cache import cache_root, write_atomic
from targets.errors import PlanishError
from targets.profile import Profile
from targets.runners import Job, Progress, Timing, ending, unusable
from targets.runners import artifact as artifact_module
from targets.runners.artifact import runtime_version

GUEST = Path(qemu.__file__).with_name("guest.py")
PROFILER, RECORDS = qemu.RUNNERS / "profiled.py", GUEST.with_name("records.py")
PHASES = 1  # timed inferences of an artifact, after one that fills the caches: they repeat to the last per mille
PROFILED_PHASES = 3  # of an operator the fastest counts
BETWEEN = 1  # label of what lies between two of them
NOT_MODELLED = "instruction caches, other programs, throttling"


@dataclass(frozen=True)
class Profiled:
    """One profiled inference: its records and the system calls that ended them, and what the runtime ran."""

    records: tuple[Record, ...]
    ends: tuple[int, ...]
    operators: tuple[dict[str, Any], ...]


def time_artifacts(
    jobs: Sequence[Job],
    format: str,
    profile: Profile,
    progress: Progress,
    *,
    threads: int = 1,
    phases: int = PHASES,
    together: int = 1,
    runtime: str | None = None,
) -> list[Timing]:
    """Instructions, cycles and milliseconds of each artifact on the profile's core.

    Args:
        threads: on as many cores of the cluster.
        runtime: `artifact.PREDECESSOR` in the place of the format's own.
        together: artifacts in one emulator. More than one saves start-up, but where an artifact's data lie in memory,
            and with that its figure in the last per mille, then depends on the others.

    Raises:
        MissingEnvironmentError: `EMULATOR_MISSING`.
        UsageError: `ARTIFACT_UNUSABLE`.
        PlanishError: `EMULATION_FAILED`, `TIMING_FAILED`.
    """
    emulator = require()
    if runtime:
        require_predecessor()
    paths = [_remembered(job, format, profile, threads, phases, runtime) for job in jobs]
    timings = [_recall(path) for path in paths]
    missing = [index for index, timing in enumerate(timings) if timing is None]
    chunks = [missing[start : start + together] for start in range(0, len(missing), together)]

    def time_chunk(chunk: list[int]) -> None:
        mine = [jobs[i] for i in chunk]
        found = _time_in_one(mine, format, profile, emulator, progress, threads, phases, runtime, running)
        for index, timing in zip(chunk, found):
            write_atomic(paths[index], json.dumps(asdict(timing)))
            timings[index] = timing

    with _workers(len(chunks)) as (pool, running):
        for done in [pool.submit(time_chunk, chunk) for chunk in chunks]:
            done.result()
    return timings


def _time_in_one(
    jobs: Sequence[Job],
    format: str,
    profile: Profile,
    emulator: Emulator,
    progress: Progress,
    threads: int,
    phases: int,
    runtime: str | None,
    running: set[subprocess.Popen[str]],
) -> list[Timing]:
    plan = {
        "mode": "time",
        "format": format,
        "runtime": runtime,
        "threads": threads,
        "jobs": [_entry(job) | {"label": 1 + i * phases, "phases": phases} for i, job in enumerate(jobs)],
    }
    records, _ = _session(plan, emulator, profile, progress, running=running)
    by_label = {record.label: record for record in records}
    timings = []
    for index in range(len(jobs)):
        mine = [by_label[1 + index * phases + phase] for phase in range(phases)]
        middle = sorted(mine, key=lambda record: record.cycles)[(phases - 1) // 2]
        timings.append(
            Timing(
                samples_ms=tuple(record.cycles / (profile.clock_ghz * 1e6) for record in mine),
                runtime=" ".join(PREDECESSOR_WHEELS[0].split("==")) if runtime else runtime_version(format),
                instructions=statistics.median_low(record.instructions for record in mine),
                cycles=middle.cycles,
                state={
                    **emulator.versions,
                    "core_model": profile.core.mca_cpu if not profile.core.issue else "measured issue rules",
                    "clock_ghz": profile.clock_ghz,
                    "threads": threads,
                    "cycles": _causes(middle),
                    "accesses": middle.accesses,
                    "lines": middle.lines,
                    "mispredicted_branches": middle.mispredicted,
                    "unpriced_share": max(record.unpriced / max(record.instructions, 1) for record in mine),
                    "not_modelled": NOT_MODELLED,
                },
            )
        )
    return timings


def _causes(record: Record) -> dict[str, float]:
    """Cycles by what they were spent on; they add up. "threads": waiting for another thread's part."""
    stalled = record.core_cycles + sum(record.stalls.values())
    return {"core": record.core_cycles, **record.stalls, "threads": max(0.0, record.cycles - stalled)}


def profile_artifact(
    job: Job,
    format: str,
    profile: Profile,
    progress: Progress,
    *,
    threads: int = 1,
    phases: int = PROFILED_PHASES,
) -> list[Profiled]:
    """Inferences of the artifact with its runtime's profiler on, cut at the system calls the profiler makes.

    They are kept in the cache, like timings. The operators are those of the last inference, the same in all.

    Raises:
        MissingEnvironmentError: `EMULATOR_MISSING`.
        UsageError: `ARTIFACT_UNUSABLE`, also for a format whose runtime has no profiler.
        PlanishError: `EMULATION_FAILED`, `TIMING_FAILED`.
    """
    emulator = require()
    path = _remembered(job, format, profile, threads, phases, None, profiled=True)
    try:
        return [_recalled_profile(one) for one in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError):
        pass
    plan = {
        "mode": "profile",
        "format": format,
        "threads": threads,
        "jobs": [_entry(job) | {"label": BETWEEN + 1, "phases": phases, "between": BETWEEN}],
    }
    records, results = _session(plan, emulator, profile, progress, calls=MARKS)
    found, phase = [], []
    for record in records:
        phase.append(record)
        if record.label > BETWEEN:
            ends = tuple(each.call for each in phase[:-1])
            found.append(Profiled(tuple(phase), ends, tuple(results[0]["operators"])))
        if record.label:
            phase = []
    write_atomic(path, json.dumps([asdict(one) for one in found]))
    return found


def _recalled_profile(kept: dict[str, Any]) -> Profiled:
    records = tuple(Record(**record) for record in kept["records"])
    return Profiled(records, tuple(kept["ends"]), tuple(kept["operators"]))


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
    jobs = [_entry(Job(artifact, inputs)) | {"outputs": str(outputs.absolute())}]
    plan = {"mode": "run", "format": format, "runtime": None, "threads": 1, "jobs": jobs}
    _session(plan, require(), profile, progress)


def _entry(job: Job) -> dict[str, Any]:
    return {"artifact": str(job.artifact.absolute()), "inputs": str(job.inputs.absolute())}


def _session(
    plan: dict[str, Any],
    emulator: Emulator,
    profile: Profile,
    progress: Progress,
    *,
    calls: Sequence[int] = (),
    running: set[subprocess.Popen[str]] | None = None,
) -> tuple[list[Record], list[dict[str, Any]]]:
    """Run the guest over the plan; returns the plugin's records and the guest's results.

    Args:
        calls: system calls that end a record.
        running: holds the emulator while it runs.
    """
    running = set() if running is None else running
    timed = plan["mode"] != "run"
    conversation = Conversation(
        chip.packed(profile, plan["threads"]), lambda blocks: pricing.prices(blocks, emulator, profile.core), calls
    )
    with tempfile.TemporaryDirectory(prefix="planish-emulator-") as scratch:
        plan_path, result_path, log_path = (Path(scratch) / name for name in ("plan.json", "result.json", "stderr"))
        plan_path.write_text(json.dumps(plan), encoding="utf-8")
        arguments = [str(GUEST), str(plan_path), str(result_path)]
        wire = conversation.theirs.fileno() if timed else None
        with (
            open(log_path, "w", encoding="utf-8") as log,
            subprocess.Popen(
                qemu.command(emulator, profile, arguments, wire=wire),
                env=qemu.environment(emulator, plan.get("runtime")),
                cwd=scratch,
                text=True,
                errors="replace",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                pass_fds=[wire] if timed else [],
            ) as process,
        ):
            running.add(process)
            try:
                if timed:
                    conversation.start()
                else:
                    conversation.close()
                for line in process.stdout:
                    verb, _, path = line.strip().partition(" ")
                    progress(f"{profile.core.name}: {verb} {Path(path).name}")
            except BaseException:
                process.kill()  # an interrupted caller leaves no emulator behind
                raise
            finally:
                running.discard(process)
        if timed:
            conversation.join()
        if process.returncode != 0 or not result_path.exists():
            last = log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
            raise PlanishError(
                f"the runtime did not survive under emulation ({ending(process.returncode)})",
                where=", ".join(Path(job["artifact"]).name for job in plan["jobs"][:3]),
                why=" / ".join(last) or "no output",
                fix="see whether `--target host` runs the artifact; if so, report this with it",
                code="EMULATION_FAILED",
            )
        results = json.loads(result_path.read_text(encoding="utf-8"))["jobs"]
    for job, outcome in zip(plan["jobs"], results):
        if "error" in outcome:
            raise unusable(job["artifact"], outcome["error"])
    return conversation.records, results


@contextmanager
def _workers(chunks: int) -> Iterator[tuple[ThreadPoolExecutor, set[subprocess.Popen[str]]]]:
    """A pool of as many emulators at a time as there are processors, and the set to enter them into.

    On an error or an interrupt those that run are killed and the others are not begun.
    """
    pool = ThreadPoolExecutor(max_workers=max(1, min(chunks, os.cpu_count() or 1)))
    running: set[subprocess.Popen[str]] = set()
    try:
        yield pool, running
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in tuple(running):
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _remembered(
    job: Job,
    format: str,
    profile: Profile,
    threads: int,
    phases: int,
    runtime: str | None,
    *,
    profiled: bool = False,
) -> Path:
    """Where the timing of `job`, or its profile, is kept: named by everything it depends on."""
    made_of = [
        *(hashlib.sha256(path.read_bytes()).hexdigest() for path in (job.artifact, job.inputs)),
        *emulator_parts(),
        *_sources(),
        format,
        *(PREDECESSOR_WHEELS if runtime else ()),
        profile.version,
        str(threads),
        str(phases),
    ]
    if profiled:
        made_of += [hashlib.sha256(path.read_bytes()).hexdigest() for path in (PROFILER, RECORDS)]
    name = hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:24]
    return cache_root() / "arm" / ("profiles" if profiled else "timings") / name[:2] / f"{name}.json"


def _sources() -> list[str]:
    """What turns executed code into time, beside the plugin, which is a part of the emulator."""
    modules: tuple[Any, ...] = (chip, pricing, pricing.inorder, pricing.mca, operands, qemu, artifact_module)
    files = [Path(module.__file__) for module in modules] + [GUEST, GUEST.parent / "corrections.py"]
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]


def _recall(path: Path) -> Timing | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return Timing(**{**record, "samples_ms": tuple(record["samples_ms"])})
