"""`planish schema`: what it prints is what planish's own output is checked against."""

from __future__ import annotations

import json

import pytest
from commands import finished, planish

from reports.events import LOG, STREAM, events_schema
from reports.matrix import MatrixRecord
from reports.records import ManifestRecord, RunRecord

KINDS = {
    "events": events_schema("stream"),
    "log": events_schema("log"),
    "report": RunRecord.model_json_schema(),
    "matrix": MatrixRecord.model_json_schema(),
    "manifest": ManifestRecord.model_json_schema(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_schema_is_printed_as_a_file_of_its_own(kind: str) -> None:
    plain, told = planish("schema", kind), planish("schema", kind, "--json")
    assert (plain.exit_code, told.exit_code) == (0, 0)
    (result,) = map(json.loads, told.stdout.splitlines())
    assert json.loads(plain.stdout) == result["json_schema"] == KINDS[kind]
    STREAM.validate_python(result)


def test_of_what_there_is_no_schema() -> None:
    done = finished("schema", "recipes")
    assert done.returncode == 2 and "COMMAND_LINE" in done.stderr and "manifest" in done.stderr


@pytest.mark.parametrize(("kind", "adapter"), [("events", STREAM), ("log", LOG)])
def test_every_kind_of_event_is_in_its_schema(kind: str, adapter) -> None:
    described = json.loads(planish("schema", kind).stdout)
    kinds = set(described["discriminator"]["mapping"])
    assert kinds == {each.model_fields["event"].annotation.__args__[0] for each in adapter._type.__args__[0].__args__}
