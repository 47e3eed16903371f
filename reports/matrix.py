"""One run per target: which artifact is for which phone, and what each of them takes on the others' phones.

The folder of such a fit holds a complete run a target, and a `report.json` and `report.html` of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, TypeAdapter, model_validator
from rich.table import Table
from rich.text import Text

from reports import limits, quantities
from reports.measured import QualityRecord
from reports.records import LimitRecord, RunRecord, TargetRecord, Verdict
from reports.schema import Count, Milliseconds, Record, Sha256, VersionedRecord, read_record
from reports.streams import printable
from reports.tables import VERDICTS, Rows, fitting, place

_COLOURS = {limits.SIGNS["met"]: "green", limits.SIGNS["above"]: "red", limits.SIGNS["undecided"]: "yellow"}


class MatrixRowRecord(Record):
    """The run of one target, and the artifact that it hands over (the closest one where the goal was not met).

    `directory` is relative to the matrix's own, `file` to that of the run; `limits` are what this run was asked for.
    `file`, `bytes`, `sha256` and `quality` are None where nothing was exported.
    """

    target: TargetRecord
    limits: tuple[LimitRecord, ...]
    directory: str
    verdict: Verdict
    exit_code: int
    headline: str
    winner: Count | None
    format: str
    file: str | None
    bytes: Count | None
    sha256: Sha256 | None
    quality: QualityRecord | None

    @property
    def limit_ms(self) -> float | None:
        """What the median may take on this target."""
        return next((each.limit for each in self.limits if each.quantity == "latency"), None)


class MatrixCellRecord(Record):
    """The artifact made for one target, measured on another or the same; the verdict is against the latter's limit."""

    artifact: str
    target: str
    median_ms: Annotated[float, Field(gt=0)]
    low_ms: Milliseconds
    high_ms: Milliseconds
    verdict: Literal["met", "above", "undecided"] | None


class MatrixRecord(VersionedRecord):
    """A fit with `--per-target`: one row a target, one cell an artifact and a target where that was measured."""

    planish_version: str
    name: str
    model: str
    rows: Annotated[tuple[MatrixRowRecord, ...], Field(min_length=1)]
    cells: tuple[MatrixCellRecord, ...]
    warnings: tuple[str, ...] = ()
    command: str

    @model_validator(mode="after")
    def _cells_are_of_the_rows(self) -> MatrixRecord:
        names = [row.target.name for row in self.rows]
        pairs = [(cell.artifact, cell.target) for cell in self.cells]
        if len(set(names)) != len(names) or len(set(pairs)) != len(pairs):
            raise ValueError(f"a target has one row and an artifact one cell on it: {names}, {pairs}")
        if unknown := {name for pair in pairs for name in pair} - set(names):
            raise ValueError(f"cells of targets that have no row: {sorted(unknown)}")
        return self

    @property
    def met(self) -> tuple[MatrixRowRecord, ...]:
        return tuple(row for row in self.rows if row.verdict == "met")

    @property
    def headline(self) -> str:
        """How many of the targets are met, and by how many files."""
        files = len({row.sha256 for row in self.met})
        by = f", by {'one artifact' if files == 1 else f'{files} artifacts'}" if self.met else ""
        return f"{len(self.met)} of {len(self.rows)} targets met{by}."

    def cell(self, artifact: str, target: str) -> MatrixCellRecord | None:
        """How long the artifact of one target takes on another; None where that was not measured."""
        return next((each for each in self.cells if (each.artifact, each.target) == (artifact, target)), None)

    def against_own(self, cell: MatrixCellRecord) -> str:
        """How much faster or slower than the target's own artifact; empty for that itself and where it is unknown."""
        own = self.cell(cell.target, cell.target)
        return "" if own is None or own is cell else quantities.speedup(own.median_ms, cell.median_ms)

    @property
    def serving_all(self) -> tuple[MatrixRowRecord, ...]:
        """The rows whose artifact meets the latency of every target."""
        names = [row.target.name for row in self.rows]
        return tuple(
            row
            for row in self.rows
            if all((cell := self.cell(row.target.name, name)) and cell.verdict == "met" for name in names)
        )


def read_report(path: Path) -> RunRecord | MatrixRecord:
    """Read a `report.json`: of one run, or of a fit with `--per-target`.

    Raises:
        UsageError: `REPORT_UNREADABLE` (missing or neither), `REPORT_SCHEMA` (another schema version).
    """
    return read_record(path, _REPORT, "report")


_REPORT: TypeAdapter[RunRecord | MatrixRecord] = TypeAdapter(
    Annotated[
        Annotated[RunRecord, Tag("run")] | Annotated[MatrixRecord, Tag("matrix")],
        Discriminator(lambda data: "matrix" if isinstance(data, dict) and "cells" in data else "run"),
    ]
)


def matrix_summary(record: MatrixRecord, directory: Path, width: int) -> list[Table | Text]:
    """The end of a fit with `--per-target`: every artifact on every target, and where the artifacts and reports are."""
    style = "bold green" if len(record.met) == len(record.rows) else "bold red"
    lines: list[Table | Text] = [Text(record.headline, style), Text(), _table(record, width), Text()]
    for row in record.rows:
        word, look = VERDICTS[row.verdict]
        lines.append(Text.assemble((f"{row.target.name}: {word}", look), f"  {printable(row.headline)}"))
        if row.file is not None:
            lines.append(place(row.format, directory / row.directory / row.file))
        lines.append(place("report", directory / row.directory / "report.html"))
    lines += [Text(), place("report", directory / "report.html")]
    return lines


def _table(record: MatrixRecord, width: int) -> Table:
    """A row an artifact, a column a target; a narrow terminal gives up the size, then the quality."""
    names = [row.target.name for row in record.rows]
    rows: Rows = []
    for row in record.rows:
        known = row.quality
        rows.append(
            {
                "artifact for": row.target.name,
                **{f"on {name}": _spelled(record.cell(row.target.name, name)) for name in names},
                "quality": quantities.quality(known.value, known.unit) if known else quantities.MISSING,
                "size": quantities.size(row.bytes),
            }
        )
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in (columns := fitting(rows, list(rows[0]), width, ("size", "quality"))):
        table.add_column(name, justify="left" if name == "artifact for" else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(row[name], _COLOURS.get(row[name][0], "")) for name in columns))
    return table


def _spelled(cell: MatrixCellRecord | None) -> str:
    if cell is None:
        return quantities.MISSING
    sign = f"{limits.SIGNS[cell.verdict]} " if cell.verdict else ""
    return f"{sign}{quantities.milliseconds(cell.median_ms)}"
