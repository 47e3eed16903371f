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
    """Set up what TARGET needs: for emulated phones the ARM64 emulator, without root."""
    profile = load_profile(target)
    if profile.kind == "emulator":
        from targets.arm.setup import ensure

        with console.stage("setting up the ARM64 emulator") as stage:
            ensure(stage.update)
    console.result([Text(f"{target} is ready")], target=target, ready=True)


@command.command("cost")
@click.argument("target")
@speaking
def cost(target: str, console: Console) -> None:
    """Rebuild the cost table of TARGET from single-operator artifacts measured on it."""
    from targets.cost import build

    profile = load_profile(target)
    with console.stage(f"measuring operators on {target}") as stage:
        written = build(profile, stage.update)
    console.result([Text(f"{path} written") for path in written], files=[str(path) for path in written])


command.add_command(validate)
