"""`planish status`: what runs are doing, or how they ended."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from pipeline.cli.speaking import speaking
from pipeline.store.condition import Condition, condition_of, runs_under
from reports import quantities
from reports.console import Console
from reports.limits import QUANTITIES, SIGNS
from reports.streams import printable
from reports.tables import fitting

RUNS = Path("runs")


@click.command("status")
@click.argument("run", required=False, type=click.Path(path_type=Path))
@speaking
def command(run: Path | None, console: Console) -> None:
    """Say what RUN is doing or how it ended; without it, all runs in ./runs."""
    if run is not None:
        condition = condition_of(run)
        console.result(_one(condition, console.width), run=condition.to_json())
        return
    found = [condition_of(path) for path in runs_under(RUNS)]
    human = [_all(found, console.width)] if found else [Text(f"there are no runs in {RUNS}")]
    console.result(human, runs=[condition.to_json() for condition in found])


def _one(condition: Condition, width: int) -> list[Text | Table]:
    facts = Table(show_header=False, box=None, pad_edge=False)
    rows = [("state", f"{condition.state}: {printable(condition.what)}" if condition.what else condition.state)]
    if condition.state == "killed":
        rows.append(("", "its process is gone, and it did not end"))
    if condition.began is not None:
        rows.append(("began", _ago(condition.began)))
    rows += [("heard of", _ago(condition.heard)), ("goal", _goal(condition))]
    if condition.resume:
        rows.append(("go on with", condition.resume))
    if (report := condition.directory / "report.html").exists() and condition.state == "done":
        rows.append(("report", str(report)))
    for row in rows:
        facts.add_row(*row)
    shown = [facts]
    if condition.candidates:
        shown += [Text(), _candidates(condition)]
    if condition.parts:
        shown += [Text(), _all(condition.parts, width)]
    return shown


def _candidates(condition: Condition) -> Table:
    table = Table("candidate", *map(_about, condition.candidates[0]["outcomes"]), "verdict", box=None, pad_edge=False)
    for each in condition.candidates:
        found = [quantities.measured(outcome["value"], outcome["unit"]) for outcome in each["outcomes"]]
        table.add_row("original" if each["index"] == 0 else str(each["index"]), *found, _verdict(each))
    return table


def _all(found: Sequence[Condition], width: int) -> Table:
    """A line a run; its own status says the rest."""
    rows = []
    for each in found:
        last = each.candidates[-1] if each.candidates else None
        rows.append(
            {
                "run": str(each.directory),
                "state": each.state,
                "heard of": _ago(each.heard),
                "candidates": str(len([candidate for candidate in each.candidates if candidate["index"]])),
                "the last": _last(last) if last else quantities.MISSING,
            }
        )
    names = fitting(rows, list(rows[0]), width, ("candidates", "heard of", "the last"))
    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name, no_wrap=True, overflow="fold")
    for row in rows:
        table.add_row(*(row[name] for name in names))
    return table


def _goal(condition: Condition) -> str:
    parts = [
        f"{_about(vars(limit))} ≤ {limit.text}{' of the original' if limit.share else ''}" for limit in condition.limits
    ]
    if condition.max_drop is not None:
        parts.append(f"at most {condition.max_drop} lost")
    return ", ".join(parts) or "its recipe cannot be read"


def _about(limit: dict[str, Any]) -> str:
    """`pixel-4-cpu median`, `size`."""
    return " ".join(filter(None, (limit["target"], QUANTITIES[limit["quantity"]])))


def _last(candidate: dict[str, Any]) -> str:
    values = [quantities.measured(outcome["value"], outcome["unit"]) for outcome in candidate["outcomes"][:1]]
    return " ".join((*values, _verdict(candidate)))


def _verdict(candidate: dict[str, Any]) -> str:
    return f"{SIGNS[candidate['verdict']]} {candidate['verdict']}"


def _ago(then: datetime) -> str:
    """`2 min 10 s ago`, and the date of what is older than a day."""
    seconds = max(0.0, (datetime.now(UTC) - then).total_seconds())
    return f"{quantities.duration(seconds)} ago" if seconds < 86400 else f"{then.astimezone():%Y-%m-%d %H:%M}"
