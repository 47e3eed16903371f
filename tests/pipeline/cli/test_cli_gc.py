"""`planish gc`: what goes, what is said of it, and what is refused."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from commands import planish

from pipeline.store.collect import held
from pipeline.store.locks import take
from pipeline.store.mark import MARK
from pipeline.store.run_directory import RunDirectory

DAY_S = 86400.0
SIZE = 2000


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """Has three results in the store, last used 1, 20 and 40 days ago."""
    run = RunDirectory.create(tmp_path / "run", "")
    for age in (1, 20, 40):
        run.stage(f"s{age}", {}, lambda folder: (folder / "file").write_bytes(b"x" * SIZE))
        newest = held(run.store)[-1].key
        os.utime(run.store.objects / newest / MARK, (time.time() - age * DAY_S,) * 2)
    return run


def told(*words: object) -> dict:
    done = planish("gc", *words, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def ages(run: RunDirectory) -> list[int]:
    """Days since the results that are left were used, the newest first."""
    return [round((time.time() - each.used) / DAY_S) for each in reversed(held(run.store))]


@pytest.mark.parametrize(
    ("words", "left"),
    [
        ((), [1, 20]),
        (("--older", "12h"), []),
        (("--older", "3w"), [1, 20]),
        (("--keep", "5kB"), [1, 20]),
        (("--keep", "1GB"), [1, 20, 40]),
        (("--keep", "0B"), []),
        (("--keep", "1GB", "--older", "10d"), [1]),
        (("--older", "12h", "--dry-run"), [1, 20, 40]),
    ],
    ids=str,
)
def test_what_goes(run: RunDirectory, words: tuple[str, ...], left: list[int]) -> None:
    found = told(*words)["store"]
    assert ages(run) == left
    assert found["left"] == len(left) and found["directory"] == str(run.store.root)
    if "--dry-run" not in words:
        assert found["removed"] == 3 - len(left)


def test_it_says_what_the_disk_has_more(run: RunDirectory) -> None:
    shown = planish("gc", "--keep", "0B", "--dry-run").stdout
    assert "3 results of" in shown and "would be removed" in shown and "stays on the disk" in shown
    first = told("--keep", "0B")["store"]
    assert first["bytes"] > 3 * SIZE > first["freed_bytes"]
    assert "0 results" in planish("gc").stdout


def test_what_is_being_made_stays(run: RunDirectory) -> None:
    with take(run.store.lock(held(run.store)[0].key)):
        assert told("--keep", "0B")["store"]["busy"] == 1
        assert "1 in use" in planish("gc", "--keep", "0B").stdout
    assert ages(run) == [40]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--older", "30"), "OLDER_UNIT"),
        (("--older", "30x"), "OLDER_UNIT"),
        (("--keep", "10"), "KEEP_UNIT"),
        (("--keep", "10%"), "KEEP_UNIT"),
        (("--keep", "much"), "KEEP_UNIT"),
        (("nowhere",), "RUN_MISSING"),
    ],
    ids=str,
)
def test_what_is_refused(run: RunDirectory, words: tuple[str, ...], code: str) -> None:
    done = planish("gc", *words)
    assert done.exit_code == 2 and code in done.stderr
    assert ages(run) == [1, 20, 40]


def test_a_run_at_work_or_unfinished_is_refused(run: RunDirectory) -> None:
    busy = planish("gc", run.root)
    assert busy.exit_code == 6 and "RUN_BUSY" in busy.stderr
    run._lock.close()
    unfinished = planish("gc", run.root)
    assert unfinished.exit_code == 2 and "RUN_UNFINISHED" in unfinished.stderr and "--resume" in unfinished.stderr
    assert ages(run) == [1, 20, 40] and (run.root / "s1" / "file").exists()


def test_a_store_that_cannot_be_swept_is_said_so(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(run.store.root))

    monkeypatch.setattr("pipeline.store.collect.Sweep.remove", refuse)
    done = planish("gc", "--keep", "0B")
    assert done.exit_code == 6 and "STORE_UNWRITABLE" in done.stderr and "PLANISH_CACHE" in done.stderr
