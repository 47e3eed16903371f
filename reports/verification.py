"""The records of what was exported and how it was checked: files, parity, delegation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from reports.schema import Count, Deviation, Milliseconds, Percent, Record, Sha256, Share


class ExportRecord(Record):
    """One artifact of a candidate; `file` is relative to the run directory, `peak_mib` of the converter."""

    format: str
    file: str
    sha256: Sha256
    bytes: Count
    seconds: float
    peak_mib: float


class ParityGroupRecord(Record):
    """One group of samples: the user's own, or one edge case; figures are of the output that is furthest off.

    `relative_rmse`, `max_abs`, `sqnr_db` and `cosine` are None where an output was NaN or infinite (and `sqnr_db` where
    there is no error at all); `top1_agreement` is None for networks without classes.
    """

    name: str
    verdict: Literal["passed", "failed", "not judged"]
    samples: Count
    relative_rmse: Deviation = None
    max_abs: Deviation = None
    sqnr_db: Deviation = None
    cosine: Deviation = None
    top1_agreement: Share | None = None


class TaskRecord(Record):
    """Right answers of the artifact and of the network on the same labelled samples, and the paired 95 % interval."""

    artifact_percent: Percent
    network_percent: Percent
    low_points: float
    high_points: float
    samples: Count


class ParityRecord(Record):
    """An artifact against the network it was exported from, at one level.

    `level` is the exported program, the artifact on this machine, on the emulated phone, or by the GPU delegate's own
    shaders; `precision` is what the artifact computes in there. The user's own samples are the first group. A level
    that was not run has no groups and says why in `reasons`.
    """

    format: str
    level: Literal["program", "host", "emulator", "gpu"]
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    runner: str
    verdict: Literal["passed", "failed", "not run here"]
    reasons: tuple[str, ...] = ()
    groups: tuple[ParityGroupRecord, ...] = ()
    task: TaskRecord | None = None

    @property
    def passed(self) -> bool:
        return self.verdict == "passed"

    @property
    def own(self) -> ParityGroupRecord | None:
        """The user's samples."""
        return self.groups[0] if self.groups else None

    @property
    def edge_cases(self) -> tuple[ParityGroupRecord, ...]:
        return self.groups[1:]


class FallbackRecord(Record):
    """Operators of one kind in one module that no delegate takes.

    `module` is empty for the network itself; `between` then names the modules before and after.
    """

    kind: str
    module: str
    count: Count
    milliseconds: Milliseconds | None = None
    between: tuple[str, str] = ("", "")


class TransposesRecord(Record):
    """Operators of one kind that only move activations to another order of axes, in one module."""

    kind: str
    module: str
    count: Count
    where: Literal["border", "inside"]
    asked: bool
    shape: tuple[int, ...]
    between: tuple[str, str] = ("", "")


class EstimateRecord(Record):
    """What another delegate would take by a table of what it knows: no run, no promise."""

    delegate: str
    partitions: Count
    delegated_nodes: Count
    nodes: Count
    verdict: str
    source: str


class DelegationRecord(Record):
    """Which operators of an artifact its delegate runs. Counts are None where nothing could be learned."""

    format: str
    target: str
    runtime: str
    delegate: str
    learned: str
    partitions: Count | None = None
    nodes: Count | None = None
    delegated_nodes: Count | None = None
    time_share: Share | None = None
    fallbacks: tuple[FallbackRecord, ...] = ()
    transposes: tuple[TransposesRecord, ...] = ()
    crossing_bytes: Count | None = None
    border_bytes: Count | None = None
    estimates: tuple[EstimateRecord, ...] = ()
    violations: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether the delegate takes all of it, in one piece and without transposes."""
        return self.partitions is not None and not self.violations


class BlockErrorRecord(Record):
    """One value inside an artifact. `value`: its relative RMSE; `own`: what is wrong given the artifact's own input."""

    module: str
    block: str
    value: Annotated[float, Field(ge=0)]
    own: Annotated[float, Field(ge=0)]


class CulpritRecord(Record):
    """The first block that an artifact gets wrong, and the errors by depth; `reproducer` is relative to the page.

    `rounding` is the largest relative RMSE of a block by itself that counts as rounding.
    """

    block: str | None
    module: str | None
    wrong: tuple[str, ...]
    looked_into: str
    samples: Count
    reproducer: str | None
    rounding: Annotated[float, Field(gt=0)]
    blocks: tuple[BlockErrorRecord, ...]
