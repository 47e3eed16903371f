"""Every exit code that `planish --help` documents, from the real command in a process of its own."""

from __future__ import annotations

import json
import re
import shlex
import signal
from pathlib import Path

import pytest
from commands import MODEL, events_of, exporting, finished, planish, stages_of, started, wait_for

from reports.events import LOG
from reports.records import read_run

HERE = ("--target", "host", "--format", "onnx", "--recover-steps", 0)


def test_the_help_documents_these() -> None:
    said = " ".join(planish("--help").stdout.split())
    assert [int(code) for code in re.findall(r"\b(\d+) [a-z]", said.partition("Exit codes:")[2])] == [
        0, 1, 2, 3, 4, 5, 6, 130
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.export
def test_0_every_gate_is_met(in_user_folder: Path, tmp_path: Path) -> None:
    done = finished("fit", *MODEL, *HERE, "--size", "1MB", "--max-drop", "0pt", "-o", tmp_path / "run")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    record = read_run(tmp_path / "run/report.json")
    assert (record.verdict, record.exit_code, record.winner) == ("met", 0, 0)
    assert not any(edit.kind == "recover" for candidate in record.candidates for edit in candidate.edits)


def test_1_something_that_planish_did_not_expect(in_user_folder: Path, tmp_path: Path) -> None:
    words = ("fit", "model.py:Stubborn", "--data", "test.npz", *HERE, "--latency", "1s", "-o", tmp_path / "run")
    done = finished(*words, "-q")
    assert (done.returncode, done.stdout) == (1, "") and "Traceback" not in done.stderr
    first, where, why, fix = done.stderr.splitlines()
    assert first.startswith("error[UNEXPECTED]") and "RuntimeError" in first
    assert "model.py" in where and "this network only trains" in why and "PLANISH_TRACEBACK=1" in fix
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "failed"
    stopped = LOG.validate_python(events_of(tmp_path / "run")[-1])
    assert stopped.state == "failed" and "this network only trains" in stopped.error


def test_2_a_command_line_that_cannot_be_used(in_user_folder: Path, tmp_path: Path) -> None:
    done = finished("fit", *MODEL, *HERE, "--latency", "12", "-o", tmp_path / "run")
    assert done.returncode == 2 and "error[LATENCY_UNIT]" in done.stderr and not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.export
def test_3_a_goal_that_cannot_be_met(in_user_folder: Path, tmp_path: Path) -> None:
    words = ("fit", "model.py:Plain", "--data", "test.npz", *HERE, "--size", "100B", "-o", tmp_path / "run")
    done = finished(*words)
    assert done.returncode == 3 and "Traceback" not in done.stderr, done.stderr
    record = read_run(tmp_path / "run/report.json")
    assert (record.verdict, record.exit_code, record.winner) == ("not-met", 3, None)
    assert record.headline in " ".join(done.stdout.split())
    assert record.primary(record.chosen).bytes == (tmp_path / "run/bundle/model.onnx").stat().st_size


@pytest.mark.slow
@pytest.mark.export
def test_4_what_cannot_be_exported(in_user_folder: Path, tmp_path: Path) -> None:
    words = ("export", "model.py:ordered", "--data", "test.npz", "--format", "tflite", "-o", tmp_path)
    done = finished(*words)
    assert done.returncode == 4 and "error[EXPORT_FAILED]" in done.stderr, done.stderr
    assert not list(tmp_path.glob("model.*"))


BRIEF = "import targets.judging\n\ntargets.judging.LOOKS_S = (1e-6,)\n"  # 30 samples, the fewest there are


@pytest.mark.slow
@pytest.mark.export
def test_5_a_measurement_that_decides_nothing(in_user_folder: Path, tmp_path: Path) -> None:
    """With a look at so few samples that nothing bounds their 90th percentile from above."""
    (tmp_path / "sitecustomize.py").write_text(BRIEF)
    words = ("fit", "model.py:Plain", "--data", "test.npz", *HERE, "--p90", "10s", "-o", tmp_path / "run")
    done = finished(*words, customized=tmp_path)
    assert done.returncode == 5 and "Traceback" not in done.stderr, done.stderr
    record = read_run(tmp_path / "run/report.json")
    assert (record.verdict, record.exit_code, record.winner) == ("undecided", 5, None)
    (outcome,) = record.chosen.outcomes
    assert (outcome.quantity, outcome.verdict, outcome.high) == ("p90", "undecided", None) and outcome.reason
    assert "cannot be told from its limit" in record.headline and record.headline in " ".join(done.stdout.split())
    assert (tmp_path / "run/bundle/model.onnx").exists()


def test_6_what_a_target_needs_is_missing(
    in_user_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANISH_CACHE", str(tmp_path / "cache"))
    done = finished("fit", *MODEL, "--target", "pixel-4-cpu", "--latency", "1ms", "-o", tmp_path / "run")
    assert done.returncode == 6 and "error[EMULATOR_MISSING]" in done.stderr and not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.export
def test_130_an_interrupt_says_how_to_go_on(in_user_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "a run"
    process = started("fit", *MODEL, *HERE, "--size", "1MB", "-o", run)
    wait_for(process, lambda: exporting(run))
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, "") and "Traceback" not in stderr
    command = stderr.splitlines()[-1].partition("go on with: ")[2]
    program, *words = shlex.split(command)
    assert (program, words) == ("planish", ["fit", "--resume", str(run)])

    seen = len(events_of(run))
    done = finished(*words)
    assert done.returncode == 0 and read_run(run / "report.json").verdict == "met", done.stderr
    again = stages_of(run, seen)
    assert again["base"] == again["candidates/00/network"] == "run" and again["candidates/00/onnx"] is False
