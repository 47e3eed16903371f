"""Measures exported artifacts on a target: the file itself, in its own runtime, on real samples, with an interval."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from targets.errors import UsageError, nearest
from targets.profile import Profile
from targets.runners import Job, Progress, Timing, emulator, host
from targets.runners.artifact import PREDECESSOR
from targets.statistics import CONFIDENCE, summarize

Format = Literal["onnx", "ort", "tflite", "pte"]


@dataclass(frozen=True)
class Measurement:
    """Latency of one artifact on one target; `low_ms` to `high_ms` is an interval for the median."""

    artifact_sha256: str
    format: str
    target: str  # profile name
    profile_version: str
    runner: str  # "host", "emulator", or "model" of a GPU, whose low_ms and high_ms are the model's interval
    runtime: str  # "ai-edge-litert 2.3.0"
    n: int
    median_ms: float
    p90_ms: float
    mad_ms: float
    low_ms: float
    high_ms: float
    samples_ms: tuple[float, ...]  # in the order they were taken
    instructions: int | None  # of one inference; emulator only
    cycles: float | None
    state: dict[str, Any]  # versions of the tools, state of the device; "isa": the features the runtime was told of
    threads: int = 1
    rounds: tuple[int, ...] | None = None  # samples of each turn, in order; None: the runner repeats itself

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"samples_ms": list(self.samples_ms), "rounds": self.rounds and list(self.rounds)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Measurement:
        """The inverse of `to_json`; extra keys are refused by the constructor."""
        rounds = record.get("rounds")
        return cls(**{**record, "samples_ms": tuple(record["samples_ms"]), "rounds": rounds and tuple(rounds)})


def measure(
    artifact: Path,
    *,
    format: str,
    profile: Profile,
    inputs: Path,
    progress: Progress | None = None,
    budget_s: float = host.BUDGET_S,
    threads: int = 1,
) -> Measurement:
    """Latency of `artifact` on `profile`.

    Args:
        format: "onnx", "tflite" or "pte".
        inputs: .npz with one array [samples, ...] an input, in the artifact's layout and type, named as the inputs or
            in their order; real samples, fed one at a time with batch 1. Float32 samples of an integer input are
            quantised by its scale and zero point (`runners.artifact.Samples` has the rule).
        budget_s: how long the host may go on taking samples; give more to narrow the interval. The emulator repeats
            itself and needs no more.
        threads: of the runtime, each on a core of its own.

    Raises:
        UsageError: `FORMAT_UNKNOWN`, `ARTIFACT_UNUSABLE`, `THREADS_TOO_MANY`.
        MissingEnvironmentError: `EMULATOR_MISSING`, `EMULATOR_DAMAGED`, `EXECUTORCH_RUNNER_MISSING`.
        PlanishError: `EMULATION_FAILED`, `RUNTIME_FAILED`, `TIMING_FAILED`.
    """
    return measure_many(
        [(artifact, format, inputs)], profile=profile, progress=progress, budget_s=budget_s, threads=threads
    )[0]


def measure_many(
    artifacts: Sequence[tuple[Path, str, Path]],
    *,
    profile: Profile,
    progress: Progress | None = None,
    budget_s: float = host.BUDGET_S,
    threads: int = 1,
    runtime: str | None = None,
) -> list[Measurement]:
    """`measure` for several (artifact, format, inputs): one process a format, on the host in interleaved blocks.

    Args:
        runtime: `PREDECESSOR` instead of the format's own, for .tflite on emulated targets.

    Raises:
        UsageError: also `RUNTIME_UNAVAILABLE`.
    """
    if runtime:
        require_runtime(runtime, [format for _, format, _ in artifacts], profile)
    if profile.kind == "gpu":
        from targets.gpu import modelled  # which makes measurements itself

        return [modelled.measure(Path(path), format=format, profile=profile) for path, format, _ in artifacts]
    for path, format, _ in artifacts:
        require_measurable(path, format, profile, threads)
    timings: dict[int, Timing] = {}
    for format in dict.fromkeys(format for _, format, _ in artifacts):
        chosen = [index for index, entry in enumerate(artifacts) if entry[1] == format]
        jobs = [Job(Path(artifacts[index][0]), Path(artifacts[index][2])) for index in chosen]
        took = timed(jobs, format, profile, progress, threads=threads, budget_s=budget_s, runtime=runtime)
        timings.update(zip(chosen, took))
    return [
        measurement(Path(path), format, profile, threads, timings[index])
        for index, (path, format, _) in enumerate(artifacts)
    ]


def require_runtime(runtime: str, formats: Sequence[str], profile: Profile) -> None:
    """Raises UsageError `RUNTIME_UNAVAILABLE`."""
    if runtime == PREDECESSOR and profile.kind == "emulator" and set(formats) == {"tflite"}:
        return
    raise UsageError(
        f"{runtime} does not run this",
        where=f"{', '.join(sorted(set(formats)))} on {profile.name}",
        why=f"{PREDECESSOR} runs .tflite files on emulated targets; all else has one runtime each",
        fix="give .tflite files and an emulated target, or leave the runtime out",
        code="RUNTIME_UNAVAILABLE",
    )


def require_measurable(path: Path, format: str, profile: Profile, threads: int) -> None:
    """Raises UsageError `FORMAT_UNKNOWN` or `THREADS_TOO_MANY`."""
    if format not in get_args(Format):
        raise UsageError(
            f"artifacts of format '{format}' cannot be measured",
            where=str(path),
            why=f"the runners know {', '.join(get_args(Format))}",
            fix=f"{nearest(format, get_args(Format))}export to one of these",
            code="FORMAT_UNKNOWN",
        )
    if profile.cores is not None and threads > profile.cores:
        raise UsageError(
            f"{threads} threads cannot be measured on {profile.name}",
            where="--threads",
            why=f"the cluster of {profile.core.name} cores has {profile.cores}",
            fix=f"ask for at most {profile.cores}",
            code="THREADS_TOO_MANY",
        )


def timed(
    jobs: Sequence[Job],
    format: str,
    profile: Profile,
    progress: Progress | None,
    *,
    threads: int,
    budget_s: float,
    compared: bool = False,
    runtime: str | None = None,
) -> list[Timing]:
    """What the profile's runner sees of artifacts of one format; `compared` as for `host.time_artifacts`, `runtime` as
    for `measure_many`.
    """
    progress = progress or (lambda message: None)
    if profile.kind == "host":
        return host.time_artifacts(jobs, format, progress, threads=threads, budget_s=budget_s, compared=compared)
    return emulator.time_artifacts(jobs, format, profile, progress, threads=threads, runtime=runtime)


def measurement(
    path: Path, format: str, profile: Profile, threads: int, timing: Timing, confidence: float = CONFIDENCE
) -> Measurement:
    """The measurement that a timing of an artifact makes; its interval holds with `confidence`."""
    summary = summarize(timing.samples_ms, timing.rounds, confidence)
    state = timing.state | ({"isa": list(profile.core.features)} if profile.core else {})
    return Measurement(
        artifact_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        format=format,
        target=profile.name,
        profile_version=profile.version,
        runner=profile.kind,
        threads=threads,
        **asdict(summary),
        **{field.name: getattr(timing, field.name) for field in fields(Timing)} | {"state": state},
    )
