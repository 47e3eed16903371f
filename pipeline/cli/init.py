"""`planish init`: a recipe to edit and keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.text import Text

from pipeline.cli.fit import recipe_fields, recipe_options
from pipeline.cli.speaking import speaking
from pipeline.recipe import make_recipe
from pipeline.store.writing import writing
from reports.console import Console
from targets.cache import write_atomic
from targets.errors import UsageError
from targets.profile import load_profile


@click.command("init")
@click.argument("model")
@recipe_options
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("planish.toml"), show_default=True)
@speaking
def command(model: str, output: Path, console: Console, **options: Any) -> None:
    """Write planish.toml for MODEL, every default spelled out; run it with `planish fit planish.toml`."""
    recipe = make_recipe(model=model, **recipe_fields(options))
    for target in recipe.targets:
        load_profile(target)
    if output.exists():
        raise UsageError(
            "the recipe's file exists already",
            where=str(output),
            why="planish does not overwrite it",
            fix="choose another -o, or remove the file",
            code="RECIPE_EXISTS",
        )
    with writing(output):
        write_atomic(output, recipe.to_toml())
    console.result(
        [Text(f"{output} written; run it with: planish fit {output}")], file=str(output), recipe=recipe.model_dump()
    )
