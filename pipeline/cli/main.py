"""`planish`: the commands, found by name and imported only when used, so that `planish --help` is quick."""

from __future__ import annotations

import importlib
import os
import sys

import click

from pipeline.cli.group import Group
from pipeline.process import settle

COMMANDS = {
    "fit": "Flatten a network until its exported artifact meets a latency on a target.",
    "init": "Write planish.toml with every default spelled out.",
    "inspect": "Show a network's layers, activations, entropy and cost; writes nothing.",
    "export": "Export a network to ONNX or TFLite and check the artifact against it.",
    "verify": "Check artifacts against the network they were exported from.",
    "measure": "Time artifacts on a target.",
    "report": "Write the HTML report of a run again, from its report.json.",
    "compare": "Show what differs between two runs, or between two artifacts of one format.",
    "status": "Say what a run is doing or how it ended, and how to go on; writes nothing.",
    "gc": "Remove results that no run has used for long, and what a finished run no longer needs.",
    "schema": "Print the JSON Schema of events, run log, report or manifest.",
    "targets": "List, show and set up targets; rebuild a cost table.",
    "doctor": "Say what is installed and what is missing; writes nothing.",
}


class LazyGroup(Group):
    """Commands live in modules of their own name; the short help stands above so that listing imports none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(f"pipeline.cli.{cmd_name}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group("planish", cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="planish")
def cli() -> None:
    """Hammer a trained network flat until it fits the latency budget of one phone.

    \b
    Exit codes: 0 done and every gate met, 1 unexpected, 2 usage or recipe, 3 target not met (best candidate kept),
    4 verification failed, 5 measurement undecidable, 6 environment or device missing, 130 interrupted.
    """


def main() -> None:
    """Entry point of the `planish` command."""
    settle()
    # package.module:callable may stand in the folder the user stands in; last, so that it shadows no library
    sys.path.append(os.getcwd())
    cli(prog_name="planish")
