"""The typed records of a run: what `report.json` and `bundle/manifest.json` hold, and nothing else.

Every record is frozen and refuses unknown fields; units stand in the names. A prediction (`predicted_ms`) is kept
beside the measurement it led to and is never a result. The JSON of a record reads back into an equal record.
"""

from __future__ import annotations

import math
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, ValidationError, field_validator, model_validator

from reports.schema import Count, Milliseconds, Percent, Record, Sha256, VersionedRecord
from reports.verification import DelegationRecord, ExportRecord, ParityRecord
from targets.errors import UsageError


class LayerRecord(Record):
    """One layer of a network, e.g. `conv 3×3, 24→96, stride 1`; `predicted_ms` comes from the cost table."""

    name: str
    kind: str
    description: str
    parameters: Count
    macs: Count
    predicted_ms: Milliseconds | None


class EditRecord(Record):
    """One change to the network; `summary` is a sentence for a person, `entropy_bits` the site's on/off entropy."""

    kind: str
    site: str
    summary: str
    predicted_saving_ms: float | None
    damage: float | None
    entropy_bits: float | None


class RejectedRecord(Record):
    """A change that was considered and not made."""

    kind: str
    site: str
    reason: str


class MeasurementRecord(Record):
    """How long one inference of one artifact takes on the target; `low_ms`..`high_ms` is the median's interval."""

    format: str
    target: str
    runner: str
    runtime: str
    n: Annotated[int, Field(ge=1)]
    median_ms: Annotated[float, Field(gt=0)]
    p90_ms: Milliseconds
    low_ms: Milliseconds
    high_ms: Milliseconds
    instructions: Count | None
    cycles: Annotated[float, Field(ge=0)] | None
    artifact_sha256: Sha256
    bytes: Count
    file: str | None = None
    """Path of the artifact, relative to the run directory."""
    confidence_percent: Percent | None = None
    """Confidence level of the interval; None where it is not a statistical one."""
    threads: Annotated[int, Field(ge=1)] = 1
    """Of the runtime, each on a core of its own."""


class OperatorRecord(Record):
    """One operator of an inference on an emulated target; the last one of an inference is the runtime's own work.

    `share` is of the inference's time, `macs` of one sample. `bound` is what most of its cycles went to. The peak is
    of the cores it ran on, in its precision; None where that is unknown.
    """

    name: str
    kind: str
    module: str
    shape: str
    out_shape: tuple[int, ...]
    share: Annotated[float, Field(ge=0)]
    milliseconds: Milliseconds
    cycles: Annotated[float, Field(ge=0)]
    instructions: Count
    macs: Count
    flop_per_cycle: Annotated[float, Field(ge=0)]
    peak_flop_per_cycle: Annotated[float, Field(gt=0)] | None
    bound: Literal["compute", "branches", "L1", "L2", "L3", "DRAM", "threads"]

    @property
    def peak_share(self) -> float | None:
        """FLOP a cycle of the most that is possible."""
        return self.flop_per_cycle / self.peak_flop_per_cycle if self.peak_flop_per_cycle else None


class QualityRecord(Record):
    """Share of samples answered rightly, with its 95 % Wilson interval."""

    metric: Literal["top-1", "agreement with the original"]
    value_percent: Percent
    low_percent: Percent
    high_percent: Percent
    samples: Annotated[int, Field(ge=1)]
    evaluated_on: Literal["artifact", "network"]

    @classmethod
    def of_counts(
        cls,
        metric: Literal["top-1", "agreement with the original"],
        correct: int,
        samples: int,
        evaluated_on: Literal["artifact", "network"],
    ) -> QualityRecord:
        """From counts. Interval: Wilson 1927, score interval at z = 1.96; it stays sensible at 0 % and 100 %."""
        share, z = correct / samples, 1.959964
        spread = 1 + z * z / samples
        centre = (share + z * z / (2 * samples)) / spread
        half = z * math.sqrt(share * (1 - share) / samples + z * z / (4 * samples * samples)) / spread
        return cls(
            metric=metric,
            value_percent=100 * share,
            low_percent=100 * max(0.0, min(share, centre - half)),
            high_percent=100 * min(1.0, max(share, centre + half)),
            samples=samples,
            evaluated_on=evaluated_on,
        )


class FailureRecord(Record):
    """The error that ended a probe: the fields of `PlanishError.to_json()`, and the stage it came from."""

    code: str
    exit_code: int
    what: str
    where: str
    why: str
    fix: str
    stage: str | None = None


class CandidateRecord(Record):
    """One probe: index 0 is the unchanged base. `verdict` judges latency alone; `reasons` says everything else.

    `margin_percent` is the measured median against the target, in percent of the target: −3 is 3 % faster than
    asked, +5 is 5 % too slow. `budget_ms` is the predicted latency that planning was asked for.
    """

    index: Count
    budget_ms: Milliseconds | None
    predicted_ms: Milliseconds | None
    edits: tuple[EditRecord, ...] = ()
    rejected: tuple[RejectedRecord, ...] = ()
    layers: tuple[LayerRecord, ...] = ()
    parameters: Count
    macs: Count
    exports: tuple[ExportRecord, ...] = ()
    parity: tuple[ParityRecord, ...] = ()
    delegation: tuple[DelegationRecord, ...] = ()
    measurements: tuple[MeasurementRecord, ...] = ()
    operators: tuple[OperatorRecord, ...] = ()
    """Of the artifact in the primary format, where it was broken down."""
    quality: QualityRecord | None = None
    verdict: Literal["base", "met", "above", "undecided"]
    margin_percent: float | None = None
    reasons: tuple[str, ...] = ()
    seconds: dict[str, Annotated[float, Field(ge=0)]] = {}
    failure: FailureRecord | None = None

    def measurement(self, format: str) -> MeasurementRecord | None:
        """The measurement of one format's artifact, None where that was never measured."""
        return next((each for each in self.measurements if each.format == format), None)

    @property
    def outcome(self) -> str:
        """The verdict in one word, `failed` where an error ended the probe."""
        return "failed" if self.failure else self.verdict


class TargetRecord(Record):
    """The phone aimed at; `kind` says how it is reached (host, emulator, device)."""

    name: str
    title: str
    core: str
    clock_ghz: Annotated[float, Field(gt=0)] | None
    kind: str
    profile_version: str


class GoalRecord(Record):
    """What was asked for; `primary_format` is the artifact whose latency decides."""

    latency_ms: Annotated[float, Field(gt=0)]
    max_drop_points: Annotated[float, Field(ge=0)] | None
    formats: tuple[str, ...]
    primary_format: str

    @model_validator(mode="after")
    def _primary_is_asked_for(self) -> GoalRecord:
        if self.primary_format not in self.formats:
            raise ValueError(f"primary_format {self.primary_format!r} is not among formats {self.formats}")
        return self


class RunRecord(VersionedRecord):
    """A whole run: `report.json`. `candidates` are the probes after the base, in the order they were made.

    `winner` is the index of the candidate handed over (0 when the base already meets the target); `best` the closest
    one kept when the target was not met.
    """

    planish_version: str
    name: str
    model: str
    data: str
    target: TargetRecord
    goal: GoalRecord
    verdict: Literal["met", "not-met", "undecided", "verification-failed"]
    exit_code: int
    headline: str
    base: CandidateRecord
    candidates: tuple[CandidateRecord, ...]
    winner: Count | None
    best: Count | None
    environment: dict[str, str]
    started: AwareDatetime
    finished: AwareDatetime
    seconds: Annotated[float, Field(ge=0)]
    command: str
    reproduce: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    next_command: str | None = None
    """What the user would run next, shown at the end of the console summary."""

    @model_validator(mode="after")
    def _indices_hold(self) -> RunRecord:
        indices = [probe.index for probe in self.probes]
        if indices[0] != 0 or 0 in indices[1:] or len(set(indices)) != len(indices):
            raise ValueError(f"the base has index 0 and every other candidate its own: found {indices}")
        for role, index in (("winner", self.winner), ("best", self.best)):
            if index is not None and index not in indices:
                raise ValueError(f"{role} {index} is not a candidate of this run: {indices}")
        if (self.verdict == "met") != (self.winner is not None):
            raise ValueError(f"a run has a winner exactly when it is met: verdict {self.verdict}, winner {self.winner}")
        return self

    @property
    def probes(self) -> tuple[CandidateRecord, ...]:
        """The base, then every candidate."""
        return (self.base, *self.candidates)

    def candidate(self, index: int) -> CandidateRecord:
        """The candidate of that index, 0 for the base.

        Raises:
            KeyError: no such candidate.
        """
        for probe in self.probes:
            if probe.index == index:
                return probe
        raise KeyError(index)

    @property
    def chosen(self) -> CandidateRecord | None:
        """The winner, else the closest candidate kept, else None."""
        index = self.winner if self.winner is not None else self.best
        return None if index is None else self.candidate(index)

    def primary(self, candidate: CandidateRecord) -> MeasurementRecord | None:
        """The measurement that decides: the candidate's artifact in the goal's primary format."""
        return candidate.measurement(self.goal.primary_format)

    def original_percent(self, metric: str) -> float | None:
        """The quality of the original by that metric; without labels the original agrees with itself, 100 %."""
        if self.base.quality is not None and self.base.quality.metric == metric:
            return self.base.quality.value_percent
        return None if metric == "top-1" else 100.0

    def drop_points(self, candidate: CandidateRecord) -> float | None:
        """Percentage points of quality lost against the original; None where the two cannot be compared."""
        original = self.original_percent(candidate.quality.metric) if candidate.quality else None
        return None if original is None else original - candidate.quality.value_percent


class TensorRecord(Record):
    """An input or output of an artifact; a dimension that varies is -1.

    `mean` and `std` are of an image, one a channel: the input is (pixel / 255 - mean) / std. `labels` are of the
    classes that an output holds scores of.
    """

    name: str
    shape: tuple[Annotated[int, Field(ge=-1)], ...]
    dtype: str
    layout: str
    minimum: float | None
    maximum: float | None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    labels: tuple[str, ...] = ()
    description: str = ""


class ArtifactRecord(Record):
    """One file of the bundle: what it is, what runs it, what goes in and out, and what was measured of it."""

    file: str
    format: str
    sha256: Sha256
    bytes: Count
    runtime: str
    minimum_runtime_version: str
    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]
    measurement: MeasurementRecord | None
    quality: QualityRecord | None

    @field_validator("file")
    @classmethod
    def _stays_in_the_bundle(cls, file: str) -> str:
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts or "\\" in file or not path.parts:
            raise ValueError("an artifact's file is a relative path inside the bundle")
        return file


class ManifestRecord(VersionedRecord):
    """`bundle/manifest.json`: everything an app needs to know of the artifacts beside it."""

    planish_version: str
    name: str
    source_run: str
    target: TargetRecord
    edits: tuple[str, ...]
    tools: dict[str, str]
    artifacts: tuple[ArtifactRecord, ...]


def read_run(path: Path) -> RunRecord:
    """Read a `report.json`.

    Raises:
        UsageError: `REPORT_UNREADABLE` (missing or not a run record), `REPORT_SCHEMA` (another schema version).
    """
    fix = "Give the report.json of a finished run, or run `planish fit` again with --resume."
    try:
        return RunRecord.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(
            "The run record cannot be read.",
            where=str(path),
            why=error.strerror or str(error),
            fix=fix,
            code="REPORT_UNREADABLE",
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "the file as a whole"
        raise UsageError(
            "The file is not a run record.",
            where=f"{path}, {field}",
            why=first["msg"],
            fix=fix,
            code="REPORT_UNREADABLE",
        ) from error
