"""Why an artifact is slow on an emulated target: its inference, operator by operator."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from targets.arm.parts import require
from targets.arm.peak import Peak, peak
from targets.arm.wire import Record
from targets.errors import PlanishError, UsageError
from targets.graph import read_graph
from targets.operators import Counters, OperatorTime, break_down, name_modules
from targets.profile import Profile
from targets.runners import Job, Progress, emulator

INT8 = re.compile(r"\bQ[SCUP]8|\bQD8|QLinear|QGemm|Integer|Quantize")  # in the name of an operator's kind
OTHER = re.compile(r"\bF16|\bQC4|\bQB4|\b16\b")  # precisions whose peak is not known


def explain(
    artifact: Path,
    *,
    format: str,
    profile: Profile,
    inputs: Path,
    threads: int = 1,
    layers: Sequence[tuple[str, int]] = (),
    progress: Progress | None = None,
) -> tuple[OperatorTime, ...]:
    """The operators of an inference in the order they ran; the last entry is the runtime's own work.

    Args:
        inputs: as for `targets.measure.measure`.
        layers: (module, multiply-accumulates) of the model in the order of execution, which name the operators of a
            format that does not keep modules (TFLite); an ONNX artifact names its own.

    Raises:
        UsageError: `OPERATORS_NOT_EMULATED`, and as `measure`.
        PlanishError: `OPERATORS_UNTOLD` when the runtime did not run as its profiler says, and as `measure`.
    """
    progress = progress or (lambda message: None)
    if profile.kind != "emulator":
        raise UsageError(
            "the operators of an inference are told on emulated targets only",
            where=f"--target {profile.name}",
            why="they are told apart by what the emulated core counts, not by the clock",
            fix="give an emulated target, see `planish targets list`",
            code="OPERATORS_NOT_EMULATED",
        )
    job = Job(artifact, inputs)
    (timing,) = emulator.time_artifacts([job], format, profile, progress, threads=threads)
    profiled = emulator.profile_artifact(job, format, profile, progress, threads=threads)
    spent = {f"{cause}_cycles": cycles for cause, cycles in timing.state["cycles"].items()}
    spent["thread_cycles"] = spent.pop("threads_cycles")
    whole = Counters(instructions=timing.instructions, accesses=timing.state["accesses"], **spent)
    graph = name_modules(read_graph(artifact, format), layers)
    try:
        rows = break_down(
            [([_counters(record) for record in one.records], one.ends) for one in profiled],
            profiled[-1].operators,
            graph,
            whole,
            format=format,
            clock_ghz=profile.clock_ghz,
        )
    except ValueError as error:
        raise PlanishError(
            "the inference cannot be broken down into operators",
            where=str(artifact),
            why=f"{timing.runtime} did not run as its profiler says: {error}",
            fix="leave out --operators; with --threads 1 or in another format it may work",
            code="OPERATORS_UNTOLD",
        ) from error
    most = peak(profile.core, require())
    return tuple(replace(row, peak_flop_per_cycle=_peak_of(row, most, threads)) for row in rows)


def _counters(record: Record) -> Counters:
    stalled = record.core_cycles + sum(record.stalls.values())
    return Counters(
        instructions=record.instructions,
        accesses=record.accesses,
        core_cycles=record.core_cycles,
        thread_cycles=max(0.0, record.cycles - stalled),
        **{f"{cause}_cycles": cycles for cause, cycles in record.stalls.items()},
    )


def _peak_of(row: OperatorTime, most: Peak, threads: int) -> float | None:
    """Of an operator that multiplies and accumulates."""
    if not row.macs or OTHER.search(row.kind):
        return None
    one = most.int8 if INT8.search(row.kind) else most.fp32
    return None if one is None else threads * one
