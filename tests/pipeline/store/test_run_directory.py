"""The run directory: stages are whole or absent, served exactly when their inputs are the same, and locked."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pipeline.store.run_directory import RunDirectory
from pipeline.store.writing import writing
from targets.errors import MissingEnvironmentError, UsageError


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", "model = 'x'\n")


def test_a_stage_is_served_only_for_the_same_inputs(run: RunDirectory) -> None:
    made = []

    def make(folder: Path) -> dict[str, int]:
        made.append(folder)
        (folder / "file").write_text("whole")
        return {"n": len(made)}

    assert run.stage("a/b", {"x": 1}, make) == {"n": 1}
    assert run.stage("a/b", {"x": 1}, make) == {"n": 1}
    assert run.stage("a/b", {"x": 2}, make) == {"n": 2}
    assert (run.root / "a/b/file").read_text() == "whole"


def test_a_failed_stage_leaves_nothing_and_keeps_what_was_there(run: RunDirectory) -> None:
    def broken(folder: Path) -> None:
        (folder / "half").write_text("h")
        raise UsageError("no", where="here", why="because", fix="else", code="TEST")

    run.stage("s", {"x": 1}, lambda folder: (folder / "old").write_text("old"))
    with pytest.raises(UsageError):
        run.stage("s", {"x": 2}, broken)
    assert sorted(os.listdir(run.root / "s")) == [".stage.json", "old"]
    assert not list(run.root.rglob(".partial-*"))
    assert "TEST" in (run.root / "events.ndjson").read_text()


def test_leftovers_of_a_killed_run_are_cleared_on_resume(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", "")
    (run.root / "candidates" / ".partial-x-1").mkdir(parents=True)
    run._lock.close()
    RunDirectory.resume(run.root)
    assert not list(run.root.rglob(".partial-*"))


def test_two_processes_do_not_share_a_run(run: RunDirectory) -> None:
    with pytest.raises(MissingEnvironmentError) as caught:
        RunDirectory.resume(run.root)
    assert caught.value.code == "RUN_BUSY"


def test_a_run_is_not_overwritten_and_nothing_cannot_be_resumed(run: RunDirectory, tmp_path: Path) -> None:
    run.stage("candidates/00/network", {}, lambda folder: None)
    with pytest.raises(UsageError) as caught:
        RunDirectory.create(run.root, "")
    assert caught.value.code == "RUN_EXISTS" and "--resume" in caught.value.fix
    with pytest.raises(UsageError) as caught:
        RunDirectory.resume(tmp_path / "nothing")
    assert caught.value.code == "RUN_MISSING"


def test_a_run_that_ended_before_its_first_candidate_is_started_over(run: RunDirectory) -> None:
    run.stage("base", {}, lambda folder: None)
    run._lock.close()
    assert (RunDirectory.create(run.root, "model = 'y'\n").root / "recipe.toml").read_text() == "model = 'y'\n"


def test_a_directory_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".partial-of-another-program").mkdir()
    with pytest.raises(UsageError) as caught:
        RunDirectory.create(tmp_path, "")
    assert caught.value.code == "OUTPUT_NOT_EMPTY" and (tmp_path / ".partial-of-another-program").exists()


def test_an_output_that_is_a_file_or_under_one_is_unwritable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MissingEnvironmentError) as caught:
        RunDirectory.create(tmp_path / "file" / "run", "")
    assert caught.value.code == "OUTPUT_UNWRITABLE" and caught.value.exit_code == 6


def test_no_space_is_said_so_whoever_noticed_it(tmp_path: Path) -> None:
    for error in (
        OSError(28, "No space left on device"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ):
        with pytest.raises(MissingEnvironmentError) as caught, writing(tmp_path):
            raise error
        assert caught.value.code == "DISK_FULL"


def test_events_are_one_json_object_a_line(run: RunDirectory) -> None:
    run.event("one", text="a\nb")
    run.event("two", path=Path("x"))
    rows = [json.loads(line) for line in (run.root / "events.ndjson").read_text().splitlines()]
    assert [row["event"] for row in rows] == ["one", "two"]
