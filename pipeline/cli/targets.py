"""`planish targets`: what can be aimed at."""

from __future__ import annotations

import click
from rich.table import Table
from rich.text import Text

from pipeline.cli.group import Group
from pipeline.cli.speaking import speaking
from reports.console import Console
from targets.profile import list_profiles, load_profile


@click.group("targets", cls=Group)
def command() -> None:
    """List, show and set up targets; rebuild a cost table."""


@command.command("list")
@speaking
def list_targets(console: Console) -> None:
    """Every target profile."""
    table = Table("target", "device", "core", "measured by", box=None, pad_edge=False)
    profiles = list_profiles()
    for profile in profiles:
        core = f"{profile.core.name} @ {profile.clock_ghz:g} GHz" if profile.core else ""
        table.add_row(profile.name, profile.title, core, "wall clock" if profile.kind == "host" else "ARM64 emulator")
    console.result([table], targets=[profile.name for profile in profiles])


@command.command("show")
@click.argument("target")
@speaking
def show(target: str, console: Console) -> None:
    """The facts of TARGET and where each comes from."""
    profile = load_profile(target)
    facts = {"title": profile.title, "device": profile.device, "soc": profile.soc, "version": profile.version}
    if profile.core:
        facts |= {
            "core": profile.core.name,
            "clock": f"{profile.clock_ghz:g} GHz",
            "MIDR part": hex(profile.core.midr_part),
            "scheduling model": profile.core.mca_cpu,
            "features": " ".join(profile.core.features),
        }
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in facts.items():
        table.add_row(name, value)
    sources = Table("fact", "source", box=None, pad_edge=False)
    for name, source in profile.sources.items():
        sources.add_row(name, source)
    console.result(
        [table, Text(), sources, Text(), Text(profile.notes)], **facts, sources=profile.sources, notes=profile.notes
    )


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
