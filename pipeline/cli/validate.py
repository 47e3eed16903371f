"""`planish targets validate`: emulated latencies beside published ones."""

from __future__ import annotations

from pathlib import Path

import click
from rich.text import Text

from pipeline.cli.speaking import speaking
from reports.console import Console


@click.command("validate")
@click.option("--profile", "profiles", multiple=True, help="Only this target; may be given again. Default: all.")
@click.option("--threads", multiple=True, type=click.IntRange(min=1), help="Only latencies of this many threads.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="The page. Default: reports/validation.md."
)
@speaking
def command(profiles: tuple[str, ...], threads: tuple[int, ...], output: Path | None, console: Console) -> None:
    """Emulate networks whose latency was published, and write how close the emulator comes.

    Results of other targets that were recorded before stay in the page.
    """
    from reports import validation as page
    from targets.cache import write_atomic
    from targets.validation import validate

    rows = validate.choose(profiles, threads)
    options = [*(f"--profile {name}" for name in profiles), *(f"--threads {count}" for count in threads)]
    with console.stage(f"{len(rows)} published latencies") as stage:
        cases, versions = validate.run(rows, stage.update)
    results = validate.merge(cases, versions, " ".join(["planish targets validate", *options]))
    validate.write(results)
    written = output or page.PAGE
    write_atomic(written, page.markdown(results))
    human = [page.console_table(cases), Text(), Text(page.verdict(cases)), Text(f"{written} written")]
    records = [{**vars(case), "error": case.error} for case in cases]
    console.result(human, cases=records, verdict=page.verdict(cases), file=str(written))
