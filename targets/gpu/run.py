"""Runs an artifact on LiteRT's GPU accelerator over lavapipe: the delegate's own shaders, executed here.

Seconds are those of this machine's processors standing in for a GPU. They say how long a check takes, and nothing of
any phone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from targets.debian import Progress
from targets.errors import PlanishError
from targets.gpu.gpus import GPUS
from targets.gpu.places import require
from targets.gpu.process import work
from targets.gpu.report import Report, read_report, tensors_of
from targets.graph import read_graph
from targets.runners.artifact import runtime_version

Precision = Literal["fp16", "fp32"]


@dataclass(frozen=True)
class GpuRun:
    """How a run went; its outputs are in the file that was asked for.

    Attributes:
        report: what ran on the GPU, as the accelerator says.
        setup_seconds: until the first outputs were there; kernels compiled earlier come from the cache.
        seconds: of each sample, from feeding it to its outputs.
        driver: "lavapipe of Mesa 26.2.6-1".
        runtime: "ai-edge-litert 2.3.0".
    """

    report: Report
    precision: Precision
    setup_seconds: float
    seconds: tuple[float, ...]
    driver: str
    runtime: str

    @property
    def accelerated(self) -> bool:
        return self.report.accelerated

    @property
    def gpu_operators(self) -> int:
        return self.report.gpu_operators

    @property
    def cpu_operators(self) -> int:
        return self.report.cpu_operators

    @property
    def refused(self) -> tuple[tuple[str, str], ...]:
        """(kind of operator, reason)."""
        return self.report.refused


def run(
    artifact: Path,
    inputs: Path,
    outputs: Path,
    precision: Precision = "fp16",
    progress: Progress = lambda message: None,
) -> GpuRun:
    """Write the artifact's outputs for every sample of `inputs` to the .npz `outputs`; as `runners.host.run`.

    Args:
        artifact: a .tflite.
        precision: in which the GPU computes; fp16 is the accelerator's default.

    Raises:
        MissingEnvironmentError: `GPU_DRIVER_MISSING`, `GPU_DRIVER_DAMAGED`.
        UsageError: `ARTIFACT_UNUSABLE`.
        PlanishError: `GPU_RUN_FAILED`.
    """
    places = require()
    progress(f"running {artifact.name} on the GPU path, {precision}")
    plan = {
        "mode": "run",
        "artifact": str(artifact.absolute()),
        "inputs": str(inputs.absolute()),
        "outputs": str(outputs.absolute()),
        "precision": precision,
    }
    result, log = work(plan, GPUS["software"], places)
    return GpuRun(
        report=reported(artifact, log, accelerated=result["accelerated"]),
        precision=precision,
        setup_seconds=result["setup_seconds"],
        seconds=tuple(result["seconds"]),
        driver=f"lavapipe of Mesa {places.mesa(mali=False)}",
        runtime=runtime_version("tflite"),
    )


def reported(artifact: Path, log: str, *, accelerated: bool) -> Report:
    """The accelerator's report on `artifact` in the log of a run.

    Raises:
        PlanishError: `GPU_REPORT_UNREADABLE`.
    """
    try:
        graph = read_graph(artifact, "tflite")
        return read_report(log, operators=len(graph), accelerated=accelerated, tensors=tensors_of(artifact))
    except ValueError as error:
        raise PlanishError(
            "it is not known what the GPU takes of the artifact",
            where=artifact.name,
            why=str(error),
            fix="install the ai-edge-litert release that planish asks for: `pip install --upgrade planish`",
            code="GPU_REPORT_UNREADABLE",
        ) from error
