"""How much memory an artifact needs in its runtime, as this machine's kernel counts it."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from targets.errors import MissingEnvironmentError
from targets.runners import Progress, child, executorch
from targets.runners.artifact import runtime_version

WORKER = "targets.runners.memory_worker"
CHILDREN = 3  # whose median counts; they seldom differ
_KEPT = str(64 * 1024)  # bytes of freed memory that glibc may keep, and from which on a block is a mapping of its own
SETTINGS = {
    "PYTHONHASHSEED": "0",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": _KEPT,
    "MALLOC_TRIM_THRESHOLD_": _KEPT,
    "MALLOC_TOP_PAD_": "0",
}


@dataclass(frozen=True)
class PeakMemory:
    """Bytes by which one artifact raises the resident peak of a process that has loaded its runtime.

    Attributes:
        format: of the artifact.
        runtime: that ran it, with its version.
        threads: of the runtime.
        children_bytes: what each child saw, in order of time.
    """

    format: str
    runtime: str
    threads: int
    children_bytes: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """The median child's; one that was seen, not a mean of two."""
        return statistics.median_low(self.children_bytes)

    @property
    def low_bytes(self) -> int:
        return min(self.children_bytes)

    @property
    def high_bytes(self) -> int:
        return max(self.children_bytes)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"children_bytes": list(self.children_bytes)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PeakMemory:
        """The inverse of `to_json`."""
        return cls(**{**data, "children_bytes": tuple(data["children_bytes"])})


def peak_memory(
    artifact: Path,
    format: str,
    inputs: Path,
    threads: int = 1,
    *,
    children: int = CHILDREN,
    progress: Progress = lambda message: None,
) -> PeakMemory:
    """How far the resident peak (Linux's VmHWM) of a process rises from the loaded runtime to after eight inferences.

    In it are the artifact's file as far as the runtime maps or reads it, weights as they are packed for the kernels,
    arenas of activations, inputs and outputs, the runtime's own state for the graph, and what loading needs for a
    moment. Not in it are the interpreter, the runtime's libraries (their code is brought in before) and the sample. The
    input is a copy in memory that the process had before; the runtime's copies of it count.

    It is a figure of this machine. XNNPACK and ONNX Runtime pack weights and size scratch memory for the kernels that
    they choose by the CPU, so a phone's figure differs, by the rounding of channels to a vector's width above all; a
    mapped file counts here in full, while a phone under pressure may drop its pages; and Android's allocator rounds in
    another way. Freed memory goes back at once here (`SETTINGS`), where an app's allocator may keep some. Delegates
    for GPUs and neural engines hold memory of their own, of which nothing is seen here.

    The kernel counts exactly what is held in the end, and to some 256 KiB what was held for a moment before.

    Args:
        format: "tflite", "onnx", "ort" or "pte".
        inputs: .npz as for `targets.measure.measure`; the first sample is run.
        threads: of the runtime, each on a CPU of its own.
        children: processes that run it one after the other.

    Raises:
        UsageError: `ARTIFACT_UNUSABLE`. PlanishError: `RUNTIME_FAILED`.
        MissingEnvironmentError: `MEMORY_UNKNOWN` where the kernel does not count it, `EXECUTORCH_RUNNER_MISSING`.
    """
    if format == "pte":
        executorch.library()  # compiled here, where an error is told as one
    with tempfile.TemporaryDirectory(prefix="planish-memory-") as scratch:
        plan = {
            "format": format,
            "threads": threads,
            "artifact": str(artifact.absolute()),
            "inputs": str(inputs.absolute()),
            "prepared": f"{scratch}/sample.npz",
        }
        child.result_of(WORKER, {**plan, "mode": "prepare"}, [artifact])
        growths = []
        for number in range(1, children + 1):
            progress(f"peak memory of {artifact.name}, {number} of {children}")
            result = child.result_of(WORKER, {**plan, "mode": "watch"}, [artifact], SETTINGS)
            if "unwatched" in result:
                raise MissingEnvironmentError(
                    "the memory of an artifact cannot be measured on this machine",
                    where="the peak of resident memory, VmHWM in /proc/self/status",
                    why=result["unwatched"],
                    fix="measure on Linux with glibc, where a process may write its own /proc/self/clear_refs",
                    code="MEMORY_UNKNOWN",
                )
            growths.append(result["growth"])
    return PeakMemory(format, runtime_version(format), threads, tuple(growths))
