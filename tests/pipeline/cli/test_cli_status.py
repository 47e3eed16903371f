"""`planish status`: what a run does or did, whether its process lives, and how to go on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import ENVIRONMENT, planish

from pipeline.store.run_directory import RunDirectory
from targets.errors import UsageError

RECIPE = 'model = "model.py:tiny"\ndata = "x.npz"\ntarget = "pixel-4-cpu"\nlatency = "8ms"\nmax_drop = "1pt"\n'
TIMED = {"quantity": "latency", "target": "pixel-4-cpu", "limit": 8.0, "unit": "ms", "low": 1.0, "high": 20.0}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """A run at work on its second candidate, in `runs/mine`."""
    monkeypatch.chdir(tmp_path)
    run = RunDirectory.create(Path("runs/mine"), RECIPE)
    run.event("begin", command="planish fit")
    for index, ms, verdict in ((0, 12.5, "above"), (1, 9.0, "undecided"), (1, 9.0, "above"), (2, 7.75, "met")):
        outcome = {**TIMED, "value": ms, "verdict": verdict}
        run.event("candidate", index=index, verdict=verdict, outcomes=[outcome])
    run.status(state="running", doing="exporting tflite", at="now")
    return run


def released(run: RunDirectory) -> None:
    """What the kernel does when a process ends."""
    run.close()


def told(*words: object) -> dict:
    done = planish("status", *words, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_of_a_run_at_work(run: RunDirectory) -> None:
    shown = planish("status", run.root)
    assert shown.exit_code == 0
    for text in ("running: exporting tflite", "pixel-4-cpu median ≤ 8ms, at most 1pt lost", "12.5 ms", "▲ above"):
        assert text in shown.stdout
    assert "--resume" not in shown.stdout
    found = told(run.root)["run"]
    assert (found["state"], found["what"], found["resume"]) == ("running", "exporting tflite", None)
    assert [(each["index"], each["verdict"]) for each in found["candidates"]] == [
        (0, "above"),
        (1, "above"),
        (2, "met"),
    ]
    assert found["goal"] == [{"quantity": "latency", "target": "pixel-4-cpu", "asked": "8ms"}]


def test_of_one_that_waits_for_another(run: RunDirectory) -> None:
    run.event("waiting", stage="candidates/03/network")
    assert told(run.root)["run"]["what"] == "waiting for another run that makes candidates/03/network"


@pytest.fixture
def killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A run whose process was killed by SIGKILL in the middle of its work."""
    monkeypatch.chdir(tmp_path)
    program = (
        "import os, signal, sys; from pathlib import Path; from pipeline.store.run_directory import RunDirectory\n"
        "run = RunDirectory.create(Path(sys.argv[1]), sys.argv[2])\n"
        "run.event('begin'); run.status(state='running', doing='recovering'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program, "runs/a run", RECIPE], env=ENVIRONMENT)
    assert done.returncode == -9
    return Path("runs/a run")


def test_of_one_that_was_killed(killed: Path) -> None:
    found = told(killed)["run"]
    assert (found["state"], found["what"]) == ("killed", "recovering")
    assert found["resume"] == "planish fit --resume 'runs/a run'"
    shown = planish("status", killed).stdout
    assert "killed: recovering" in shown and "its process is gone" in shown and found["resume"] in shown


@pytest.mark.parametrize(
    ("fields", "state", "what", "goes_on"),
    [
        ({"state": "interrupted", "error": "KeyboardInterrupt()"}, "interrupted", "KeyboardInterrupt()", True),
        (
            {
                "state": "failed",
                "error": UsageError("no data", where="x.npz", why="w", fix="f", code="DATA_MISSING").to_json(),
            },
            "failed",
            "no data (DATA_MISSING)",
            True,
        ),
        ({"state": "done", "headline": "7.75 ms on a phone"}, "done", "7.75 ms on a phone", False),
    ],
    ids=["interrupted", "failed", "done"],
)
def test_of_one_that_ended(run: RunDirectory, fields: dict, state: str, what: str, goes_on: bool) -> None:
    run.status(**fields)
    released(run)
    found = told(run.root)["run"]
    assert (found["state"], found["what"], bool(found["resume"])) == (state, what, goes_on)


def test_nothing_that_is_broken_keeps_it_from_telling(run: RunDirectory) -> None:
    (run.root / "status.json").write_text("{")
    (run.root / "recipe.toml").write_text("nonsense = ")
    run.event("candidate", index=3, verdict="met")
    with (run.root / "events.ndjson").open("a") as log:
        log.write('{"time": "2026-')
    released(run)
    found = told(run.root)["run"]
    assert found["state"] == "killed" and len(found["candidates"]) == 4 and found["goal"] == []
    assert "its recipe cannot be read" in planish("status", run.root).stdout
    assert planish("status").exit_code == 0


def test_of_all_runs(run: RunDirectory) -> None:
    released(RunDirectory.create(Path("runs/second"), RECIPE))
    found = told()["runs"]
    assert [(each["directory"], each["state"]) for each in found] == [
        ("runs/mine", "running"),
        ("runs/second", "killed"),
    ]
    shown = planish("status").stdout
    assert "runs/mine" in shown and "runs/second" in shown and "7.75 ms ● met" in shown


def test_of_a_run_for_each_of_two_targets(run: RunDirectory) -> None:
    """With --per-target each target's run is in a folder of its own; sharing one lock's fate, they are told apart."""
    part = RunDirectory.create(run.root / "pixel-4-cpu", RECIPE.replace("8ms", "60%"))
    part.status(state="done", headline="60 ms")
    released(part)
    found = told(run.root)["run"]
    assert found["state"] == "running"
    assert [(each["directory"], each["state"]) for each in found["parts"]] == [("runs/mine/pixel-4-cpu", "done")]
    assert "pixel-4-cpu" in planish("status", run.root).stdout
    assert "median ≤ 60% of the original" in planish("status", part.root).stdout


def test_it_writes_nothing_and_keeps_nobody_out(run: RunDirectory) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.root.rglob("*")}
    told(run.root)
    assert {path: path.stat().st_mtime_ns for path in run.root.rglob("*")} == before
    released(run)
    told(run.root)
    RunDirectory.resume(run.root)


def test_where_there_is_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert told()["runs"] == [] and "no runs" in planish("status").stdout
    missing = planish("status", "elsewhere")
    assert missing.exit_code == 2 and "RUN_MISSING" in missing.stderr
