"""What an exported artifact takes on a mobile GPU: *modelled*, with an interval, in the form of a measurement."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from targets.errors import UsageError
from targets.gpu.carried import Precision, is_measured, model_of
from targets.gpu.fusion import Fused, fuse, not_measured
from targets.gpu.graph import read
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
    """An inference; nine of ten networks nobody fitted on were within the interval."""

    milliseconds: float
    low_ms: float
    high_ms: float
    fixed_ms: float  # the part that is no kernel's
    parts: tuple[Part, ...]
    not_measured: tuple[str, ...]  # kinds of operators priced by the bytes they move
    carried_over: bool  # the constants are another GPU's


def modelled(artifact: Path, format: str, profile: Profile, precision: Precision = "fp16") -> Modelled:
    """An inference of `artifact` on the GPU of `profile`, as if the delegate took every operator.

    Raises:
        UsageError: `FORMAT_NOT_MODELLED` for what is no .tflite, `ARTIFACT_UNUSABLE`.
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
    graph = read(artifact)
    parts = tuple(Part(one, model.marginal_ms(one.kernel)) for one in fuse(graph, model.unit.architecture))
    total = model.overhead.fixed_ms + sum(part.milliseconds for part in parts)
    return Modelled(
        total,
        total / model.interval,
        total * model.interval,
        model.overhead.fixed_ms,
        parts,
        tuple(not_measured(graph)),
        not is_measured(profile.gpu),
    )


def measure(artifact: Path, *, format: str, profile: Profile) -> Measurement:
    """A `Measurement` whose runner is "model": one sample, and the model's interval in place of a median's."""
    found = modelled(artifact, format, profile)
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
        },
    )
