"""What an exported artifact takes on a mobile GPU: *modelled*, with an interval, in the form of a measurement.

Operators that the delegate leaves to the CPU are priced as the CPU's, and what crosses is added (`split`).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from targets.delegation.gpu import on_gpu
from targets.errors import MissingEnvironmentError, UsageError
from targets.gpu.carried import Precision, is_measured, model_of
from targets.gpu.fusion import Fused, fuse, not_measured
from targets.gpu.graph import read
from targets.gpu.report import unreadable
from targets.gpu.split import Split, split
from targets.measure import Measurement
from targets.profile import Profile

RUNNER = "model"
RUNTIME = "modelled: TFLite 2.10 GPU delegate, fp16"


@dataclass(frozen=True)
class Part:
    """One kernel of an inference."""

    fused: Fused
    milliseconds: float


@dataclass(frozen=True)
class Modelled:
    """An inference; nine of ten networks nobody fitted on were within the interval.

    Of a split inference the interval is that of the GPU's part and the CPU's cost table; what the two sides wait for
    each other is in no figure.
    """

    milliseconds: float
    low_ms: float
    high_ms: float
    fixed_ms: float  # the part that is no kernel's; 0 where nothing runs on the GPU
    parts: tuple[Part, ...]
    not_measured: tuple[str, ...]  # kinds of operators priced by the bytes they move
    carried_over: bool  # the constants are another GPU's
    split: Split | None = None  # what is not the GPU's


def modelled(
    artifact: Path,
    format: str,
    profile: Profile,
    precision: Precision = "fp16",
    taken: Collection[int] | None = None,
) -> Modelled:
    """An inference of `artifact` on the GPU of `profile`.

    Args:
        taken: places in the file of the operators that the delegate takes; None: all.

    Raises:
        UsageError: `FORMAT_NOT_MODELLED` for what is no .tflite, `ARTIFACT_UNUSABLE`.
        MissingEnvironmentError: `COST_TABLE_MISSING`, of what is split.
    """
    if format != "tflite":
        raise UsageError(
            f"an artifact of format '{format}' cannot be modelled on {profile.name}",
            where=str(artifact),
            why="the model is of TFLite's GPU delegate and reads .tflite files",
            fix="export to tflite",
            code="FORMAT_NOT_MODELLED",
        )
    model = model_of(profile, precision)
    whole = read(artifact)
    graph = whole if taken is None else whole.part(taken)
    left = None if taken is None else split(artifact, whole, taken, profile)
    parts = tuple(Part(one, model.marginal_ms(one.kernel)) for one in fuse(graph, model.unit.architecture))
    fixed_ms = model.overhead.fixed_ms if graph.nodes else 0.0
    own_ms = fixed_ms + sum(part.milliseconds for part in parts)
    crossing_ms = left.crossing_ms if left else 0.0
    return Modelled(
        own_ms + (left.milliseconds if left else 0.0),
        own_ms / model.interval + (left.low_ms if left else 0.0) + crossing_ms,
        own_ms * model.interval + (left.high_ms if left else 0.0) + crossing_ms,
        fixed_ms,
        parts,
        tuple(not_measured(graph)),
        not is_measured(profile.gpu),
        left,
    )


def measure(artifact: Path, *, format: str, profile: Profile) -> Measurement:
    """A `Measurement` whose runner is "model": one sample, and the model's interval in place of a median's.

    LiteRT's delegate is asked what it takes of the artifact. Where its driver is not set up nobody can be asked; then
    the artifact is priced as if all of it were taken, and `state` says "placed": False.

    Raises:
        as `modelled`; PlanishError: `GPU_RUN_FAILED`, `GPU_REPORT_UNREADABLE`.
    """
    taken = _taken(artifact) if format == "tflite" else None
    found = modelled(artifact, format, profile, taken=taken)
    return Measurement(
        artifact_sha256=hashlib.sha256(artifact.read_bytes()).hexdigest(),
        format=format,
        target=profile.name,
        profile_version=profile.version,
        runner=RUNNER,
        runtime=RUNTIME,
        n=1,
        median_ms=found.milliseconds,
        p90_ms=found.milliseconds,
        mad_ms=0.0,
        low_ms=found.low_ms,
        high_ms=found.high_ms,
        samples_ms=(found.milliseconds,),
        instructions=None,
        cycles=None,
        state={
            "modelled": True,
            "dispatches": sum(part.fused.kernel.dispatches for part in found.parts),
            "priced_by_bytes": list(found.not_measured),
            "carried_over": found.carried_over,
            "placed": taken is not None,
            "split": _described(found, modelled(artifact, format, profile)) if found.split else None,
        },
    )


def _taken(artifact: Path) -> Collection[int] | None:
    try:
        return on_gpu(artifact).taken
    except MissingEnvironmentError:
        return None
    except ValueError as error:
        fix = "replace what the accelerator does not take; `planish inspect --format tflite` names it"
        raise unreadable(artifact, error, fix) from error


def _described(found: Modelled, whole: Modelled) -> dict[str, Any]:
    """The state of a split inference; `whole` is the same if the delegate took everything."""
    split = found.split
    return {
        "partitions": 1 if found.parts else 0,
        "left": dict(Counter(split.left)),
        "left_ms": split.left_ms,
        "priced_by_bytes": list(split.priced_by_bytes),
        "cpu": split.cpu,
        "stands_in": split.stands_in,
        "crossing_bytes": split.crossing_bytes,
        "crossing_ms": split.crossing_ms,
        "split_ms": split.milliseconds,
        "whole_ms": whole.milliseconds,
    }
