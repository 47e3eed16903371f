"""`planish schema`: what a program that reads planish's output may rely on."""

from __future__ import annotations

import json
from typing import Literal

import click
from rich.text import Text

from pipeline.cli.speaking import speaking
from reports.console import Console
from reports.events import events_schema
from reports.records import ManifestRecord, RunRecord

KINDS = ("events", "log", "report", "manifest")


@click.command("schema")
@click.argument("kind", type=click.Choice(KINDS))
@speaking
def command(kind: Literal["events", "log", "report", "manifest"], console: Console) -> None:
    """Print a JSON Schema: of an event of --json, a line of events.ndjson, report.json or manifest.json."""
    if kind in ("events", "log"):
        schema = events_schema("stream" if kind == "events" else "log")
    else:
        schema = (RunRecord if kind == "report" else ManifestRecord).model_json_schema()
    console.result([Text(json.dumps(schema, indent=1), no_wrap=True)], json_schema=schema)
