"""The console in its three modes: what is said, on which stream, at which width."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from report_runs import matrix
from rich.cells import cell_len
from rich.console import Console as RichConsole
from rich.table import Table

from reports import console as console_module
from reports.console import Console, suitable_mode
from reports.events import EVENTS_VERSION, STREAM
from reports.tables import goal_line, probe_line, probe_table, summary
from targets.errors import VerificationError

ROOT = Path(__file__).parents[2]
ERROR = VerificationError(
    "The artifact answers differently.",
    where="layer2.1.conv1",
    why="deviation 0.3",
    fix="planish export --format onnx",
    code="EXPORT_PARITY",
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def play(run, mode: str, *, quiet: bool = False, stdout=None, stderr=None) -> tuple[str, str]:
    """A whole run spoken aloud; returns what went to stdout and stderr."""
    stdout, stderr = stdout or io.StringIO(), stderr or io.StringIO()
    with Console(mode, quiet, stdout=stdout, stderr=stderr) as console:
        console.begin(run.model, run.targets, run.goal)
        with console.stage("calibrate") as stage:
            stage.update("500 of 2,000 samples")
        console.event("warning", text="few samples of class 7")
        console.event("note", text="3 stages were kept")
        for probe in run.probes:
            with console.stage(f"probe {probe.index}"), console.stage("measure"):
                pass
            console.probe(probe)
        console.summary(run, Path("runs/x"))
    return stdout.getvalue(), stderr.getvalue()


@pytest.mark.parametrize("quiet", [False, True])
def test_json_is_one_event_a_line_and_the_last_is_the_result(runs, quiet):
    for run in runs.values():
        out, err = play(run, "json", quiet=quiet)
        events = [json.loads(line) for line in out.splitlines()]
        assert err == "" and out.isascii()
        assert [event["event"] for event in events].count("result") == 1
        assert events[-1]["event"] == "result" and events[-1]["directory"] == "runs/x"
        assert events[-1]["run"] == json.loads(run.to_json()) and events[-1]["report"] == "runs/x/report.json"
        assert [event.get("schema") for event in events] == [EVENTS_VERSION] + [None] * (len(events) - 1)
        for event in events:
            STREAM.validate_python(event)
        kinds = {event["event"] for event in events}
        assert kinds == ({"warning", "result"} if quiet else {"begin", "stage", "warning", "note", "probe", "result"})


def test_json_events_carry_their_fields_and_no_infinity():
    out = io.StringIO()
    console = Console("json", stdout=out, stderr=io.StringIO())
    console.result([], path=Path("a/b"), worst=float("nan"), names=("x", "y"))
    event = json.loads(out.getvalue(), parse_constant=lambda constant: pytest.fail(constant))
    assert (event["path"], event["worst"], event["names"]) == ("a/b", None, ["x", "y"])


def test_plain_is_one_line_an_event_on_stderr_and_the_summary_on_stdout(met):
    out, err = play(met, "plain")
    lines = err.splitlines()
    assert "\x1b" not in out + err
    assert (
        sum(
            "probe 4: budget 8.05 ms, predicted 7.98 ms, measured 8.31 ms [8.29, 8.33], 2.2 % under, "
            "top-1 91.35 % (−0.35 pt), met" in line
            for line in lines
        )
        == 1
    )
    assert any(line.endswith("calibrate: 500 of 2,000 samples") for line in lines)
    assert any("probe 4 > measure: done in 0.00 s" in line for line in lines)
    assert any("warning: few samples of class 7" in line for line in lines)
    for said in (
        "1.71× faster",
        "91.70 %",
        "−0.35 pt",
        "1.85 MB",
        "runs/x/candidates/03/tflite/model.tflite",
        "runs/x/candidates/03/coreml/model.mlpackage",
        "runs/x/report.html",
        met.next_command,
        met.headline,
    ):
        assert said in out, said


def test_quiet_keeps_warnings_and_the_result(met):
    out, err = play(met, "plain", quiet=True)
    assert len(err.splitlines()) == 1 and "warning" in err
    assert "1.71× faster" in out


def test_a_failing_stage_says_so_and_lets_the_error_pass():
    err = io.StringIO()
    console = Console("plain", stdout=io.StringIO(), stderr=err)
    with pytest.raises(ZeroDivisionError), console.stage("export"):
        raise ZeroDivisionError
    assert "export: failed after" in err.getvalue()


def test_updates_that_come_too_fast_are_dropped():
    err = io.StringIO()
    with Console("plain", stdout=io.StringIO(), stderr=err) as console, console.stage("train") as stage:
        for step in range(100):
            stage.update(f"step {step}")
    assert err.getvalue().count("train: step") == 1


def test_errors_are_four_lines_on_stderr_or_the_last_json_event():
    out, err = io.StringIO(), io.StringIO()
    Console("plain", stdout=out, stderr=err).error(ERROR)
    assert err.getvalue() == f"{ERROR}\n" and out.getvalue() == ""
    Console("json", stdout=out, stderr=err).error(ERROR)
    event = json.loads(out.getvalue())
    assert event["event"] == "error" and event["code"] == "EXPORT_PARITY" and event["exit_code"] == 4


def test_text_from_a_users_file_does_not_steer_the_terminal(runs):
    out, err = play(runs["hostile text"], "plain")
    assert "\x1b" not in out + err


def live(run, monkeypatch, **environment) -> tuple[str, str]:
    defaults = {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30", "NO_COLOR": ""}
    for name, value in (defaults | environment).items():
        monkeypatch.setenv(name, value)
    return play(run, "rich", stdout=Terminal(), stderr=Terminal())


def test_on_a_terminal_the_table_lives_and_stays(met, monkeypatch):
    out, err = live(met, monkeypatch)
    assert "\x1b[31m" in err and "\x1b[?25h" in err, "colour, and the cursor given back"
    last = err[err.rindex("predicted") :]
    assert all(said in last for said in ("9.31 ms", "7.22 ms", "8.52 ms", "8.31 ms", "[8.29, 8.33]", "undecided"))
    assert "calibrate" in err and "1.71× faster" in out


def test_no_color_is_obeyed(met, monkeypatch):
    out, err = live(met, monkeypatch, NO_COLOR="1")
    assert not [code for code in ("\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[1;32m", "\x1b[1;31m") if code in out + err]


def test_a_table_taller_than_the_terminal_keeps_its_newest_rows(met, monkeypatch):
    many = [met.candidate(1).model_copy(update={"index": index}) for index in range(1, 31)]
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "12"}.items():
        monkeypatch.setenv(name, value)
    err = Terminal()
    with Console("rich", stdout=io.StringIO(), stderr=err) as console, console.stage("fit"):
        for candidate in many:
            console.probe(candidate)
        assert "… 22 earlier" in err.getvalue()


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 160])
def test_tables_fit_the_width_without_cutting_a_number(runs, width):
    for run in runs.values():
        screen = RichConsole(file=io.StringIO(), width=width)
        screen.print(probe_table(run.probes, run.goal, width))
        text = screen.file.getvalue()
        assert all(cell_len(line) <= width for line in text.splitlines())
        assert "…" not in text
        for measured in filter(None, map(run.primary, run.probes)):
            assert f"{measured.median_ms:.3g}" in text


def test_every_limit_has_a_column_that_a_narrow_terminal_gives_up_before_the_worst_margin(runs):
    run = runs["two targets"]
    wide, narrow = (probe_table(run.probes, run.goal, width) for width in (140, 44))
    heads = [str(column.header) for column in wide.columns]
    assert heads[3:8] == ["pixel-4-cpu", "", "raspberry-pi-4", "size", "vs target"]
    assert [list(wide.columns[index].cells)[1].plain for index in (5, 6, 7)] == ["20.2 ms", "1.14 MB", "2.5 % over"]
    assert [str(column.header) for column in narrow.columns] == ["#", "pixel-4-cpu", "vs target", "verdict"]


def test_lines_say_every_limit_and_what_was_measured_against_it(runs):
    run = runs["two targets"]
    assert goal_line(run.targets, run.goal) == (
        "pixel-4-cpu median ≤ 8.50 ms · raspberry-pi-4 median ≤ 20.0 ms · size ≤ 1.11 MB (60% of the original) · "
        "at most 1.00 pt of quality lost · tflite decides"
    )
    assert (
        "pixel-4-cpu 8.24 ms [8.22, 8.26], raspberry-pi-4 19.8 ms, size 1.08 MB, 1.1 % under, top-1 91.35 % (−0.35 pt)"
        in probe_line(run.candidate(4), run.goal)
    )
    one = runs["met"]
    assert goal_line(one.targets, one.goal).startswith(
        "target Google Pixel 4, CPU · median ≤ 8.50 ms · at most 1.00 pt"
    )


def test_a_metric_of_the_users_has_four_digits_and_no_percent(runs):
    run = runs["own metric"]
    out, err = play(run, "plain")
    assert "pose error 0.08466 (+0.00252), met" in err and "at most 0.003 of quality lost" in err
    assert re.search(
        r"pose error +0\.08214 +0\.08466 +\[0\.08156, 0\.08796\] +\+0\.00252 \[\+0\.00132, \+0\.00372\]", out
    )
    assert "%" not in re.search(r"pose error.*", out).group()


def test_the_summary_says_what_each_knob_would_buy_and_what_the_samples_cannot_tell(runs):
    out, _ = play(runs["floor broken"], "plain")
    assert "--max-drop 1.4pt  Candidate 2 is handed over as it is." in out
    assert "too close to the floor for 2,000 samples to tell" in out
    assert "samples to tell" not in play(runs["base meets"], "plain")[0]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_matrix_of_targets_is_summed_up(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    out = io.StringIO()
    Console("plain", stdout=out, stderr=io.StringIO()).matrix_summary(matrix(), Path("runs/two"))
    said = out.getvalue()
    assert said.startswith("2 of 2 targets met, by 2 artifacts.\n")
    assert "▲ 20.6 ms" in said and "● 8.05 ms" in said and "…" not in said
    assert ("1.20 MB" in said, "91.00 %" in said) == (width > 40, width > 40)
    assert "runs/two/raspberry-pi-4/candidates/03/tflite/model.tflite" in said
    assert "runs/two/raspberry-pi-4/report.html" in said and said.rstrip().endswith("runs/two/report.html")


@pytest.mark.parametrize("width", [40, 80])
def test_summary_tables_fit(runs, width):
    for run in runs.values():
        screen = RichConsole(file=io.StringIO(), width=width)
        for part in summary(run, Path("r"), width):
            if isinstance(part, Table):
                screen.print(part)
        assert "…" not in screen.file.getvalue()


def test_an_encoding_without_the_signs_is_no_crash(met):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    err = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    with Console("plain", stdout=out, stderr=err) as console:
        console.begin(met.model, met.targets, met.goal)
        console.summary(met, Path("runs/x"))
    out.flush()
    assert b"8.31 ms" in out.buffer.getvalue()


@pytest.mark.parametrize("mode", ["json", "plain"])
def test_a_reader_that_goes_away_does_not_end_the_run(mode, tmp_path):
    script = (
        "import sys; from reports.console import Console\n"
        f"console = Console({mode!r})\n"
        "for step in range(20_000): console.event('note', text=f'step {step}')\n"
        "console.close(); open(sys.argv[1], 'w').write('finished')\n"
    )
    reader, writer = os.pipe()
    streams = (
        {"stdout": writer, "stderr": subprocess.PIPE}
        if mode == "json"
        else {"stdout": subprocess.PIPE, "stderr": writer}
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "mark")], cwd=ROOT, **streams)
    os.close(writer)
    os.read(reader, 100)
    os.close(reader)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and not out and not err
    assert (tmp_path / "mark").read_text() == "finished"


def test_the_mode_that_suits_a_stream():
    assert suitable_mode(Terminal(), {"TERM": "xterm"}) == "rich"
    assert suitable_mode(Terminal(), {"TERM": "dumb"}) == "plain"
    assert suitable_mode(io.StringIO(), {"TERM": "xterm"}) == "plain"


def test_the_reports_import_no_torch_and_no_pipeline():
    script = (
        "import sys, reports.console, reports.html.render, reports.records\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('torch', 'pipeline', 'calibration')])"
    )
    printed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "[]"


def test_a_frozen_clock_shows_whole_seconds(met, monkeypatch):
    monkeypatch.setattr(console_module.time, "monotonic", lambda: 100.0)
    monkeypatch.setenv("COLUMNS", "100")
    console = Console("rich", stdout=io.StringIO(), stderr=Terminal())
    with console.stage("measure") as stage:
        monkeypatch.setattr(console_module.time, "monotonic", lambda: 112.4)
        stage.update("block 3 of 8")
        assert "measure  12 s  block 3 of 8" in console._view().renderables[-1].plain
    console.close()
