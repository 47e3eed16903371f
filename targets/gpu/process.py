"""The child process in which LiteRT drives a GPU: its log is kept, its time is limited, and it may not survive."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy

from targets.errors import PlanishError
from targets.gpu.gpus import Gpu, command, environment
from targets.gpu.places import Places
from targets.runners import ending, unusable

WORKER = Path(__file__).with_name("worker.py")
LIMIT_S = 900  # of a run; the first compiles the kernels for this machine's processors
NOISE = (
    "INFO:",
    "WARNING:",
    "Warning:",
    "I0000",
    "W0000",
    "└ Could not load",
    "===",
    "third_party",
)  # of routine lines
NO_GPU = "No adapters found"


def work(plan: dict[str, Any], gpu: Gpu, places: Places, *, limit_s: float = LIMIT_S) -> tuple[dict[str, Any], str]:
    """The worker's result on `plan`, and its log.

    Raises:
        UsageError: `ARTIFACT_UNUSABLE`.
        PlanishError: `GPU_RUN_FAILED`: the runtime or the driver did not survive, or not in time.
    """
    onnx = plan.get("artifact", "").endswith(".onnx")
    named = Path(plan.get("artifact") or plan["artifacts"][0]).name
    with tempfile.TemporaryDirectory(prefix="planish-gpu-") as scratch:
        plan_path, result_path, log_path = (Path(scratch) / name for name in ("plan.json", "result.json", "log"))
        plan_path.write_text(json.dumps(plan), encoding="utf-8")
        try:
            with open(log_path, "wb") as log:
                done = subprocess.run(
                    command(gpu, places, [str(WORKER), str(plan_path), str(result_path)]),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    check=False,
                    cwd=scratch,
                    timeout=limit_s,
                    env=environment(gpu, places, counted="counts" in plan, webgpu=onnx),
                )
        except subprocess.TimeoutExpired as error:
            raise _failed(f"the GPU run was ended after {limit_s:.0f} seconds", named, _last(log_path)) from error
        except OSError as error:  # the dynamic loader or QEMU
            raise _failed("the GPU run could not be started", named, str(error)) from error
        text = log_path.read_text(encoding="utf-8", errors="replace")
        if done.returncode != 0 or not result_path.exists():
            what = f"the runtime did not survive on {gpu.title} ({ending(done.returncode)})"
            raise _failed(what, named, _last(log_path))
        result = json.loads(result_path.read_text(encoding="utf-8"))
    if "error" in result:
        if NO_GPU in text:
            raise _failed(f"LiteRT finds no GPU ({gpu.title})", named, _told(text))
        raise unusable(plan.get("artifact", named), " / ".join(filter(None, (result["error"], _told(text)))))
    return result, text


def try_out(gpu: Gpu, places: Places) -> None:
    """Run a convolution, and see that it was the GPU that ran it.

    Raises:
        PlanishError: `GPU_RUN_FAILED`.
    """
    from targets.probes import tflite
    from targets.probes.design import convolution

    probe = tflite.build([[convolution(3, 8, 3, 1, 12)]], numpy.random.default_rng(1))
    with tempfile.TemporaryDirectory(prefix="planish-gpu-") as scratch:
        artifact, inputs, outputs = (Path(scratch) / name for name in ("probe.tflite", "in.npz", "out.npz"))
        artifact.write_bytes(probe.content)
        numpy.savez(inputs, **probe.samples)
        plan = {
            "mode": "run",
            "artifact": str(artifact),
            "inputs": str(inputs),
            "outputs": str(outputs),
            "precision": "fp32",
        }
        result, log = work(plan, gpu, places)
    if not result["accelerated"]:
        raise _failed("LiteRT runs a convolution on the CPU", artifact.name, _told(log))


def _failed(what: str, named: str, why: str) -> PlanishError:
    return PlanishError(
        what,
        where=named,
        why=why or "no output",
        fix="run the same command again; if it fails the same way, report this with the artifact",
        code="GPU_RUN_FAILED",
    )


def _last(log_path: Path) -> str:
    return _told(log_path.read_text(encoding="utf-8", errors="replace"))


def _told(log: str) -> str:
    """The last lines of a log that are no routine."""
    lines = [line for line in log.strip().splitlines() if line.strip() and not line.startswith(NOISE)]
    return " / ".join(lines[-3:])
