"""`planish fit`: the main job."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from pipeline.cli.speaking import speaking
from pipeline.export.formats import FORMATS
from pipeline.recipe import Recipe, differences, make_recipe, read_recipe
from reports.console import Console
from targets.errors import UsageError


def recipe_options(command: Any) -> Any:
    """The options that become fields of a `Recipe`; shared with `planish init`."""
    options = [
        click.option("--weights", help="State dict to load, .safetensors or .pt."),
        click.option("--data", help="Calibration samples: file.py:callable, a folder of class folders, or an .npz."),
        click.option("--test", help="Samples that quality is judged on; without it a fifth of --data is held out."),
        click.option("--mean", type=float, multiple=True, help="Normalisation after scaling to [0, 1], one a channel."),
        click.option("--std", type=float, multiple=True, help="Normalisation after scaling to [0, 1], one a channel."),
        click.option(
            "--target",
            multiple=True,
            help="Target profile, see `planish targets list`; repeatable, one artifact for all.",
        ),
        click.option(
            "--latency",
            multiple=True,
            help="What to meet, with its unit: 12ms, or 60% of what the original takes; one a target, or one for all.",
        ),
        click.option("--p90", multiple=True, help="The same for the 90th percentile."),
        click.option("--size", help="Most bytes of the artifact in the first format: 3MB, or 60%."),
        click.option("--memory", help="Most memory that running it takes, in this machine's runtime: 20MB, or 60%."),
        click.option("--per-target", is_flag=True, help="One artifact for each target instead of one for all."),
        click.option("--max-drop", help="Quality that may be lost: 0.5pt, or 2% of what the original has."),
        click.option("--metric", help="file.py:callable of outputs and labels, in place of top-1."),
        click.option("--lower-is-better", is_flag=True, help="Of --metric."),
        click.option(
            "--format",
            "formats",
            multiple=True,
            help=f"{', '.join(FORMATS)}; repeatable, the first must meet the latency (default: tflite, onnx).",
        ),
        click.option("--strict", is_flag=True, help="Refuse an artifact that its delegate does not take whole."),
        click.option(
            "--output-kind",
            "output_kind",
            type=click.Choice(["classes", "values"]),
            help="What the network gives: class scores (default) or anything else.",
        ),
        click.option("--channels-first", is_flag=True, help="TFLite input and output stay NCHW (default: NHWC)."),
        click.option("--labels", help="Text file with the names of the classes, one a line (default: class folders)."),
        click.option("--method", help="auto (default), easier, layermerge, depth-dp, layercollapse, lorita or svd."),
        click.option("--linearize", type=int, help="Linearise at least so many activations (default: as planned)."),
        click.option("--ranks", help="With svd and lorita: global (default), local, uniform, alds or greedy."),
        click.option("--removal", help="With easier: one-shot (default) or rounds, each trained on the labels."),
        click.option("--tolerated-drop", type=float, help="Points of accuracy that rounds may cost (default: 1)."),
        click.option(
            "--easier-policy",
            help="How rounds train: cifar-resnet18 (default), cifar-mobilenetv2, cifar-vgg16, cifar-swin-t, domainbed "
            "or transfer.",
        ),
        click.option("--train-epochs", type=float, help="Passes of lorita, layercollapse, rounds (default: 10)."),
        click.option("--augment", is_flag=True, help="That training flips images and shows parts of them."),
        click.option("--lorita-factors", type=int, help="Factors that a layer is trained as (default: 2)."),
        click.option("--melting", help="With layercollapse: taught (default), vision, vgg, language or early."),
        click.option("--recover", help="How long the final recovery may take: 10min."),
        click.option("--recover-steps", type=int, help="Optimiser steps of the final recovery (default: 400)."),
        click.option("--recover-batch", type=int, help="Samples a step (default: 64)."),
        click.option("--recover-rate", type=float, help="Peak learning rate (default: 0.001)."),
        click.option("--no-mixup", is_flag=True, help="Do not blend samples during recovery."),
        click.option("--seed", type=int, help="Of every random choice (default: 0)."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def recipe_fields(options: dict[str, Any]) -> dict[str, Any]:
    """The fields of a recipe that the command line gives; what was left out is not among them."""
    fields = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in options.items()
        if value is not None and value is not False and value != ()
    }
    if fields.pop("channels_first", False):
        fields["channels_last"] = False
    if "output_kind" in fields:
        fields["output"] = fields.pop("output_kind")
    if fields.pop("no_mixup", False):
        fields["mixup"] = False
    return fields


@click.command("fit")
@click.argument("model", required=False)
@recipe_options
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Run directory (default: runs/<model>-<target>).")
@click.option("--resume", type=click.Path(path_type=Path), help="Go on with the run in this directory.")
@click.option(
    "--change-recipe", is_flag=True, help="With --resume: go on with the recipe or the options given beside it."
)
@click.option("--dry-run", is_flag=True, help="Read everything and plan once; write, export and measure nothing.")
@speaking
def command(
    model: str | None,
    output: Path | None,
    resume: Path | None,
    change_recipe: bool,
    dry_run: bool,
    console: Console,
    **options: Any,
) -> int:
    """Flatten MODEL until its exported artifact meets a latency on a target.

    MODEL is file.py:callable, package.module:callable, model.pt2, or a planish.toml that holds all of it; options
    given beside a planish.toml take the place of its own.
    """
    recipe = _recipe(model, resume, change_recipe, options)
    if dry_run:
        return _dry_run(recipe, console)
    from pipeline.api import profiles_of, run_in
    from pipeline.cli.running import Speaking
    from pipeline.per_target import exit_code
    from pipeline.store.run_directory import RunDirectory
    from reports.matrix import MatrixRecord

    profiles = profiles_of(recipe)
    if resume is not None:
        run = RunDirectory.resume(resume)
        run.keep_recipe(recipe.to_toml())
    else:
        output = output or Path("runs") / f"{_stem(recipe.model)}-{'-'.join(recipe.targets)}"
        run = RunDirectory.create(output, recipe.to_toml())
    console.resume = f"planish fit --resume {shlex.quote(str(run.root))}"
    with console.stage("fitting") as stage:
        record = run_in(run, recipe, profiles, Speaking(console, stage), _command_line())
    if isinstance(record, MatrixRecord):
        console.matrix_summary(record, run.root)
        return exit_code(record)
    console.summary(record, run.root)
    return record.exit_code


def _recipe(model: str | None, resume: Path | None, change: bool, options: dict[str, Any]) -> Recipe:
    """Of the run that goes on, of a file with the command line's options in place of its own, or of the options."""
    given = recipe_fields(options)
    if resume is not None:
        return _resumed(model, resume, change, given)
    if change:
        raise UsageError(
            "there is no run whose recipe could be changed",
            where="--change-recipe",
            why="it belongs to --resume",
            fix="say which run goes on: planish fit --resume runs/NAME --change-recipe ...",
            code="RESUME_OPTIONS",
        )
    if model is not None and model.endswith(".toml"):
        return read_recipe(Path(model), given)
    return make_recipe(model=model, **given)


def _resumed(model: str | None, resume: Path, change: bool, given: dict[str, Any]) -> Recipe:
    """The recipe of a run that goes on: its own, or a changed one where that was said."""
    from pipeline.store.run_directory import recipe_of

    path = recipe_of(resume)
    own = read_recipe(path)
    if model is not None and not model.endswith(".toml"):
        given = {"model": model, **given}
    wanted = read_recipe(Path(model), given) if model and model.endswith(".toml") else read_recipe(path, given)
    changes = differences(own, wanted)
    if changes and not change:
        again = shlex.quote(str(resume))
        raise UsageError(
            "the recipe is not the one that this run was begun with",
            where=str(path),
            why="; ".join(changes),
            fix=f"planish fit --resume {again} goes on as it was; with --change-recipe it goes on with the changes, "
            "and what they do not touch is not done again; for a run beside this one choose another -o",
            code="RECIPE_CHANGED",
        )
    return wanted


def _dry_run(recipe: Recipe, console: Console) -> int:
    from rich.text import Text

    from pipeline.dry_run import dry_run
    from pipeline.stages import Stages
    from pipeline.store.run_directory import RunDirectory
    from targets.profile import load_profile

    profiles = [load_profile(name) for name in recipe.targets]
    with tempfile.TemporaryDirectory(prefix="planish-dry-") as scratch, console.stage("planning") as stage:
        run = RunDirectory.create(Path(scratch) / "run", recipe.to_toml(), publishes=False)
        with contextlib.closing(run):
            found = dry_run(Stages(run, recipe, profiles, stage.update))
    human = [
        Text(recipe.to_toml()),
        Text(
            f"predicted {found.predicted:.4g} of {found.base_price:.4g} ms with {len(found.edits)} edits; predictions "
            "choose where to probe, only measurements count"
        ),
    ]
    human += [Text(f"  {row['kind']} {row['site']}: {row['summary']}") for row in found.edits]
    console.result(
        human,
        recipe=recipe.model_dump(),
        original=[outcome.model_dump() for outcome in found.original],
        predicted_ms=found.predicted,
        base_ms=found.base_price,
        edits=found.edits,
    )
    return 0


def _stem(model: str) -> str:
    path, _, name = model.rpartition(":")
    place = Path(path or model)
    return (
        place.parent.name
        if place.stem in ("model", "models") and place.parent.name
        else place.stem.rpartition(".")[2] or name
    )


def _command_line() -> str:
    return shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
