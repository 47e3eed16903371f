"""Runs an artifact on its runtime's GPU path over lavapipe: the delegate's own shaders, executed here.

A .tflite runs on LiteRT's GPU accelerator, an .onnx on ONNX Runtime's WebGPU provider.

Seconds are those of this machine's processors standing in for a GPU. They say how long a check takes, and nothing of
any phone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from targets.errors import UsageError
from targets.gpu.gpus import GPUS
from targets.gpu.places import require
from targets.gpu.process import work
from targets.gpu.report import Report, read_report, tensors_of, unreadable
from targets.graph import read_graph
from targets.parts import Progress

Precision = Literal["fp16", "fp32"]


@dataclass(frozen=True)
class GpuRun:
    """How a run went; its outputs are in the file that was asked for.

    Attributes:
        report: what ran on the GPU, as the runtime says; of an .onnx, operators of the optimised graph.
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
        artifact: a .tflite or .onnx.
        precision: in which the GPU computes; fp16 is LiteRT's default. An .onnx is computed as it was exported: "fp32".

    Raises:
        MissingEnvironmentError: `GPU_DRIVER_MISSING`, `GPU_DRIVER_DAMAGED`.
        UsageError: `ARTIFACT_UNUSABLE`, `GPU_PRECISION`.
        PlanishError: `GPU_RUN_FAILED`, `GPU_REPORT_UNREADABLE`.
    """
    if artifact.suffix == ".onnx" and precision != "fp32":
        raise UsageError(
            f"an .onnx cannot be run in {precision}",
            where=str(artifact),
            why="ONNX Runtime computes in the types that are in the file",
            fix="ask for fp32, or run the .tflite of the same network",
            code="GPU_PRECISION",
        )
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
        report=_placed(result["placed"]) if "placed" in result else reported(artifact, log, result["accelerated"]),
        precision=precision,
        setup_seconds=result["setup_seconds"],
        seconds=tuple(result["seconds"]),
        driver=f"lavapipe of Mesa {places.mesa(mali=False)}",
        runtime=result["runtime"],
    )


def reported(artifact: Path, log: str, accelerated: bool) -> Report:
    """The accelerator's report on the .tflite `artifact` in the log of a run.

    Raises:
        PlanishError: `GPU_REPORT_UNREADABLE`.
    """
    try:
        graph = read_graph(artifact, "tflite")
        return read_report(log, operators=len(graph), accelerated=accelerated, tensors=tensors_of(artifact))
    except ValueError as error:
        fix = "install the ai-edge-litert release that planish asks for: `pip install --upgrade planish`"
        raise unreadable(artifact, error, fix) from error


def _placed(operators: Sequence[tuple[str, bool]]) -> Report:
    """Of ONNX Runtime's own record of where each operator ran."""
    on_cpu = [kind for kind, on_gpu in operators if not on_gpu]
    reason = "ONNX Runtime has it run on the CPU"
    return Report(len(operators) - len(on_cpu), len(on_cpu), tuple((kind, reason) for kind in dict.fromkeys(on_cpu)))
