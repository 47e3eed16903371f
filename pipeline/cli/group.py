"""A click group whose complaints are planish's: four lines on stderr or one JSON event, and the exit codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from targets.errors import PlanishError, UsageError, nearest


class Group(click.Group):
    """A group of commands that suggests the nearest for one it does not have."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if args and args[0] not in known and not args[0].startswith("-"):
            raise UsageError(
                f"there is no command '{args[0]}'",
                where=ctx.command_path,
                why=f"the commands are {', '.join(known)}",
                fix=f"{nearest(args[0], known)}see `{ctx.command_path} --help`",
                code="COMMAND_UNKNOWN",
            )
        return super().resolve_command(ctx, args)

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **settings: Any) -> NoReturn:
        """Run the command line and exit; what click refuses and Ctrl-C before a command runs are spoken of here."""
        words = list(sys.argv[1:] if args is None else args)
        try:
            sys.exit(super().main(words, prog_name, **{**settings, "standalone_mode": False}) or 0)
        except PlanishError as error:
            _complain(error, words)
        except click.Abort:
            sys.exit(130)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(error.exit_code)
        except click.ClickException as error:
            _complain(_refused(error), words)


def _refused(error: click.ClickException) -> UsageError:
    """What click could not make sense of, e.g. an option that does not exist, with the nearest that does."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "planish"
    usage = context.command.collect_usage_pieces(context) if context else []
    what, _, hint = error.format_message().partition(" Did you mean ")
    return UsageError(
        what.rstrip("."),
        where=command,
        why=f"the usage is: {' '.join([command, *usage])}",
        fix=f"{f'did you mean {hint} ' if hint else ''}see `{command} --help`",
        code="COMMAND_LINE",
    )


def _complain(error: PlanishError, words: list[str]) -> NoReturn:
    from reports.console import Console, suitable_mode

    Console("json" if "--json" in words else suitable_mode(sys.stderr)).error(error)
    sys.exit(error.exit_code)
