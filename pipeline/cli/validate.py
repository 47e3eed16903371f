"""`planish targets validate`: emulated and modelled latencies beside published ones."""

from __future__ import annotations

from pathlib import Path

import click
from rich.text import Text

from pipeline.cli.speaking import speaking
from reports.console import Console
from targets.errors import UsageError


@click.command("validate")
@click.option("--profile", "profiles", multiple=True, help="Only this target; may be given again. Default: all.")
@click.option("--threads", multiple=True, type=click.IntRange(min=1), help="Only latencies of this many threads.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="The page. Default: reports/validation.md."
)
@click.option(
    "--published",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Validate the models of mobile GPUs instead, on the published tables in this folder.",
)
@click.option("--refit", is_flag=True, help="With --published: fit the constants that planish ships anew.")
@speaking
def command(
    profiles: tuple[str, ...],
    threads: tuple[int, ...],
    output: Path | None,
    published: Path | None,
    refit: bool,
    console: Console,
) -> None:
    """Emulate networks whose latency was published, and write how close the emulator comes.

    Results of other targets that were recorded before stay in the page. With --published, networks are left out of the
    models of mobile GPUs, by sevenths and by families, and the page is reports/gpu-validation.md.
    """
    if published or refit:
        _validate_gpus(published, refit, profiles or threads, output, console)
        return
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


def _validate_gpus(published: Path | None, refit: bool, chosen: object, output: Path | None, console: Console) -> None:
    import json

    from reports import gpu_validation as page
    from targets.cache import write_atomic
    from targets.gpu import validation

    if published is None or chosen:
        raise UsageError(
            "these options do not go together",
            where="--published" if published else "--refit",
            why="--published stands with --refit and --output alone, and --refit with --published",
            fix="leave the other options out",
            code="OPTIONS_CLASH",
        )
    with console.stage("mobile GPUs beside published latencies") as stage:
        found = validation.run(published, stage.update, refit=refit)
    written = output or page.PAGE
    record = page.record(found)
    write_atomic(written, page.markdown(found))
    write_atomic(written.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
    console.result([page.console_table(found), Text(), Text(f"{written} written")], **record, file=str(written))
