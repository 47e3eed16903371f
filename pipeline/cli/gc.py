"""`planish gc`: disk space back."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from pipeline.cli.speaking import speaking
from pipeline.quantities import parse_age, parse_bytes
from pipeline.store.collect import Sweep, held, stale, sweep_run, sweep_store
from pipeline.store.locks import is_held
from pipeline.store.objects import Store, shared_store
from pipeline.store.run_directory import LOCK, recipe_of, take_run
from reports import quantities
from reports.console import Console
from reports.matrix import MatrixRecord, read_report
from reports.records import read_run
from targets.errors import MissingEnvironmentError, UsageError

OLDER = "30d"


@click.command("gc")
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path), metavar="[RUN]...")
@click.option(
    "--older", help=f"Remove results last used longer ago: 12h (default: {OLDER}, where nothing else is asked)."
)
@click.option("--keep", help="Remove the least recently used until the store holds no more than: 10GB.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@speaking
def command(runs: tuple[Path, ...], older: str | None, keep: str | None, dry_run: bool, console: Console) -> None:
    """Remove results that all runs share and none has used for long; a run that wants one again makes it again.

    Of each RUN that has ended, remove what its winner does not need: its report, recipe, bundle, events and
    measurements stay. With runs alone the shared results are not touched.
    """
    runs = tuple(each for run in runs for each in _each_target(run))
    before = time.time() - parse_age(older or OLDER, "older") if older or not (keep or runs) else None
    most = parse_bytes(keep, "keep") if keep else None
    winners = [_winner(run) for run in runs]
    gone: Counter[tuple[int, int]] = Counter()
    human, rows = [], []
    for run, winner in zip(runs, winners):
        sweep = Sweep(dry_run, gone=gone)
        with nullcontext() if dry_run else take_run(run):
            sweep_run(run, winner, sweep)
        rows.append({"run": str(run), **_books(sweep)})
        human.append(_said(f"{run}", "files", sweep))
    store = None
    if before is not None or most is not None:
        store, said = _sweep_store(shared_store(), before, most, Sweep(dry_run, gone=gone))
        human += said
    console.result(human, dry_run=dry_run, runs=rows, store=store)


def _each_target(run: Path) -> list[Path]:
    """The run itself, or with --per-target the runs below it. UsageError RUN_MISSING, RUN_UNFINISHED; RUN_BUSY too."""
    recipe_of(run)
    if is_held(run / LOCK):
        take_run(run).close()
    if not (run / "report.json").exists():
        raise _unfinished(run)
    report = read_report(run / "report.json")
    return [run / row.directory for row in report.rows] if isinstance(report, MatrixRecord) else [run]


def _winner(run: Path) -> int:
    """Index of the candidate that a run handed over. UsageError RUN_UNFINISHED."""
    chosen = read_run(run / "report.json").chosen
    if chosen is None:
        raise _unfinished(run)
    return chosen.index


def _unfinished(run: Path) -> UsageError:
    return UsageError(
        "the run has not ended with a candidate",
        where=str(run),
        why="what it will need is not known",
        fix=f"go on with it: planish fit --resume {shlex.quote(str(run))}; or remove the directory",
        code="RUN_UNFINISHED",
    )


def _sweep_store(
    store: Store, before: float | None, most: float | None, sweep: Sweep
) -> tuple[dict[str, Any], list[Text]]:
    try:
        sweep_store(store, stale(held(store), before=before, most_bytes=most), sweep)
        left = held(store)
    except OSError as error:
        raise MissingEnvironmentError(
            "the store of shared results cannot be swept",
            where=str(store.root),
            why=str(error),
            fix="make it writable, or set PLANISH_CACHE to the cache that is meant",
            code="STORE_UNWRITABLE",
        ) from error
    total = sum(each.bytes for each in left)
    books = {"directory": str(store.root), **_books(sweep), "busy": sweep.busy, "left": len(left), "left_bytes": total}
    said = [_said("shared results", "results", sweep)]
    if sweep.busy:
        said.append(Text(f"{sweep.busy} in use by another planish stay"))
    said.append(Text(f"the store holds {len(left)} results, {quantities.size(total)}: {store.root}"))
    return books, said


def _said(where: str, what: str, sweep: Sweep) -> Text:
    verb, free = ("would be removed", "would be freed") if sweep.dry_run else ("removed", "freed")
    kept = "" if sweep.freed_bytes == sweep.bytes else "; what other runs or the store share stays on the disk"
    size, freed = quantities.size(sweep.bytes), quantities.size(sweep.freed_bytes)
    return Text(f"{where}: {sweep.removed} {what} of {size} {verb}, {freed} {free}{kept}")


def _books(sweep: Sweep) -> dict[str, int]:
    return {"removed": sweep.removed, "bytes": sweep.bytes, "freed_bytes": sweep.freed_bytes}
