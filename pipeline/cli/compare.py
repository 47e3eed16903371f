"""`planish compare`: two runs or two artifacts beside each other."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.speaking import speaking
from pipeline.recipe import read_recipe
from pipeline.store.run_directory import recipe_of
from reports.artifacts_compared import compare_artifacts
from reports.console import Console
from reports.records import read_run
from reports.runs_compared import compare_runs
from reports.side_by_side import artifacts_side_by_side, runs_side_by_side
from targets.errors import UsageError

REPORT, PACKAGE = "report.json", ".mlpackage"  # of a run; Core ML's artifact, which is a directory, too


@click.command("compare")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@speaking
def command(a: Path, b: Path, console: Console) -> None:
    """Show what differs between A and B, two finished runs (directories) or two artifacts of one format.

    Latencies of two runs are put against each other where the original network and the target are the same.
    """
    if (_is_run(a), _is_run(b)) == (True, True):
        runs = compare_runs(
            read_run(a / REPORT),
            read_run(b / REPORT),
            (str(a), str(b)),
            tuple(read_recipe(recipe_of(each)).model_dump(mode="json") for each in (a, b)),
        )
        console.result(runs_side_by_side(runs), runs=runs)
        return
    if _is_run(a) or _is_run(b):
        raise _unlike(a, b, *(f"{each} is {'a directory' if _is_run(each) else 'an artifact'}" for each in (a, b)))
    from pipeline.verify.contents import contents_of  # imports torch
    from pipeline.verify.from_file import format_of

    formats = [format_of(each) for each in (a, b)]
    if formats[0] != formats[1]:
        raise _unlike(a, b, *(f"{each} is {format.title}" for each, format in zip((a, b), formats)))
    with console.stage("reading"):
        artifacts = compare_artifacts(contents_of(a), contents_of(b))
    console.result(artifacts_side_by_side(artifacts), artifacts=artifacts)


def _is_run(path: Path) -> bool:
    """Whether it is a directory to be read as a run.

    Raises:
        UsageError: `COMPARE_MISSING`; `COMPARE_SEVERAL` for the directory of a fit with one run a target.
    """
    if not path.exists():
        raise UsageError(
            "there is nothing to compare",
            where=str(path),
            why="no such file or directory",
            fix="give two directories of runs, or two artifacts of one format",
            code="COMPARE_MISSING",
        )
    if runs := sorted(report.parent for report in path.glob(f"*/{REPORT}")):
        raise UsageError(
            "this directory holds several runs",
            where=str(path),
            why="the fit made an artifact for each target",
            fix=f"compare one of them: {', '.join(map(str, runs))}",
            code="COMPARE_SEVERAL",
        )
    return path.is_dir() and path.suffix != PACKAGE


def _unlike(a: Path, b: Path, *kinds: str) -> UsageError:
    return UsageError(
        "these two cannot be compared",
        where=f"{a}, {b}",
        why="; ".join(kinds),
        fix="give two runs, or two artifacts of one format; `planish measure` takes artifacts of several formats",
        code="COMPARE_UNLIKE",
    )
