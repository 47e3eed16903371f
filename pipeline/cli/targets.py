"""`planish targets`: what can be aimed at."""

from __future__ import annotations

import click
from rich.text import Text

from pipeline.cli.group import Group
from pipeline.cli.speaking import speaking
from pipeline.cli.validate import command as validate
from reports.console import Console
from targets.profile import list_profiles, load_profile


@click.group("targets", cls=Group)
def command() -> None:
    """List, show and set up targets; rebuild a cost table."""


@command.command("list")
@speaking
def list_targets(console: Console) -> None:
    """Every target profile."""
    from reports.profiles import profile_table

    profiles = list_profiles()
    console.result([profile_table(profiles)], targets=[profile.name for profile in profiles])


@command.command("show")
@click.argument("target")
@speaking
def show(target: str, console: Console) -> None:
    """The facts of TARGET, where each comes from, what is not known, and how far its latencies were checked."""
    from reports.profiles import checked_cases, profile_json, profile_view
    from targets.cost import shipped_errors

    profile = load_profile(target)
    checked = checked_cases(profile.core) if profile.core else None
    errors = shipped_errors(profile)
    console.result(profile_view(profile, checked, errors), **profile_json(profile, checked, errors))


@command.command("setup")
@click.argument("target")
@speaking
def setup(target: str, console: Console) -> None:
    """Set up what TARGET needs: for emulated phones the ARM64 emulator, for their GPUs a driver; without root."""
    profile = load_profile(target)
    if profile.gpu:
        from targets.gpu import gpus, mesa

        gpu = gpus.driven(profile.gpu.name)
        with console.stage("setting up the GPU driver") as stage:
            mesa.ensure(stage.update, mali=gpu is not None and gpu.is_mali)
    if profile.kind == "emulator":
        from targets.arm.setup import ensure

        with console.stage("setting up the ARM64 emulator") as stage:
            ensure(stage.update)
    console.result([Text(f"{target} is ready")], target=target, ready=True)


@command.command("cost")
@click.argument("target")
@click.option("--format", "formats", multiple=True, type=click.Choice(["tflite", "onnx"]), help="Both when not given.")
@speaking
def cost(target: str, formats: tuple[str, ...], console: Console) -> None:
    """Rebuild the cost table of TARGET from operators timed on it; what was timed before is not timed again."""
    from targets.cost import FORMATS, build, table_path

    profile = load_profile(target)
    with console.stage(f"measuring operators on {target}") as stage:
        tables = build(profile, stage.update, formats=formats or FORMATS)
    paths = [str(table_path(profile, table.format)) for table in tables]
    lines = [
        f"{path} written; error on operators it was not learned from: median {100 * table.error.median:.1f} %, "
        f"90 % below {100 * table.error.p90:.0f} %"
        for path, table in zip(paths, tables)
    ]
    console.result([Text(line) for line in lines], files=paths, errors=[vars(table.error) for table in tables])


command.add_command(validate)
