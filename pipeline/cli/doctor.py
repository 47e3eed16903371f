"""`planish doctor`: what is installed and what is missing."""

from __future__ import annotations

import os

import click
from rich.table import Table

from pipeline.cli.speaking import speaking
from reports.console import Console


@click.command("doctor")
@speaking
def command(console: Console) -> int:
    """Environment, runtimes and emulator; writes nothing. Exit code 6 when something fit needs is missing."""
    from pipeline.environment import environment
    from targets.arm.parts import is_ready
    from targets.gpu import places

    found = environment()
    checks = [(name, version, version != "not installed", f"pip install {name}") for name, version in found.items()]
    ready = is_ready()
    checks.append(("ARM64 emulator", "ready" if ready else "not set up", ready, "planish targets setup pixel-4-cpu"))
    driver = places.is_ready()
    said = f"Mesa {places.places().mesa(mali=False)}" if driver else "not set up"
    checks.append(("GPU driver", said, driver, "planish targets setup pixel-4-gpu"))
    checks.append(("CPUs", str(os.cpu_count()), True, ""))
    table = Table("", "what", "found", "to do", box=None, pad_edge=False)
    for name, version, good, fix in checks:
        table.add_row("ok" if good else "missing", name, version, "" if good else fix)
    console.result([table], checks=[{"name": n, "found": v, "ok": g} for n, v, g, _ in checks])
    return 0 if all(good for _, _, good, _ in checks) else 6
