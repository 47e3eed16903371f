"""Times operators: on an emulated core where they stand in their chains, on the host each by itself."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from targets.arm.records import owned
from targets.graph import read_graph
from targets.operator import Operator, convolution, pointwise
from targets.operators import match, parts
from targets.probes import Probe
from targets.probes.design import Chain
from targets.profile import Profile
from targets.runners import Job, Timing

Progress = Callable[[str], None]
Timed = list[tuple[Operator, float]]  # with milliseconds
SMALL = (
    convolution(8, 8, 3, 1, 4),
    convolution(16, 16, 3, 1, 4, groups=16),
    convolution(16, 16, 1, 1, 4),
    pointwise("add", 16, (4, 4)),
)
LEAST_MS = 1e-5
LONG = 9  # of a small operator in a row; their time over one operator's tells what a call costs by itself


@dataclass(frozen=True)
class Overheads:
    """What is in a measured time beside operators, in milliseconds."""

    invoke_ms: float  # one call of the runtime
    profiler_ms: float  # within a profiled operator
    runtime: str
    state: dict[str, object]


def overheads(profile: Profile, format: str, progress: Progress) -> Overheads:
    """From small operators, one and several in a row, and for an emulated core the same profiled."""
    rows: list[list[Chain]] = [[(operator,) * count] for operator in SMALL for count in (1, LONG)]
    with tempfile.TemporaryDirectory(prefix="planish-cost-") as scratch:
        probes = [_written(chains, format, Path(scratch), index) for index, chains in enumerate(rows)]
        jobs = [job for job, _ in probes]
        timings = _time(jobs, format, profile, progress)
        times = [statistics.median(timing.samples_ms) for timing in timings]
        steps = [(many - one) / (LONG - 1) for one, many in zip(times[::2], times[1::2])]
        invoke_ms = max(0.0, statistics.median(one - step for one, step in zip(times[::2], steps)))
        profiler_ms = 0.0
        if profile.kind == "emulator":
            chains = [row[0] for row in rows[1::2]]
            job, probe = _written(chains, format, Path(scratch), len(rows))
            profiled = _profile(job, probe, format, profile, progress)
            real = [step for step in steps for _ in range(LONG)]
            profiler_ms = max(0.0, statistics.median(seen - ms for seen, ms in zip(profiled, real)))
    return Overheads(invoke_ms, profiler_ms, timings[0].runtime, timings[0].state)


def time_chains(
    artifacts: Sequence[Sequence[Chain]], profile: Profile, format: str, beside: Overheads, progress: Progress
) -> list[Timed]:
    """The operators of each artifact with what each took, the mean of running its chains in order and in reverse.

    What ran before decides what the caches hold, and what they have to write back. A chain's first operator is left
    out, and what was fused away.
    """
    with tempfile.TemporaryDirectory(prefix="planish-cost-") as scratch:

        def run(chains: Sequence[Chain], index: int) -> list[list[float]]:
            job, probe = _written(chains, format, Path(scratch), index)
            times = iter(_profile(job, probe, format, profile, progress, beside.profiler_ms))
            return [[next(times) for _ in chain] for chain in chains]

        def one(index: int) -> Timed:
            chains = artifacts[index]
            forth, back = run(chains, 2 * index), run(chains[::-1], 2 * index + 1)[::-1]
            progress(f"{sum(map(len, chains))} operators timed ({index + 1} of {len(artifacts)} artifacts)")
            return [
                (operator, (first + second) / 2)
                for chain, there, again in zip(chains, forth, back, strict=True)
                for operator, first, second in list(zip(chain, there, again, strict=True))[1:]
                if first and second
            ]

        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            return list(pool.map(one, range(len(artifacts))))


def time_singles(
    operators: Sequence[Operator], profile: Profile, format: str, beside: Overheads, progress: Progress
) -> Timed:
    """Each operator as an artifact of its own."""
    with tempfile.TemporaryDirectory(prefix="planish-cost-") as scratch:
        jobs = [_written([(op,)], format, Path(scratch), index)[0] for index, op in enumerate(operators)]
        timings = _time(jobs, format, profile, progress)
    # A tenth of a call is what is left of the smallest operators on a noisy host.
    least = beside.invoke_ms / 10
    times = (statistics.median(timing.samples_ms) for timing in timings)
    return [(operator, max(ms - beside.invoke_ms, least)) for operator, ms in zip(operators, times)]


def _written(chains: Sequence[Chain], format: str, folder: Path, index: int) -> tuple[Job, Probe]:
    import numpy

    from targets.probes import onnx, tflite

    probe = {"tflite": tflite.build, "onnx": onnx.build}[format](chains, numpy.random.default_rng(0))
    artifact, inputs = folder / f"probe{index}.{format}", folder / f"probe{index}.npz"
    artifact.write_bytes(probe.content)
    numpy.savez(inputs, **probe.samples)
    return Job(artifact, inputs), probe


def _time(jobs: Sequence[Job], format: str, profile: Profile, progress: Progress) -> list[Timing]:
    from targets.runners import emulator, host

    if profile.kind == "host":
        return host.time_artifacts(jobs, format, progress, budget_s=0.05, least_samples=10, warmup_s=0.01)
    return emulator.time_artifacts(jobs, format, profile, progress, phases=1, together=len(jobs))


def _profile(
    job: Job, probe: Probe, format: str, profile: Profile, progress: Progress, profiler_ms: float = 0.0
) -> list[float]:
    """Milliseconds of each operator of the probe, without `profiler_ms` for each that the runtime ran for it.

    0 for an operator that the runtime fused into another.

    What the runtime runs beside the file's nodes (it reorders data, say) belongs to the node it runs for, the next.
    """
    from targets.runners import emulator

    (profiled,) = emulator.profile_artifact(job, format, profile, progress, phases=1)
    graph = read_graph(job.artifact, format)
    matched = match(profiled.operators, graph, format)
    owners = owned(profiled.operators, profiled.ends, format, parts(profiled.operators, graph, matched))
    of_node = {node: index for index, nodes in enumerate(probe.nodes) for node in nodes}
    times = [0.0] * len(probe.nodes)
    owner = len(probe.nodes) - 1
    for index in reversed(range(len(owners))):
        if index in matched:
            owner = of_node[matched[index]]
        spent = sum(profiled.records[record].cycles for record in owners[index]) / (profile.clock_ghz * 1e6)
        times[owner] += max(spent - profiler_ms, profiler_ms / 10, LEAST_MS)
    return times
