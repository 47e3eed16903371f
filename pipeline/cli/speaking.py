"""What every command shares: a console, the options that choose it, and the contract of exit codes."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import click

from pipeline.store.writing import disk_full
from reports.console import Console, suitable_mode
from targets.errors import PlanishError

INTERRUPTED = 130


def speaking(command: Callable[..., int | None]) -> Callable[..., None]:
    """Give a command a `console`, `--json` and `--quiet`; turn what it raises into four lines and an exit code.

    The command returns its exit code, None for 0. On Ctrl-C the console's `resume` attribute, when a command has set
    it, is printed: the command line that goes on from there.
    """

    @click.option(
        "--json", "as_json", is_flag=True, help="Newline-delimited JSON events on stdout, the last the result."
    )
    @click.option("-q", "--quiet", is_flag=True, help="Only warnings, errors and the result.")
    @functools.wraps(command)
    def wrapped(*arguments: Any, as_json: bool, quiet: bool, **options: Any) -> None:
        console = Console("json" if as_json else suitable_mode(sys.stderr), quiet)
        with console:
            sys.exit(_run(console, command, *arguments, **options))

    return wrapped


def _run(console: Console, command: Callable[..., int | None], *arguments: Any, **options: Any) -> int:
    try:
        return command(*arguments, console=console, **options) or 0
    except PlanishError as error:
        console.error(error)
        return error.exit_code
    except KeyboardInterrupt:
        resume = getattr(console, "resume", None)
        console.close()
        console.event("warning", text="interrupted" + (f"; go on with: {resume}" if resume else ""), resume=resume)
        return INTERRUPTED
    except Exception as error:  # the last net: a person never sees a bare traceback
        if (full := disk_full(error, getattr(error, "filename", None) or "a file being written")) is not None:
            console.error(full)
            return full.exit_code
        if os.environ.get("PLANISH_TRACEBACK"):
            traceback.print_exc()
        frame = traceback.extract_tb(error.__traceback__)[-1]
        console.error(
            PlanishError(
                f"planish met something it did not expect: {type(error).__name__}",
                where=f"{frame.filename}:{frame.lineno} in {frame.name}",
                why=str(error) or "no message",
                fix="run it again with PLANISH_TRACEBACK=1 and report the output",
                code="UNEXPECTED",
            )
        )
        return 1
