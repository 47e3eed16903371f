"""Runs an artifact on the host's own runtime, sample by sample, as an app would: batch 1, one thread."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np

from pipeline.export.artifact import Artifact, TensorSpec
from pipeline.export.formats import FORMATS
from targets.errors import MissingEnvironmentError, UsageError, VerificationError
from targets.runners.artifact import ArtifactError, open_artifact

_FROM_NCHW = {"NHWC": (0, 2, 3, 1)}
_TO_NCHW = {"NHWC": (0, 3, 1, 2)}


class HostRuntime:
    """An artifact opened once and run on as many samples as wanted.

    Raises:
        MissingEnvironmentError: `NOT_RUN_HERE` for a format whose runtime this machine cannot have.
        VerificationError: `ARTIFACT_CHANGED` when the file is not the one exported; `RUN_FAILED` when the runtime
            refuses it.
        UsageError: `SEVERAL_INPUTS` for a network with more than one input, `SAMPLE_SHAPE` from `run`.
    """

    def __init__(self, artifact: Artifact) -> None:
        require_runnable(artifact)
        artifact.require_unchanged()
        if len(artifact.inputs) != 1:
            raise UsageError(
                "A network with several inputs cannot be checked against samples.",
                where=str(artifact.path),
                why=f"it takes {len(artifact.inputs)} inputs, a sample is one.",
                fix="wrap the network so that it takes one tensor.",
                code="SEVERAL_INPUTS",
            )
        self._artifact = artifact
        try:
            with silent_stderr():
                self._runtime = open_artifact(artifact.path, artifact.format)
        except ArtifactError as error:
            raise self._failed(error) from error

    def run(self, samples: np.ndarray) -> list[np.ndarray]:
        """From `samples` [N, ...] float32 to [N, ...] per output, both in the artifact's layout."""
        specification = self._artifact.inputs[0]
        if samples.shape[1:] != specification.shape[1:]:
            raise UsageError(
                "The samples do not fit the artifact.",
                where=str(self._artifact.path),
                why=f"one sample is {list(samples.shape[1:])}, the input {specification.name!r} takes "
                f"{list(specification.shape[1:])} {specification.layout}.",
                fix="prepare the samples as the network was trained.",
                code="SAMPLE_SHAPE",
            )
        samples = np.ascontiguousarray(samples, dtype=specification.dtype)
        outputs: list[list[np.ndarray]] = [[] for _ in self._artifact.outputs]
        try:
            for index in range(len(samples)):
                self._runtime.feed([samples[index : index + 1]])
                self._runtime.invoke()
                for collected, output in zip(outputs, self._runtime.outputs().values(), strict=True):
                    collected.append(output)
        except (ArtifactError, RuntimeError, ValueError) as error:
            raise self._failed(error) from error
        return [np.concatenate(collected) for collected in outputs]

    def _failed(self, error: Exception) -> VerificationError:
        return VerificationError(
            f"The {self._artifact.format} artifact does not run on this machine.",
            where=str(self._artifact.path),
            why=str(error),
            fix="export it again; if that does not help, choose another format.",
            code="RUN_FAILED",
        )


def require_runnable(artifact: Artifact) -> None:
    """Raises MissingEnvironmentError `NOT_RUN_HERE` for a format that no runtime of this machine takes."""
    format = FORMATS[artifact.format]
    if not format.runs_on_host:
        raise MissingEnvironmentError(
            f"{format.title} artifacts are not run here.",
            where=str(artifact.path),
            why=f"{format.why_not}.",
            fix="check it on a device, or check the same network in a format that runs here: "
            + ", ".join(name for name, other in FORMATS.items() if other.runs_on_host),
            code="NOT_RUN_HERE",
        )


@contextmanager
def silent_stderr() -> Iterator[None]:
    """The runtimes announce their delegates from native code; on a terminal that would tear the live display."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def run_artifact(artifact: Artifact, samples: np.ndarray) -> list[np.ndarray]:
    """Every output of `artifact` on `samples`; shapes as in `HostRuntime.run`."""
    return HostRuntime(artifact).run(samples)


def to_layout(samples: np.ndarray, specification: TensorSpec) -> np.ndarray:
    """From the network's layout (NCHW for images) to the artifact's."""
    order = _FROM_NCHW.get(specification.layout)
    return samples.transpose(order) if order and samples.ndim == len(order) else samples


def from_layout(output: np.ndarray, specification: TensorSpec) -> np.ndarray:
    """From the artifact's layout to the network's."""
    order = _TO_NCHW.get(specification.layout)
    return output.transpose(order) if order and output.ndim == len(order) else output


def predictions(artifact: Artifact, batches: Iterable[np.ndarray]) -> np.ndarray:
    """The artifact's first output on every sample, [N, ...] in the artifact's layout.

    Args:
        batches: [N, C, H, W] float32 each, in the network's layout; any batch sizes, since the artifact runs at 1.
    """
    runtime = HostRuntime(artifact)
    return np.concatenate([runtime.run(to_layout(batch, artifact.inputs[0]))[0] for batch in batches])
