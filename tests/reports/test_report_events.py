"""The events: what the console prints and a run directory keeps is what is documented, and nothing else."""

from __future__ import annotations

import io
import json
import shutil
import threading
import time
from pathlib import Path

import pytest
from pydantic import ValidationError
from report_runs import matrix, two_targets

from pipeline.store.keys import stage_key
from pipeline.store.locks import locked
from pipeline.store.run_directory import RunDirectory
from reports.console import Console
from reports.events import (
    EVENTS_VERSION,
    LOG,
    STREAM,
    ErrorEvent,
    ErrorFields,
    LogEvent,
    ResultEvent,
    StreamEvent,
    events_schema,
    stream_event,
)
from reports.matrix import MatrixRecord
from reports.records import RunRecord
from targets.errors import UsageError

ERROR = UsageError("No such target.", where="--target pixle", why="there is none", fix="pixel-4-cpu", code="TARGET")


def printed(speak) -> list:
    out = io.StringIO()
    speak(Console("json", stdout=out, stderr=io.StringIO()))
    return [STREAM.validate_json(line) for line in out.getvalue().splitlines()]


def kinds(union) -> list[str]:
    members = union.__origin__.__args__
    return [member.model_fields["event"].annotation.__args__[0] for member in members]


def test_every_kind_of_the_stream_can_be_spoken_and_reads_back(tmp_path):
    run = two_targets()

    def speak(console: Console) -> None:
        console.begin(run.model, run.targets, run.goal)
        with pytest.raises(ZeroDivisionError), console.stage("fitting"), console.stage("measure") as stage:
            stage.update("block 2 of 8")
            raise ZeroDivisionError
        console.probe(run.candidate(4))
        console.event("note", text="nothing to add")
        console.event("warning", text="interrupted", resume="planish fit --resume runs/x")
        console.error(ERROR)
        console.summary(run, tmp_path)

    events = printed(speak)
    assert {each.event for each in events} == set(kinds(StreamEvent))
    begin, probe, result = events[0], next(each for each in events if each.event == "probe"), events[-1]
    assert begin.version == EVENTS_VERSION and all(each.version is None for each in events[1:])
    assert begin.goal == run.goal and begin.targets == run.targets
    assert probe.candidate == run.candidate(4).model_copy(update={"layers": ()})
    stages = [(each.stage, each.state, each.text) for each in events if each.event == "stage"]
    assert stages == [
        (("fitting",), "started", ""),
        (("fitting", "measure"), "started", ""),
        (("fitting", "measure"), "update", "block 2 of 8"),
        (("fitting", "measure"), "failed", "block 2 of 8"),
        (("fitting",), "failed", ""),
    ]
    assert isinstance(result, ResultEvent) and isinstance(result.run, RunRecord) and result.run == run
    assert result.report == str(tmp_path / "report.json")
    assert all(each.time.utcoffset() is not None for each in events)


def test_a_matrix_is_the_result_of_its_own_field(tmp_path):
    (result,) = printed(lambda console: console.matrix_summary(matrix(), tmp_path))
    assert isinstance(result.matrix, MatrixRecord) and result.matrix == matrix() and result.run is None


def test_a_result_has_the_fields_of_its_command_and_an_error_those_of_errors():
    (result,) = printed(lambda console: console.result([], artifacts=[{"file": "a.tflite"}], run={"state": "done"}))
    assert result.model_extra == {"artifacts": [{"file": "a.tflite"}]} and result.run == {"state": "done"}
    (error,) = printed(lambda console: console.error(ERROR))
    assert {name: getattr(error, name) for name in ErrorFields.model_fields} == ERROR.to_json()
    assert set(ErrorEvent.model_fields) == {*ERROR.to_json(), "event", "time", "version"}


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("cache", {"hits": 3}),
        ("note", {}),
        ("note", {"text": "a", "hits": 3}),
        ("stage", {"stage": [], "state": "done", "seconds": 1.0}),
        ("stage", {"stage": ["a"], "state": "gone", "seconds": 1.0}),
        ("stage", {"stage": ["a"], "state": "done", "seconds": float("nan")}),
    ],
)
def test_what_is_not_described_is_not_an_event(kind, fields):
    with pytest.raises(ValidationError):
        stream_event(kind, fields, first=False)


def test_what_a_run_directory_keeps_is_described(tmp_path):
    """Made, taken from the run and from the store, dropped there, waited for, failed; and what drives a fit writes."""

    def make(folder: Path) -> dict[str, int]:
        (folder / "a.txt").write_text("whole")
        return {"a": 1}

    def raising(error: Exception):
        def fail(folder: Path) -> None:
            raise error

        return fail

    run = RunDirectory.create(tmp_path / "run", "")
    file, log = run.root / "calibrate" / "a.txt", run.root / "events.ndjson"

    def calibrate() -> None:
        run.stage("calibrate", {"seed": 0}, make)

    run.event("begin", schema=EVENTS_VERSION, command="planish fit model.py:net")
    calibrate()  # made
    calibrate()  # from the run
    file.unlink()
    calibrate()  # dropped from the run, and taken from the store, where the file is still whole
    file.chmod(0o644)
    file.write_text("damaged")  # the store's as well: one file, linked
    calibrate()  # dropped from both, and made
    shutil.rmtree(file.parent)
    with locked(run.store.lock(stage_key("calibrate", {"seed": 0})), waiting=lambda: None):
        other = threading.Thread(target=calibrate)
        other.start()
        while '"waiting"' not in log.read_text():
            assert other.is_alive()
            time.sleep(0.02)
    other.join()
    for error in (ERROR, ZeroDivisionError("a bug")):
        with pytest.raises(type(error)):
            run.stage("export", {}, raising(error))
    run._without_store(OSError("read-only file system"))
    run.keep_recipe('target = "another"')
    outcomes = [each.model_dump(mode="json") for each in two_targets().candidate(4).outcomes]
    run.event("candidate", index=4, verdict="met", outcomes=outcomes)
    run.event("stopped", state="failed", error=ERROR.to_json())
    run.event("end", verdict="met", exit_code=0)

    events = [LOG.validate_json(line) for line in log.read_text().splitlines()]
    assert {each.event for each in events} == set(kinds(LogEvent))
    assert events[0].version == EVENTS_VERSION
    assert [each.cached for each in events if each.event == "stage"] == [False, "run", "store", False, "store"]
    assert [each.source for each in events if each.event == "dropped"] == ["run", "run", "store"]
    first, second = (each.error for each in events if each.event == "failed")
    candidate = next(each for each in events if each.event == "candidate")
    assert candidate.outcomes == two_targets().candidate(4).outcomes
    assert first.model_dump() == ERROR.to_json() and second == "ZeroDivisionError('a bug')"


@pytest.mark.parametrize(("which", "union"), [("stream", StreamEvent), ("log", LogEvent)])
def test_the_schema_describes_every_kind(which, union):
    schema = events_schema(which)
    json.dumps(schema)
    assert str(EVENTS_VERSION) in schema["title"]
    described = [schema["$defs"][each["$ref"].rpartition("/")[2]] for each in schema["oneOf"]]
    assert [each["properties"]["event"]["const"] for each in described] == kinds(union)
    for each in described:
        assert each["description"] and {"event", "time"} <= set(each["required"]) and "schema" in each["properties"]
