"""`planish report`: the HTML report again, from the record of a run."""

from __future__ import annotations

from pathlib import Path

import click
from rich.text import Text

from pipeline.cli.speaking import speaking
from pipeline.store.writing import writing
from reports.console import Console
from reports.html.render import render, render_matrix
from reports.matrix import MatrixRecord, read_report
from targets.cache import write_atomic


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Default: report.html in the run directory.")
@speaking
def command(run: Path, output: Path | None, console: Console) -> None:
    """Write the report of RUN, a run directory or a report.json."""
    source = run if run.suffix == ".json" else run / "report.json"
    record = read_report(source)
    output = output or source.with_name("report.html")
    with writing(output):
        write_atomic(output, render_matrix(record) if isinstance(record, MatrixRecord) else render(record))
    console.result([Text(f"{output} written")], file=str(output))
