"""`planish gc`: what goes, what is said of it, and what is refused."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from commands import planish

from pipeline.store.collect import held
from pipeline.store.locks import take
from pipeline.store.mark import MARK
from pipeline.store.run_directory import RunDirectory
from reports.matrix import MatrixRecord, MatrixRowRecord
from reports.records import CandidateRecord, GoalRecord, LimitRecord, RunRecord, TargetRecord

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
    run.close()
    unfinished = planish("gc", run.root)
    assert unfinished.exit_code == 2 and "RUN_UNFINISHED" in unfinished.stderr and "--resume" in unfinished.stderr
    assert ages(run) == [1, 20, 40] and (run.root / "s1" / "file").exists()


def test_a_store_that_cannot_be_swept_is_said_so(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(run.store.root))

    monkeypatch.setattr("pipeline.store.collect.Sweep.remove", refuse)
    done = planish("gc", "--keep", "0B")
    assert done.exit_code == 6 and "STORE_UNWRITABLE" in done.stderr and "PLANISH_CACHE" in done.stderr


TARGET = TargetRecord(name="phone", title="A phone", core="a76", clock_ghz=2.8, kind="emulator", profile_version="1")
LIMIT = LimitRecord(quantity="latency", target="phone", limit=8.0, unit="ms", asked="8ms")
HEAVY = ("weights.safetensors", "network.pt2", "model.mlpackage/Manifest.json")


def record(winner: int | None) -> RunRecord:
    """Of two candidates beside the original."""
    base, *candidates = (
        CandidateRecord(
            index=index, budget_ms=None, predicted_ms=None, parameters=1, macs=1, verdict="met" if index else "base"
        )
        for index in range(3)
    )
    return RunRecord(
        planish_version="0",
        name="run",
        model="model.py:tiny",
        data="x.npz",
        targets=(TARGET,),
        goal=GoalRecord(limits=(LIMIT,), max_drop=None, formats=("tflite",), primary_format="tflite"),
        verdict="not-met" if winner is None else "met",
        exit_code=3 if winner is None else 0,
        headline="done",
        base=base,
        candidates=tuple(candidates),
        winner=winner,
        best=1 if winner is None else None,
        environment={},
        started=datetime.now(UTC),
        finished=datetime.now(UTC),
        seconds=1.0,
        command="planish fit",
    )


def finished_run(root: Path, winner: int | None) -> Path:
    run = RunDirectory.create(root, "")

    def network(folder: Path) -> None:
        for name in HEAVY:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(os.urandom(SIZE))
        (folder / "plan.json").write_text("{}")

    for index in range(3):
        run.stage(f"candidates/{index:02d}/network", {"index": index}, network, shared=False)
    (root / "report.json").write_text(record(winner).to_json())
    run.close()
    return root


def heavy(root: Path) -> list[int]:
    """Indices of the candidates that have all their files; the others have none of the heavy ones."""
    found = []
    for folder in sorted((root / "candidates").iterdir()):
        there = [(folder / "network" / name).exists() for name in HEAVY]
        assert all(there) or not any(there)
        assert (folder / "network" / "plan.json").exists()
        found += [int(folder.name)] if all(there) else []
    return found


@pytest.mark.parametrize(("winner", "left"), [(2, [2]), (0, [0]), (None, [1])], ids=["met", "as it was", "missed"])
def test_of_a_finished_run_the_candidate_that_was_handed_over_stays(
    tmp_path: Path, winner: int | None, left: list[int]
) -> None:
    run = finished_run(tmp_path / "run", winner)
    would = told(run, "--dry-run")
    assert heavy(run) == [0, 1, 2]
    done = told(run)
    assert heavy(run) == left and done["store"] is None  # results that runs share are not touched
    assert done["runs"] == would["runs"]
    assert done["runs"] == [{"run": str(run), "removed": 6, "bytes": 6 * SIZE, "freed_bytes": 6 * SIZE}]
    assert told(run)["runs"][0]["removed"] == 0
    assert "0 files" in planish("gc", run).stdout


def test_of_a_fit_per_target_the_run_of_each_is_swept(tmp_path: Path) -> None:
    root = tmp_path / "run"
    over = RunDirectory.create(root, "")
    finished_run(root / "phone", 1)
    nothing = {name: None for name in ("file", "bytes", "sha256", "quality")}
    row = MatrixRowRecord(
        target=TARGET,
        limits=(LIMIT,),
        directory="phone",
        verdict="met",
        exit_code=0,
        headline="done",
        winner=1,
        format="tflite",
        **nothing,
    )
    matrix = MatrixRecord(planish_version="0", name="run", model="m", rows=(row,), cells=(), command="planish fit")
    (root / "report.json").write_text(matrix.to_json())
    assert planish("gc", root).exit_code == 6  # the run over them is at work
    over.close()
    assert told(root)["runs"][0]["run"] == str(root / "phone") and heavy(root / "phone") == [1]
