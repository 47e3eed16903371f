"""`planish schema`: what a program that reads planish's output may rely on."""

from __future__ import annotations

import json
from typing import Literal, get_args

import click
from rich.text import Text

from pipeline.cli.speaking import speaking
from reports.console import Console
from reports.events import events_schema
from reports.matrix import MatrixRecord
from reports.records import ManifestRecord, RunRecord

Kind = Literal["events", "log", "report", "matrix", "manifest"]
RECORDS = {"report": RunRecord, "matrix": MatrixRecord, "manifest": ManifestRecord}


@click.command("schema")
@click.argument("kind", type=click.Choice(get_args(Kind)))
@speaking
def command(kind: Kind, console: Console) -> None:
    """Print a JSON Schema: of an event of --json, a line of events.ndjson, report.json or manifest.json.

    `matrix` is what --per-target writes as report.json.
    """
    if kind in ("events", "log"):
        schema = events_schema("stream" if kind == "events" else "log")
    else:
        schema = RECORDS[kind].model_json_schema()
    console.result([Text(json.dumps(schema, indent=1), no_wrap=True)], json_schema=schema)
