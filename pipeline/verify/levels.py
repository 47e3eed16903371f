"""The levels of parity: the exported program, and the artifact on this machine, the emulated phone, the GPU path.

Each compares with the network run eagerly. The first level to fail says where the fault is: in torch.export, in the
converter or the host's runtime, in the phone's kernels.
"""

from __future__ import annotations

import importlib.metadata
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from pipeline.export.artifact import Artifact, sha256_of
from pipeline.export.conversion import fixed_at_batch_one
from pipeline.export.formats import FORMATS
from pipeline.model.ingest import load_program
from pipeline.verify.execute import HostRuntime, from_layout, to_layout
from pipeline.verify.parity import Level, Parity, judge
from pipeline.verify.reference import Reference
from pipeline.verify.tolerance import FP16, FP32, Tolerance
from targets.errors import MissingEnvironmentError, PlanishError, UsageError, VerificationError
from targets.gpu import run as gpu_path
from targets.profile import Profile
from targets.runners import emulator
from targets.runners.artifact import runtime_version

EMULATED_SAMPLES, EMULATED_EDGE_SAMPLES = 4, 1  # emulation does some 2e8 multiply-accumulates a second
GPU_SAMPLES = 16
Progress = Callable[[str], None]


def check_program(program: Path, reference: Reference, tolerance: Tolerance = FP32) -> Parity:
    """The program saved at `program` (.pt2), read back and fixed at batch 1 as every converter gets it."""
    runner = f"torch {importlib.metadata.version('torch')}"
    try:
        module = fixed_at_batch_one(load_program(program)).module()
    except ValueError as error:
        reason = f"it has no batch of 1: {error}"
        return Parity(sha256_of(program), "pt2", "program", runner, "failed", (reason,), (), None, tolerance)
    with torch.inference_mode():
        rows = [tree_leaves(module(sample)) for sample in torch.from_numpy(reference.samples).split(1)]
    outputs = [torch.cat(parts).numpy() for parts in zip(*rows)]
    return judge(
        reference,
        outputs,
        [f"output_{index}" for index in range(len(outputs))],
        artifact_sha256=sha256_of(program),
        format="pt2",
        level="program",
        runner=runner,
        tolerance=tolerance,
    )


def check_host(artifact: Artifact, reference: Reference, tolerance: Tolerance = FP32) -> Parity:
    """The artifact on this machine's own runtime.

    Raises:
        VerificationError: `ARTIFACT_CHANGED`.
        UsageError: as `HostRuntime`.
    """
    kind = FORMATS[artifact.format]
    if not kind.runs_on_host:
        return _not_run(artifact, "host", kind.why_not, tolerance)
    try:
        found = HostRuntime(artifact).run(to_layout(reference.samples, artifact.inputs[0]))
    except VerificationError as error:
        if error.code != "RUN_FAILED":
            raise
        return _unjudged(artifact, "host", _runner(artifact), "failed", f"it does not run: {error.why}", tolerance)
    return _judged(artifact, "host", _runner(artifact), reference, found, tolerance)


def check_emulator(
    artifact: Artifact,
    reference: Reference,
    profile: Profile | None,
    tolerance: Tolerance = FP32,
    *,
    samples: int = EMULATED_SAMPLES,
    progress: Progress = lambda message: None,
) -> Parity:
    """The artifact on the ARM64 phone that `profile` describes; "not run here" where there is none to emulate.

    Args:
        samples: of the user's own to run, beside one of each edge case; fewer for a large network.
    """
    kind = FORMATS[artifact.format]
    if not kind.runs_on_host:
        return _not_run(artifact, "emulator", kind.why_not, tolerance)
    if profile is None or profile.kind != "emulator":
        return _not_run(artifact, "emulator", "the target is no emulated phone", tolerance)
    runner = f"{_runner(artifact)} on {profile.name}"
    reference = reference.first(samples, EMULATED_EDGE_SAMPLES)
    try:
        found = _emulated(artifact, reference.samples, profile, progress)
    except MissingEnvironmentError as error:
        return _not_run(artifact, "emulator", f"{error.what}; {error.fix}", tolerance)
    except UsageError as error:  # ARTIFACT_UNUSABLE
        return _unjudged(artifact, "emulator", runner, "failed", f"it does not run: {error.why}", tolerance)
    except PlanishError as error:  # EMULATION_FAILED
        return _unjudged(artifact, "emulator", runner, "failed", f"{error.what}: {error.why}", tolerance)
    return _judged(artifact, "emulator", runner, reference, found, tolerance)


def check_gpu(
    artifact: Artifact,
    reference: Reference,
    precision: Literal["fp16", "fp32"] = "fp16",
    *,
    samples: int = GPU_SAMPLES,
    progress: Progress = lambda message: None,
) -> Parity:
    """The artifact by the shaders of LiteRT's GPU delegate, executed by a software driver on this machine.

    What the delegate leaves to the CPU runs there, as on a phone.

    Args:
        precision: in which the GPU computes; half is what phones are asked for.
        samples: of the user's own to run, beside one of each edge case.
    """
    tolerance = FP16 if precision == "fp16" else FP32
    if artifact.format != "tflite":
        return _not_run(artifact, "gpu", "the GPU path runs .tflite files", tolerance)
    reference = reference.first(samples, EMULATED_EDGE_SAMPLES)
    try:
        with _scratch(artifact, reference.samples) as (inputs, outputs):
            ran = gpu_path.run(artifact.path, inputs, outputs, precision, progress)
            found = _outputs(outputs)
    except MissingEnvironmentError as error:
        return _not_run(artifact, "gpu", f"{error.what}; {error.fix}", tolerance)
    except PlanishError as error:  # ARTIFACT_UNUSABLE, GPU_RUN_FAILED
        return _unjudged(artifact, "gpu", precision, "failed", f"it does not run: {error.why}", tolerance)
    return _judged(artifact, "gpu", f"{ran.runtime}, {ran.driver}, {precision}", reference, found, tolerance)


def _emulated(artifact: Artifact, samples: np.ndarray, profile: Profile, progress: Progress) -> list[np.ndarray]:
    """Outputs [N, ...] in the artifact's layout, in the order of the artifact."""
    with _scratch(artifact, samples) as (inputs, outputs):
        emulator.run(artifact.path, artifact.format, inputs, outputs, profile, progress)
        return _outputs(outputs)


@contextmanager
def _scratch(artifact: Artifact, samples: np.ndarray) -> Iterator[tuple[Path, Path]]:
    """The samples in the artifact's layout and type as an .npz, and where the outputs belong."""
    specification = artifact.inputs[0]
    with tempfile.TemporaryDirectory(prefix="planish-parity-") as scratch:
        inputs, outputs = Path(scratch) / "inputs.npz", Path(scratch) / "outputs.npz"
        np.savez(inputs, x=np.ascontiguousarray(to_layout(samples, specification), specification.dtype))
        yield inputs, outputs


def _outputs(path: Path) -> list[np.ndarray]:
    with np.load(path) as archive:
        return [archive[name] for name in archive.files]


def _judged(
    artifact: Artifact,
    level: Level,
    runner: str,
    reference: Reference,
    found: Sequence[np.ndarray],
    tolerance: Tolerance,
) -> Parity:
    return judge(
        reference,
        [from_layout(output, specification) for output, specification in zip(found, artifact.outputs, strict=True)],
        [specification.name for specification in artifact.outputs],
        artifact_sha256=artifact.sha256,
        format=artifact.format,
        level=level,
        runner=runner,
        tolerance=tolerance,
    )


def _not_run(artifact: Artifact, level: Level, reason: str, tolerance: Tolerance) -> Parity:
    return _unjudged(artifact, level, "", "not run here", reason, tolerance)


def _unjudged(artifact: Artifact, level: Level, runner: str, verdict: str, reason: str, tolerance: Tolerance) -> Parity:
    return Parity(artifact.sha256, artifact.format, level, runner, verdict, (reason,), (), None, tolerance)


def _runner(artifact: Artifact) -> str:
    return runtime_version(artifact.format)
