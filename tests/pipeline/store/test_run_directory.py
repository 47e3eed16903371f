"""The run directory: stages are whole or absent, served exactly when their inputs are the same, shared, and locked."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from pipeline.store import mark as marks
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
    run.close()
    RunDirectory.resume(run.root)
    assert not list(run.root.rglob(".partial-*"))


def test_what_a_run_below_is_making_is_left_alone(run: RunDirectory) -> None:
    """With --per-target, a run of one target may be resumed by itself."""
    below = RunDirectory.create(run.root / "target", "")
    (below.root / "candidates" / ".partial-x-1").mkdir(parents=True)
    run.close()
    RunDirectory.resume(run.root)
    assert (below.root / "candidates" / ".partial-x-1").exists()


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
    run.close()
    assert (RunDirectory.create(run.root, "model = 'y'\n").root / "recipe.toml").read_text() == "model = 'y'\n"


def test_a_run_that_was_killed_while_it_wrote_its_recipe_is_started_over(tmp_path: Path) -> None:
    for name in (".lock", ".recipe.toml.x7_y8abc"):
        (tmp_path / name).touch()
    RunDirectory.create(tmp_path, "")
    assert set(os.listdir(tmp_path)) == {".lock", "recipe.toml"}


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


# What runs share ------------------------------------------------------------------------------------------------


@pytest.fixture
def another(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "another", "model = 'x'\n")


class Maker:
    """Makes a stage of one file and counts how often it was asked to."""

    def __init__(self, content: str = "whole") -> None:
        self.content, self.made = content, 0

    def __call__(self, folder: Path) -> dict[str, str]:
        self.made += 1
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text(self.content)
        return {"content": self.content}


def events(run: RunDirectory, kind: str) -> list[dict]:
    rows = [json.loads(line) for line in (run.root / "events.ndjson").read_text().splitlines()]
    return [row for row in rows if row["event"] == kind]


def test_what_one_run_made_another_is_served(run: RunDirectory, another: RunDirectory) -> None:
    make = Maker()
    assert run.stage("s", {"x": 1}, make) == another.stage("s", {"x": 1}, make) == {"content": "whole"}
    assert make.made == 1 and (another.root / "s" / "sub" / "file").read_text() == "whole"
    assert another.seconds("s") == run.seconds("s")
    another.stage("s", {"x": 1}, make)
    assert [row["cached"] for row in events(run, "stage")] == [False]
    assert [row["cached"] for row in events(another, "stage")] == ["store", "run"]


def test_what_the_clock_says_stays_in_its_run(run: RunDirectory, another: RunDirectory) -> None:
    make = Maker()
    for each in (run, another, another):
        each.stage("s", {}, make, shared=False)
    assert make.made == 2 and not run.store.root.exists()


def test_a_run_is_whole_without_the_store(run: RunDirectory, another: RunDirectory) -> None:
    make = Maker()
    for each in (run, another):
        each.stage("s", {}, make)
    shutil.rmtree(run.store.root)
    for each in (run, another):
        assert each.holds("s", {}) and each.stage("s", {}, make) == {"content": "whole"}
    assert make.made == 1


def test_holds_brings_a_stage_into_the_run(run: RunDirectory, another: RunDirectory) -> None:
    run.stage("s", {}, Maker())
    assert another.holds("s", {}) and not another.holds("s", {"x": 2})
    shutil.rmtree(run.store.root)
    another.stage("s", {}, lambda folder: pytest.fail("it was there"))
    assert [row["cached"] for row in events(another, "stage")] == ["store"]


def test_a_file_that_is_edited_in_place_is_made_again_for_all(run: RunDirectory, another: RunDirectory) -> None:
    """Links share the file with the store: it is damaged there as well, and both say so."""
    make = Maker()
    run.stage("s", {}, make)
    edited = run.root / "s" / "sub" / "file"
    edited.chmod(0o644)
    edited.write_text("WHOLE")
    assert another.stage("s", {}, make) == {"content": "whole"} and make.made == 2
    assert [(row["stage"], row["source"]) for row in events(another, "dropped")] == [("s", "store")]
    assert "sub/file" in events(another, "dropped")[0]["reason"]
    run.stage("s", {}, make)
    assert make.made == 2 and edited.read_text() == "whole"
    assert [row["source"] for row in events(run, "dropped")] == ["run"]


def test_a_file_that_is_replaced_damages_its_run_alone(run: RunDirectory, another: RunDirectory) -> None:
    make = Maker()
    run.stage("s", {}, make)
    (run.root / "s" / "sub" / "file").unlink()
    (run.root / "s" / "sub" / "file").write_text("mine")
    assert another.stage("s", {}, make) == {"content": "whole"}
    assert run.stage("s", {}, make) == {"content": "whole"} and make.made == 1
    assert events(run, "dropped")[0]["source"] == "run" and events(run, "stage")[-1]["cached"] == "store"


def test_a_mark_of_another_version_is_made_again(run: RunDirectory) -> None:
    make = Maker()
    run.stage("s", {}, make, shared=False)
    mark = json.loads((run.root / "s" / ".stage.json").read_text())
    (run.root / "s" / ".stage.json").write_text(json.dumps({name: mark[name] for name in ("key", "seconds", "result")}))
    assert run.seconds("s") == 0.0
    run.stage("s", {}, make, shared=False)
    assert make.made == 2


def test_a_failure_is_told_and_never_served(run: RunDirectory, another: RunDirectory) -> None:
    def broken(folder: Path) -> None:
        raise UsageError("no", where="here", why="because", fix="else", code="TEST")

    for each in (run, another):
        with pytest.raises(UsageError):
            each.stage("s", {}, broken)
        assert events(each, "failed")[0]["error"]["code"] == "TEST"
    assert not list(run.store.objects.glob("*"))
    assert another.stage("s", {}, Maker()) == {"content": "whole"}


@pytest.mark.parametrize("where", ["/dev/null/cache", "/proc/cache"])
def test_a_store_that_cannot_be_written_fails_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setenv("PLANISH_CACHE", where)
    run, make = RunDirectory.create(tmp_path / "run", ""), Maker()
    for x in (1, 2, 1, 2):
        assert run.stage(f"s{x}", {"x": x}, make) == {"content": "whole"}
    assert make.made == 2 and len(events(run, "warning")) == 1
    assert where in events(run, "warning")[0]["where"]


def test_a_full_store_fails_no_run(run: RunDirectory, another: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another disk than the run, which has room."""

    def full(directory: Path, mark: marks.Mark) -> None:
        raise OSError(28, "No space left on device", str(run.store.root))

    monkeypatch.setattr(run.store, "put", full)
    assert run.stage("s", {}, Maker()) == {"content": "whole"}
    assert "No space" in events(run, "warning")[0]["why"]
    assert another.stage("s", {}, make := Maker()) == {"content": "whole"} and make.made == 1


def test_a_full_disk_under_the_run_is_said_so(
    run: RunDirectory, another: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.stage("s", {}, Maker())

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(marks, "_link", full)
    with pytest.raises(MissingEnvironmentError) as caught:
        another.stage("s", {}, Maker())
    assert caught.value.code == "DISK_FULL" and not list(another.root.rglob(".partial-*"))


def test_a_dry_run_reads_the_store_and_leaves_it_alone(run: RunDirectory, tmp_path: Path) -> None:
    run.stage("s", {}, Maker())
    before = sorted(run.store.root.rglob("*"))
    dry, make = RunDirectory.create(tmp_path / "dry", "", publishes=False), Maker()
    dry.stage("s", {}, make)
    dry.stage("other", {}, make)
    assert make.made == 1 and sorted(run.store.root.rglob("*")) == before
