"""What an inference asks of a GPU, counted by the layer, and what Mesa's compilers make of its kernels.

On `software` kernels are those for an unknown GPU. On a phone's GPU they are what the accelerator chooses for it, and
each comes with the statistics of its compiled code. Those are static: a loop counts once, caches and clocks take no
part, and Mesa's compilers are not the vendors'. Kept in the cache by everything they depend on.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from targets.arm import parts as arm
from targets.cache import cache_root, write_atomic
from targets.errors import UsageError
from targets.gpu import gpus, process
from targets.gpu.gpus import Gpu, find_gpu
from targets.gpu.places import LAYER_LIBRARY, Places, require
from targets.gpu.run import Precision
from targets.parts import Progress
from targets.runners import artifact as artifact_module
from targets.runners.artifact import runtime_version

INFERENCES = 3  # the last counts: the first prepares, and only the second is like all others

Groups = tuple[int, int, int]


@dataclass(frozen=True)
class Counts:
    """Of one inference, all else being prepared.

    Attributes:
        gpu: that was driven: "adreno-630", also where it stood in for another.
        driver: "Mesa 26.2.6-1".
        dispatches: calls of a kernel.
        workgroups, invocations: of all dispatches together.
        barriers, submits: commands to wait, and to start.
        copies, copied_bytes: between buffers; of copies from and to images the bytes are not counted.
        kernels: different ones among the dispatches.
        allocated_bytes: of GPU memory, from opening the artifact on.
    """

    gpu: str
    driver: str
    precision: Precision
    dispatches: int
    workgroups: int
    invocations: int
    barriers: int
    submits: int
    copies: int
    copied_bytes: int
    kernels: int
    allocated_bytes: int


@dataclass(frozen=True)
class KernelStatistics:
    """A kernel that an inference dispatches, compiled for one GPU.

    Attributes:
        order: of its dispatches in the inference, from 0.
        workgroup: invocations of a workgroup along x, y, z.
        groups: workgroups of each dispatch along x, y, z.
        spirv_words: size of the code that the driver was given.
        statistics: by the names of Mesa's compiler, e.g. "Instruction Count", "Registers used" of Adreno, "Cycles" of
            Mali; none on `software`.
    """

    order: tuple[int, ...]
    workgroup: Groups
    groups: tuple[Groups, ...]
    spirv_words: int
    statistics: dict[str, float]

    @property
    def dispatches(self) -> int:
        return len(self.groups)

    @property
    def invocations(self) -> int:
        """Of all its dispatches."""
        return math.prod(self.workgroup) * sum(math.prod(groups) for groups in self.groups)


def count(
    artifact: Path,
    gpu: str = "software",
    precision: Precision = "fp16",
    progress: Progress = lambda message: None,
) -> Counts:
    """What an inference of `artifact`, .tflite or .onnx, asks of `gpu`, a name of `gpus.GPUS` or `gpus.STAND_INS`.

    An .onnx is computed as it was exported, whatever `precision`.

    Raises:
        MissingEnvironmentError: `GPU_DRIVER_MISSING`, `GPU_DRIVER_DAMAGED`, for Mali GPUs `EMULATOR_MISSING`, too.
        UsageError: `GPU_UNKNOWN`, `GPU_FORMAT`, `ARTIFACT_UNUSABLE`.
        PlanishError: `GPU_RUN_FAILED`.
    """
    counted = _counted(artifact, find_gpu(gpu), precision, progress)
    last = counted["phases"][-1]
    names = ("dispatches", "workgroups", "invocations", "barriers", "submits", "copies", "copied_bytes")
    return Counts(
        gpu=find_gpu(gpu).name,
        driver=counted["driver"],
        precision=precision,
        **{name: last[name] for name in names},
        kernels=len({kernel for _, kernel, *_ in _dispatches(counted)}),
        allocated_bytes=sum(phase["allocated_bytes"] for phase in counted["phases"]),
    )


def compiled(
    artifact: Path,
    gpu: str,
    precision: Precision = "fp16",
    progress: Progress = lambda message: None,
) -> tuple[KernelStatistics, ...]:
    """The kernels that an inference dispatches, in the order of their first dispatch; as `count`."""
    counted = _counted(artifact, find_gpu(gpu), precision, progress)
    by_kernel: dict[int, list[tuple[int, Groups]]] = {}
    for order, (_, kernel, *groups) in enumerate(_dispatches(counted)):
        by_kernel.setdefault(kernel, []).append((order, tuple(groups)))
    return tuple(
        KernelStatistics(
            order=tuple(order for order, _ in calls),
            workgroup=tuple(counted["kernels"][kernel]["workgroup"]),
            groups=tuple(groups for _, groups in calls),
            spirv_words=counted["kernels"][kernel]["spirv_words"],
            statistics=counted["kernels"][kernel]["statistics"],
        )
        for kernel, calls in by_kernel.items()
    )


def _dispatches(counted: dict[str, Any]) -> list[list[int]]:
    """Those of the last inference: [phase, kernel, groups x, y, z]."""
    return [each for each in counted["dispatches"] if each[0] == len(counted["phases"]) - 1]


def _counted(artifact: Path, gpu: Gpu, precision: Precision, progress: Progress) -> dict[str, Any]:
    if gpu.is_mali and artifact.suffix == ".onnx":
        raise UsageError(
            "an .onnx cannot be compiled for a Mali GPU",
            where=str(artifact),
            why="the driver of Mali GPUs runs in an emulated Python, whose ONNX Runtime has no WebGPU provider",
            fix="compile the .tflite of the same network",
            code="GPU_FORMAT",
        )
    places = require(mali=gpu.is_mali)
    kept = _remembered(artifact, gpu, precision, places)
    try:
        return json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        pass
    progress(f"compiling the kernels of {artifact.name} for {gpu.title}")
    with tempfile.TemporaryDirectory(prefix="planish-gpu-") as scratch:
        counts = Path(scratch) / "counts.json"
        plan = {
            "mode": "count",
            "artifact": str(artifact.absolute()),
            "precision": precision,
            "layer": str((places.mali_layer if gpu.is_mali else places.layer) / LAYER_LIBRARY),
            "counts": str(counts),
            "inferences": INFERENCES,
        }
        process.work(plan, gpu, places)
        counted = json.loads(counts.read_text(encoding="utf-8"))
    counted["driver"] = f"Mesa {places.mesa(mali=gpu.is_mali)}"
    write_atomic(kept, json.dumps(counted))
    return counted


def _remembered(artifact: Path, gpu: Gpu, precision: Precision, places: Places) -> Path:
    """Where the counts are kept: named by everything they depend on."""
    sources = [process.WORKER, Path(gpus.__file__), Path(artifact_module.__file__)]
    made_of = [
        *(hashlib.sha256(path.read_bytes()).hexdigest() for path in (artifact, *sources)),
        *(place.name for place in places.of(mali=gpu.is_mali)),
        places.mesa(mali=gpu.is_mali),
        *([arm.emulator().sysroot.name] if gpu.is_mali else []),
        runtime_version("tflite"),
        gpu.name,
        precision,
        str(INFERENCES),
    ]
    name = hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:24]
    return cache_root() / "gpu" / "counts" / name[:2] / f"{name}.json"
