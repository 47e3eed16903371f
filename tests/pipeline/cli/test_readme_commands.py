"""Every planish command line of the README is one that the command takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from pipeline.cli.main import cli

README = Path(__file__).parents[3] / "README.md"
BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINES = [
    line.removeprefix("$ ")
    for block in BLOCK.findall(README.read_text(encoding="utf-8"))
    for line in block.replace("\\\n", " ").splitlines()
    if re.match(r"\$ (\S*/)?planish ", line)
]


def parse(line: str) -> click.Context:
    """The context of the command that `line` names, its words parsed and nothing run."""
    words = shlex.split(line, comments=True)[1:]
    context: click.Context = cli.make_context("planish", words)
    while isinstance(context.command, click.Group):
        name, command, rest = context.command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)
    return context


def test_the_readme_shows_how_to_fit() -> None:
    assert any(line.split()[1] == "fit" for line in LINES), "README.md has no `$ planish fit` in a ```console block"


@pytest.mark.parametrize("line", LINES)
def test_a_line_of_the_readme_parses(line: str) -> None:
    assert (
        parse(line).command.name
        == [word for word in shlex.split(line)[1:] if not word.startswith("-")][
            1 if shlex.split(line)[1] == "targets" else 0
        ]
    )


@pytest.mark.parametrize("line", ["planish fit model.py:m --latncy 1ms", "planish targets lst", "planish compres x"])
def test_a_line_that_is_wrong_does_not(line: str) -> None:
    with pytest.raises(Exception, match="latncy|lst|compres"):
        parse(line)


def test_options_named_in_the_text_exist() -> None:
    """Every `--option` between backquotes is an option of some command."""
    text = re.sub(BLOCK, "", README.read_text(encoding="utf-8"))
    known = {option for context in contexts(click.Context(cli)) for p in context.command.params for option in p.opts}
    named = {word for quoted in re.findall(r"`([^`\n]+)`", text) for word in re.findall(r"--[a-z][a-z0-9-]*", quoted)}
    assert named and named <= known | {"--help"}, named - known


def contexts(context: click.Context) -> list[click.Context]:
    """A context for every command, groups included."""
    if not isinstance(context.command, click.Group):
        return [context]
    names = context.command.list_commands(context)
    return [context] + [
        each
        for name in names
        for each in contexts(click.Context(context.command.get_command(context, name), context, name))
    ]
