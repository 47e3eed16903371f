"""The dry lowering: what each converter makes of each operator of a network, before anything is compressed."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.export import worker
from pipeline.export.child import worked
from pipeline.export.failure import Failure
from pipeline.export.formats import FORMATS, Format, format_named
from pipeline.export.survey import Coverage
from targets.errors import PlanishError, VerificationError


def cover(
    network_pt2: Path,
    *,
    formats: Sequence[str],
    logs: Path,
    sources: Mapping[str, str] | None = None,
    timeout_s: float = 900,
    memory_limit_mib: float | None = None,
    progress: Callable[[str, str], None] | None = None,
) -> list[Coverage]:
    """What becomes of each operator of a saved network in each of `formats`, one child interpreter after another.

    A format whose converter is missing, dies or takes too long has no operators and says why in its `failure`; the
    others are not affected. Nothing but the logs is left behind.

    Args:
        network_pt2: as for `child.export`.
        formats: names in `formats.FORMATS`.
        logs: directory for `<format>.log`, all that the converters print.
        sources: layer -> "file:line" (`Network.sources`), for layers whose place the program does not tell.
        timeout_s: for one format, seconds; the search for what is refused takes a part of it.
        progress: called with a format and the name of the phase that it enters.

    Raises:
        UsageError: `UNKNOWN_FORMAT`, before anything is converted.
        MissingEnvironmentError: `DISK_FULL`, `OUTPUT_UNWRITABLE`.
    """
    rows = [format_named(name) for name in dict.fromkeys(formats)]
    return [
        _placed(_one(row, network_pt2, logs / f"{row.name}.log", timeout_s, memory_limit_mib, progress), sources or {})
        for row in rows
    ]


def usual_formats() -> list[str]:
    """One format for each runtime that the emulated phones have."""
    by_runtime: dict[str, str] = {}
    for row in FORMATS.values():
        if row.runs_on_host:
            by_runtime.setdefault(row.runtime, row.name)
    return list(by_runtime.values())


def _one(
    row: Format,
    network_pt2: Path,
    log: Path,
    timeout_s: float,
    memory_limit_mib: float | None,
    progress: Callable[[str, str], None] | None,
) -> Coverage:
    started = time.monotonic()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="planish-dry-") as scratch,
            worked(
                row,
                network_pt2,
                beside=Path(scratch) / row.name,
                options=["--dry"],
                timeout_s=timeout_s,
                memory_limit_mib=memory_limit_mib,
                log=log,
                progress=(lambda phase: progress(row.name, phase)) if progress else None,
            ) as (staging, _),
        ):
            told = Coverage.from_json(json.loads((staging / worker.COVERAGE).read_bytes()))
            return replace(told, seconds=time.monotonic() - started)
    except PlanishError as error:
        if not isinstance(error, VerificationError) and error.code != "EXPORTER_MISSING":
            raise
        failure = Failure(row.name, "", (), error.why, (error.fix,))
        return Coverage(row.name, (), False, "nothing was learned", None, failure, time.monotonic() - started)


def _placed(coverage: Coverage, sources: Mapping[str, str]) -> Coverage:
    """Lines of the user's code where the program gave only the layer."""

    def told(places):
        return tuple(replace(place, source=place.source or sources.get(place.module, "")) for place in places)

    failure = coverage.failure
    return replace(
        coverage,
        operators=tuple(replace(row, places=told(row.places)) for row in coverage.operators),
        failure=replace(failure, places=told(failure.places)) if failure else None,
    )
