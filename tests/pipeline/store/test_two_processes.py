"""Runs in processes of their own that want the same: one makes it, the others wait; who is killed keeps no lock."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.store.locks import is_held, take
from pipeline.store.run_directory import RunDirectory

ROOT = Path(__file__).parents[3]
# Makes stage "s" in the run it is given; says "making" by a file, and goes on when it is told to by another.
PROGRAM = """
import sys, time
from pathlib import Path
from pipeline.store.run_directory import RunDirectory

run, signs = RunDirectory.create(Path(sys.argv[1]), ""), Path(sys.argv[2])

def make(folder):
    with (signs / "made").open("a") as made:
        made.write(f"{run.root.name} ")
    (folder / "file").write_bytes(b"x" * 100000)
    (signs / f"making-{run.root.name}").touch()
    while not (signs / "go").exists():
        time.sleep(0.02)
    return run.root.name

run.tell = lambda text: (signs / "told").write_text(text)
print(run.stage("s", {"x": 1}, make))
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts the program for a run of that name; all are gone when the test ends."""
    processes = []

    def start(name: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", PROGRAM, str(tmp_path / name), str(tmp_path)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        processes.append(subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def wait_for(what: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end, "it did not come about in a minute"
        time.sleep(0.02)


def events(run: Path, kind: str) -> list[dict]:
    log = run / "events.ndjson"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return [row for row in rows if row["event"] == kind]


def test_the_second_waits_says_so_and_is_served(start: Callable, tmp_path: Path) -> None:
    first = start("first")
    wait_for(lambda: (tmp_path / "making-first").exists())
    second = start("second")
    wait_for(lambda: events(tmp_path / "second", "waiting"))
    (tmp_path / "go").touch()
    assert first.communicate(timeout=60)[0] == second.communicate(timeout=60)[0] == "first\n"
    assert (tmp_path / "made").read_text().split() == ["first"]
    assert events(tmp_path / "second", "waiting")[0]["stage"] == "s"
    assert (tmp_path / "told").read_text() == "waiting for another run that makes s"
    assert [row["cached"] for row in events(tmp_path / "second", "stage")] == ["store"]
    assert not events(tmp_path / "first", "waiting")


def test_when_the_first_is_killed_the_second_makes_it(start: Callable, tmp_path: Path) -> None:
    first = start("first")
    wait_for(lambda: (tmp_path / "making-first").exists())
    second = start("second")
    wait_for(lambda: events(tmp_path / "second", "waiting"))
    first.send_signal(signal.SIGKILL)
    (tmp_path / "go").touch()
    assert second.communicate(timeout=60)[0] == "second\n"
    assert (tmp_path / "made").read_text().split() == ["first", "second"]
    assert [row["cached"] for row in events(tmp_path / "second", "stage")] == [False]


def test_a_killed_run_leaves_no_lock_and_goes_on(start: Callable, tmp_path: Path) -> None:
    process = start("run")
    wait_for(lambda: (tmp_path / "making-run").exists())
    assert is_held(tmp_path / "run" / ".lock")
    process.kill()
    process.wait()
    assert not is_held(tmp_path / "run" / ".lock")
    run = RunDirectory.resume(tmp_path / "run")
    assert not list(run.root.rglob(".partial-*"))
    assert run.stage("s", {"x": 1}, lambda folder: "resumed") == "resumed"


def test_many_at_once_make_it_once(start: Callable, tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    runs = [start(f"run{i}") for i in range(4)]
    made = {run.communicate(timeout=120)[0] for run in runs}
    assert len(made) == 1 and len((tmp_path / "made").read_text().split()) == 1


def test_what_is_made_together_is_reserved_together(tmp_path: Path) -> None:
    run, other = (RunDirectory.create(tmp_path / name, "") for name in ("run", "other"))
    wanted = {name: {"of": name} for name in ("a", "b", "c")}
    run.stage("b", wanted["b"], lambda folder: "b")
    with run.reserved(wanted) as missing:
        assert missing == ["a", "c"]
        locks = [run.store.lock(path.name) for path in run.store.lock("").glob("*") if is_held(path)]
        assert len(locks) == 2 and all(take(lock) is None for lock in locks)
        for name in missing:
            run.stage(name, wanted[name], lambda folder, name=name: name)
    assert not any(map(is_held, locks))
    with other.reserved(wanted) as missing:
        assert missing == []
    assert other.stage("c", wanted["c"], lambda folder: pytest.fail("it was there")) == "c"


def test_a_lock_that_was_removed_while_waited_for_is_not_taken_for_held(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with take(path):
        path.unlink()
        with take(path):
            assert take(path) is None and is_held(path)
    assert not is_held(path)
