"""The typed records of a run: what `report.json` and `bundle/manifest.json` hold, and nothing else.

Every record is frozen and refuses unknown fields; units stand in the names. A prediction (`predicted_ms`) is kept
beside the measurement it led to and is never a result. The JSON of a record reads back into an equal record.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, TypeAdapter, field_validator, model_validator

from reports.measured import GpuWorkRecord, MeasurementRecord, OperatorRecord, QualityRecord
from reports.schema import Count, Milliseconds, Percent, Record, Sha256, VersionedRecord, read_record
from reports.verification import DelegationRecord, ExportRecord, ParityRecord


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


class FailureRecord(Record):
    """The error that ended a probe: the fields of `PlanishError.to_json()`, and the stage it came from."""

    code: str
    exit_code: int
    what: str
    where: str
    why: str
    fix: str
    stage: str | None = None


Quantity = Literal["latency", "p90", "size", "memory"]
Unit = Literal["ms", "B"]
Verdict = Literal["met", "not-met", "undecided", "verification-failed"]


class OutcomeRecord(Record):
    """One limit, and what was measured of one artifact against it.

    `margin_percent` is in percent of the limit: -3 is 3 % less than asked, +5 is 5 % too much. A verdict is of the
    whole interval; `high` is None where too few samples give no upper bound. `confidence_percent` is None where the
    interval is not a statistical one.
    """

    quantity: Quantity
    target: str | None
    limit: Annotated[float, Field(gt=0)]
    unit: Unit
    value: Annotated[float, Field(ge=0)]
    low: Annotated[float, Field(ge=0)]
    high: Annotated[float, Field(ge=0)] | None
    confidence_percent: Percent | None = None
    verdict: Literal["met", "above", "undecided"]
    reason: str = ""

    @property
    def margin_percent(self) -> float:
        return 100 * (self.value / self.limit - 1)


class CandidateRecord(Record):
    """One probe: index 0 is the unchanged base. `verdict` judges the limits; `reasons` says everything else.

    `outcomes` has one entry a limit; `margin_percent` is that of the limit which is the farthest from being met.
    `budget_ms` is the predicted time that planning was asked for, on the scale of the first target's cost table.
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
    gpu_work: tuple[GpuWorkRecord, ...] = ()
    """Of the artifact in the primary format, on each mobile GPU aimed at."""
    quality: QualityRecord | None = None
    outcomes: tuple[OutcomeRecord, ...] = ()
    verdict: Literal["base", "met", "above", "undecided"]
    margin_percent: float | None = None
    reasons: tuple[str, ...] = ()
    seconds: dict[str, Annotated[float, Field(ge=0)]] = {}
    failure: FailureRecord | None = None

    def measurement(self, format: str, target: str | None = None) -> MeasurementRecord | None:
        """The measurement of one format's artifact on a target (the first by default), None where there is none."""
        return next(
            (each for each in self.measurements if each.format == format and target in (None, each.target)), None
        )

    def against(self, limit: LimitRecord) -> OutcomeRecord | None:
        """What was measured against that limit, None where nothing was."""
        return next((each for each in self.outcomes if (each.quantity, each.target) == limit.about), None)

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


class LimitRecord(Record):
    """One thing that was asked for: at most `limit` of a quantity, on a target where it depends on one.

    `asked` is how the user put it: `60%` is of what the original takes there. Of a `modelled` target no latency is
    measured.
    """

    quantity: Quantity
    target: str | None
    limit: Annotated[float, Field(gt=0)]
    unit: Unit
    asked: str
    modelled: bool = False

    @property
    def about(self) -> tuple[Quantity, str | None]:
        """The quantity and the target: a goal has one limit on them."""
        return self.quantity, self.target


class GoalRecord(Record):
    """What was asked for; `primary_format` is the artifact whose latency decides.

    `max_drop` is what of the quality may be lost: points where `quality_unit` is percent, else the metric's own.
    """

    limits: Annotated[tuple[LimitRecord, ...], Field(min_length=1)]
    max_drop: Annotated[float, Field(ge=0)] | None
    quality_unit: Literal["%", ""] = "%"
    formats: tuple[str, ...]
    primary_format: str

    @model_validator(mode="after")
    def _primary_is_asked_for(self) -> GoalRecord:
        if self.primary_format not in self.formats:
            raise ValueError(f"primary_format {self.primary_format!r} is not among formats {self.formats}")
        return self

    @property
    def latency(self) -> LimitRecord | None:
        """The first limit on the median latency."""
        return next((each for each in self.limits if each.quantity == "latency"), None)

    @property
    def latency_ms(self) -> float | None:
        """What it allows."""
        return self.latency.limit if self.latency else None

    def deciding(self, candidate: CandidateRecord) -> MeasurementRecord | None:
        """The artifact in the primary format on the target of the first latency limit, else on the first target."""
        return candidate.measurement(self.primary_format, self.latency.target if self.latency else None)


class AdviceRecord(Record):
    """What turning one knob would bring, and the candidate that shows it; `option` is how to ask for it."""

    knob: str
    option: str
    text: str
    candidate: Count | None


class RunRecord(VersionedRecord):
    """A whole run: `report.json`. `candidates` are the probes after the base, in the order they were made.

    `winner` is the index of the candidate handed over (0 when the base already meets the goal); `best` the closest
    one kept when it was not met. `front` are the candidates than which none is both faster and better. `floor_kept`
    is None where no floor was asked for.
    """

    planish_version: str
    name: str
    model: str
    data: str
    targets: Annotated[tuple[TargetRecord, ...], Field(min_length=1)]
    goal: GoalRecord
    verdict: Verdict
    floor_kept: bool | None = None
    exit_code: int
    headline: str
    base: CandidateRecord
    candidates: tuple[CandidateRecord, ...]
    winner: Count | None
    best: Count | None
    front: tuple[Count, ...] = ()
    advice: tuple[AdviceRecord, ...] = ()
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
    def target(self) -> TargetRecord:
        """The first target."""
        return self.targets[0]

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
        """The measurement that decides: see `GoalRecord.deciding`."""
        return self.goal.deciding(candidate)

    @property
    def floor(self) -> float | None:
        """The least quality that was asked for (the most, where lower is better); None where none was."""
        compared = [probe.quality for probe in self.candidates if probe.quality and probe.quality.lost is not None]
        quality = compared[-1] if compared else self.base.quality
        return None if self.goal.max_drop is None or quality is None else quality.least_allowed(self.goal.max_drop)


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
    measurements: tuple[MeasurementRecord, ...]
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
    targets: tuple[TargetRecord, ...]
    edits: tuple[str, ...]
    tools: dict[str, str]
    artifacts: tuple[ArtifactRecord, ...]


def read_run(path: Path) -> RunRecord:
    """Read the `report.json` of one run.

    Raises:
        UsageError: `REPORT_UNREADABLE` (missing or not a run record), `REPORT_SCHEMA` (another schema version).
    """
    return read_record(path, TypeAdapter(RunRecord), "run record")
