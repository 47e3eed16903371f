"""One artifact for each target: a run of its own in a folder of each, and every artifact timed on every target."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.environment import environment
from pipeline.recipe import Recipe
from pipeline.store.run_directory import RECIPE, RunDirectory
from reports.html.render import render_matrix
from reports.matrix import MatrixCellRecord, MatrixRecord, MatrixRowRecord
from reports.records import RunRecord
from targets.cache import write_atomic
from targets.measure import Measurement, measure_many
from targets.profile import Profile
from targets.statistics import decide

RunOne = Callable[[RunDirectory, Recipe, Profile], RunRecord]


def fit_each(
    run: RunDirectory,
    recipe: Recipe,
    profiles: Sequence[Profile],
    run_one: RunOne,
    doing: Callable[[str], None],
    command: str,
) -> MatrixRecord:
    """A run a target in `run.root/<target>`, and the page over them.

    Args:
        run_one: runs the recipe of one target in the directory it is given.
    """
    records: dict[str, RunRecord] = {}
    for profile in profiles:
        root, own = run.root / profile.name, recipe.for_target(profile.name)
        begun = (root / RECIPE).is_file()
        folder = RunDirectory.resume(root) if begun else RunDirectory.create(root, own.to_toml())
        folder.keep_recipe(own.to_toml())
        records[profile.name] = run_one(folder, own, profile)
    cells = [
        _cell(run, profile.name, records[profile.name], other, records[other.name], doing)
        for profile in profiles
        for other in profiles
        if records[profile.name].chosen is not None
    ]
    matrix = MatrixRecord(
        planish_version=importlib.metadata.version("planish"),
        name=run.root.name,
        model=recipe.model,
        rows=tuple(_row(record) for record in records.values()),
        cells=tuple(cells),
        command=command,
    )
    write_atomic(run.root / "report.json", matrix.to_json())
    write_atomic(run.root / "report.html", render_matrix(matrix))
    return matrix


def _row(record: RunRecord) -> MatrixRowRecord:
    measured = record.primary(record.chosen) if record.chosen else None
    return MatrixRowRecord(
        target=record.target,
        limits=record.goal.limits,
        directory=record.target.name,
        verdict=record.verdict,
        exit_code=record.exit_code,
        headline=record.headline,
        winner=record.winner,
        format=record.goal.primary_format,
        file=measured and measured.file,
        bytes=measured and measured.bytes,
        sha256=measured and measured.artifact_sha256,
        quality=record.chosen.quality if record.chosen else None,
    )


def _cell(
    run: RunDirectory,
    target: str,
    record: RunRecord,
    other: Profile,
    others: RunRecord,
    doing: Callable[[str], None],
) -> MatrixCellRecord:
    """What the artifact that was made for `target` takes on `other`, held against the latter's own latency."""
    own = record.primary(record.chosen)
    median, low, high = (own.median_ms, own.low_ms, own.high_ms)
    if other.name != target:
        measured = _measured(run, target, record, other, doing)
        median, low, high = measured.median_ms, measured.low_ms, measured.high_ms
    limit = others.goal.latency_ms
    return MatrixCellRecord(
        artifact=target,
        target=other.name,
        median_ms=median,
        low_ms=low,
        high_ms=high,
        verdict=None if limit is None else decide(low, high, limit),
    )


def _measured(
    run: RunDirectory, target: str, record: RunRecord, other: Profile, doing: Callable[[str], None]
) -> Measurement:
    own = record.primary(record.chosen)
    artifact = run.root / target / own.file
    timed = sorted(artifact.parent.parent.glob(f"{target}-*/{own.format}-input.npz"))  # what its own run timed it on
    about = {"artifact": own.artifact_sha256, "profile": other.version, "tools": environment()}

    def make(_: Path) -> dict[str, Any]:
        doing(f"measuring the artifact for {target} on {other.name}")
        return measure_many([(artifact, own.format, timed[0])], profile=other, progress=doing)[0].to_json()

    name = f"across/{target}-on-{other.name}"
    return Measurement.from_json(run.stage(name, about, make, shared=other.kind != "host"))


def exit_code(matrix: MatrixRecord) -> int:
    """That of the target that is worst off: verification failed, goal not met, undecided, met."""
    codes = {row.exit_code for row in matrix.rows}
    return next((code for code in (4, 3, 5) if code in codes), 0)
