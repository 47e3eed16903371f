"""Every way a user gets a command wrong: four lines, the right exit code, no traceback; one event with --json."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import COMMAND, ENVIRONMENT, events_of, exporting, finished, planish, started, structured, wait_for
from tiny import SHAPE, tiny

from pipeline.store.run_directory import RunDirectory

FOUR_LINES = re.compile(r"error\[([A-Z0-9_]+)\]: \S.*\n  where: (\S.*)\n  why:   (\S.*)\n  fix:   (\S.*)\n")


def line_of(words: str) -> int:
    """The line of the user's file that holds `words`."""
    lines = Path(__file__).with_name("tiny.py").read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if words in line)


def fit_words(output: Path, **changed: object) -> list[object]:
    """A `planish fit` that would work, but for what is changed."""
    options = {"data": "labelled.npz", "target": "host", "latency": "1s", "format": "tflite", **changed}
    return ["fit", options.pop("model", "model.py:tiny"), *(w for k, v in options.items() for w in (f"--{k}", v)),
            "-o", output]  # fmt: skip


def check_refused(words: list[object], code: str, exit_code: int, *telling: str) -> None:
    """Runs the command twice, plain and with --json: both say the same, each in its own form."""
    plain = planish(*words, "-q")
    match = FOUR_LINES.fullmatch(plain.stderr)
    assert match is not None, f"{plain.stdout}\n{plain.stderr}\n{plain.exception!r}"
    assert (match[1], plain.exit_code, plain.stdout) == (code, exit_code, "")
    for words_said in telling:
        assert words_said in plain.stderr
    as_json = planish(*words, "--json")
    assert as_json.exit_code == exit_code and "Traceback" not in as_json.stderr
    events = [json.loads(line) for line in as_json.stdout.splitlines()]
    last = events[-1]
    assert (last["event"], last["code"], last["exit_code"]) == ("error", code, exit_code)
    assert tuple(" ".join(last[part].split()) for part in ("where", "why", "fix")) == match.groups()[1:]
    assert [event["event"] for event in events].count("error") == 1


@pytest.fixture(scope="session")
def broken(user_folder: Path) -> Path:
    """Samples, weights and recipes that cannot be used, beside the ones that can."""
    x, y = structured(40, 3)
    unfinite = x.copy()
    unfinite[7, 0, 3, 3] = np.nan
    np.savez(user_folder / "nan.npz", x=unfinite)
    np.savez(user_folder / "empty.npz", x=x[:0])
    np.savez(user_folder / "four_channels.npz", x=np.concatenate([x, x[:, :1]], 1))
    y = y.copy()
    y[11] = 9
    np.savez(user_folder / "labels.npz", x=x, y=y)
    (user_folder / "whole.npz").write_bytes((user_folder / "test.npz").read_bytes()[:5000])
    whole = (user_folder / "weights.safetensors").read_bytes()
    (user_folder / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    torch.save(tiny().state_dict(), user_folder / "whole.pt")
    (user_folder / "truncated.pt").write_bytes((user_folder / "whole.pt").read_bytes()[:3000])
    program = torch.export.export(tiny(), (torch.zeros(2, *SHAPE),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    torch.export.save(program, user_folder / "model.pt2")
    return user_folder


REFUSED = {
    "model file that is not there": (
        {"model": "modle.py:tiny"}, "MODEL_MISSING", "did you mean 'model.py'?"),
    "program that is not there": (
        {"model": "modle.pt2"}, "MODEL_MISSING", "did you mean 'model.pt2'?"),
    "callable that is not there": (
        {"model": "model.py:tinny"}, "MODEL_CALLABLE", "did you mean 'tiny'?"),
    "callable that raises": (
        {"model": "model.py:raising"}, "MODEL_CALLABLE", "raised KeyError", "the checkpoint has no width",
        f"model.py:{line_of('raise KeyError')} in raising"),
    "control flow that depends on the data": (
        {"model": "model.py:Branching"}, "MODEL_CONTROL_FLOW", f"model.py:{line_of('if x.mean')} in forward",
        "torch.where"),
    "samples of another shape": (
        {"data": "four_channels.npz"}, "MODEL_INPUT", "[2, 4, 12, 12]", "expected input", "in features"),
    "samples of another shape than a program takes": (
        {"model": "model.pt2", "data": "four_channels.npz"}, "DATA_SHAPE", "[4, 12, 12]", "[3, 12, 12]"),
    "data that is not there": (
        {"data": "labeled.npz"}, "DATA_MISSING", "did you mean 'labelled.npz'?"),
    "truncated data": (
        {"data": "whole.npz"}, "DATA_FORMAT", "whole.npz"),
    "samples with NaN": (
        {"data": "nan.npz"}, "DATA_NAN", "sample 7 of nan.npz"),
    "no samples": (
        {"data": "empty.npz"}, "DATA_EMPTY", "empty.npz"),
    "labels out of range": (
        {"data": "labels.npz"}, "DATA_LABELS", "label 9", "sample 11 of labels.npz", "0 to 4"),
    "test labels out of range": (
        {"test": "labels.npz"}, "DATA_LABELS", "sample 11 of labels.npz"),
    "truncated safetensors": (
        {"weights": "truncated.safetensors"}, "WEIGHTS_BROKEN", "truncated.safetensors"),
    "truncated checkpoint": (
        {"weights": "truncated.pt"}, "WEIGHTS_BROKEN", "truncated.pt"),
    "weights that are not there": (
        {"weights": "wieghts.safetensors"}, "WEIGHTS_MISSING", "wieghts.safetensors"),
    "unknown target": (
        {"target": "pixel-4-cup"}, "TARGET_UNKNOWN", "did you mean 'pixel-4-cpu'?"),
    "latency without a unit": (
        {"latency": "12"}, "LATENCY_UNIT", "it has no unit; the units are us, ms, s, %", "--latency 12"),
    "latency in minutes": (
        {"latency": "12min"}, "LATENCY_UNIT", "'min' is not a unit", "us, ms, s, %"),
    "recovery without a unit": (
        {"recover": "10"}, "RECOVER_UNIT", "it has no unit; the units are s, min, h", "--recover 10"),
    "latency of nothing": (
        {"latency": "0ms"}, "LATENCY_VALUE", "greater than zero"),
    "drop without a unit": (
        {"max-drop": "0.5"}, "MAX_DROP_UNIT", "the units are pt"),
    "90th percentile without a unit": (
        {"p90": "12"}, "P90_UNIT", "--p90 12", "us, ms, s, %"),
    "memory without a unit": (
        {"memory": "12"}, "MEMORY_UNIT", "--memory 12", "MB"),
    "a floor under what is no class score": (
        {"output-kind": "values", "max-drop": "1pt"}, "QUALITY_UNKNOWN", "--metric"),
    "a metric that is not there": (
        {"metric": "model.py:tinny"}, "METRIC_CALLABLE", "model.py", "did you mean 'tiny'?"),
    "unknown format": (
        {"format": "tflight"}, "UNKNOWN_FORMAT", "--format", "did you mean 'tflite'?"),
    "latency of a format that is not measured here": (
        {"format": "coreml"}, "FORMAT_NOT_MEASURED", "--format", "Apple's systems"),
    "labels of other classes": (
        {"labels": "model.py"}, "LABELS_UNUSABLE", "model.py", "classes"),
    "unknown removal": (
        {"method": "easier", "removal": "slowly"}, "RECIPE_FIELD", "--removal", "'one-shot' or 'rounds'"),
    "unknown policy of the rounds": (
        {"method": "easier", "easier-policy": "imagenet"}, "RECIPE_FIELD", "--easier-policy", "'domainbed'"),
    "a drop below none": (
        {"method": "easier", "tolerated-drop": -1}, "RECIPE_FIELD", "--tolerated-drop", "greater than or equal to 0"),
    "rounds without labels": (
        {"method": "easier", "removal": "rounds", "data": "unlabelled.npz"}, "DATA_UNLABELLED", "--removal rounds"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_fit_is_refused(case: str, broken: Path, in_user_folder: Path, tmp_path: Path) -> None:
    changed, code, *telling = REFUSED[case]
    check_refused(fit_words(tmp_path / "run", **changed), code, 2, *telling)
    assert not list(tmp_path.rglob(".partial-*")) and not list(tmp_path.glob("run/candidates/*"))


def test_a_corrected_command_may_use_the_same_output(broken: Path, in_user_folder: Path, tmp_path: Path) -> None:
    """The output directory of a command that failed before its first candidate can be used again."""
    for data, code in (("nan.npz", "DATA_NAN"), ("labels.npz", "DATA_LABELS")):
        check_refused(fit_words(tmp_path / "run", data=data), code, 2)


def test_what_is_missing_is_asked_for_by_the_name_of_its_option(in_user_folder: Path) -> None:
    check_refused(["fit"], "RECIPE_FIELD", 2, "MODEL is missing")
    check_refused(["fit", "model.py:tiny", "--target", "host", "--latency", "1ms"], "RECIPE_FIELD", 2, "add --data")


def test_the_emulator_is_not_set_up(in_user_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANISH_CACHE", str(tmp_path / "cache"))
    words = fit_words(tmp_path / "run", target="pixel-4-cpu")
    check_refused(words, "EMULATOR_MISSING", 6, "planish targets setup pixel-4-cpu", str(tmp_path / "cache"))
    assert not (tmp_path / "run").exists()
    doctor = planish("doctor")
    assert doctor.exit_code == 6 and "planish targets setup pixel-4-cpu" in doctor.stdout


@pytest.mark.parametrize("place", ["file/run", "/proc/planish-run", "/sys/planish-run"])
def test_an_output_directory_that_cannot_be_written(place: str, in_user_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    output = tmp_path / place  # an absolute place stays itself
    check_refused(fit_words(output), "OUTPUT_UNWRITABLE", 6, str(output), "choose another -o")
    check_refused(["init", *fit_words(output / "planish.toml")[1:]], "OUTPUT_UNWRITABLE", 6, str(output))
    check_refused(["export", "model.py:tiny", "--data", "test.npz", "-o", output], "OUTPUT_UNWRITABLE", 6, str(output))


RECIPE = 'model = "model.py:tiny"\ndata = "labelled.npz"\ntarget = "host"\nlatency = "1s"\n'
RECIPES = {
    "unknown key": (RECIPE + "recover_step = 3\n", "RECIPE_FIELD", "recover_step", "did you mean 'recover_steps'?"),
    "wrong type": (RECIPE + 'seed = "one"\n', "RECIPE_FIELD", "planish.toml, seed", "valid integer"),
    "missing key": (RECIPE.replace('target = "host"\n', ""), "RECIPE_FIELD", "target is missing", "planish.toml"),
    "no goal": (RECIPE.replace('latency = "1s"\n', ""), "GOAL_MISSING", "planish.toml, latency", "--size"),
    "goals for other targets": (
        RECIPE.replace('"1s"', '["1s", "2s"]'),
        "GOALS_MISMATCHED",
        "2 values",
        "planish.toml, latency",
    ),
    "one target twice": (RECIPE.replace('"host"', '["host", "host"]'), "GOALS_MISMATCHED", "named twice", "target"),
    "bare size": (RECIPE + 'size = "12"\n', "SIZE_UNIT", "planish.toml, size 12", "kB, KB, MB"),
    "bare latency": (RECIPE.replace("1s", "12"), "LATENCY_UNIT", "planish.toml, latency 12", "us, ms, s, %"),
    "not TOML": ("model: model.py\n", "RECIPE_SYNTAX", "line 1", "planish.toml"),
    "not text": ("\xff\xfe", "RECIPE_SYNTAX", "planish.toml"),
}


@pytest.mark.parametrize("case", RECIPES)
def test_a_recipe_is_refused(case: str, in_user_folder: Path, tmp_path: Path) -> None:
    text, code, *telling = RECIPES[case]
    (tmp_path / "planish.toml").write_text(text, encoding="latin-1")
    check_refused(["fit", tmp_path / "planish.toml", "-o", tmp_path / "run"], code, 2, *telling)


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    check_refused(["fit", tmp_path / "planish.toml"], "RECIPE_MISSING", 2, "planish init")


def test_an_option_beside_a_recipe_takes_the_place_of_its_own(in_user_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "planish.toml").write_text(RECIPE)
    check_refused(["fit", tmp_path / "planish.toml", "--target", "hots"], "TARGET_UNKNOWN", 2, "did you mean 'host'?")


def test_resuming_what_is_not_there_and_starting_what_is(in_user_folder: Path, tmp_path: Path) -> None:
    check_refused(["fit", "--resume", tmp_path / "nothing"], "RUN_MISSING", 2, str(tmp_path / "nothing"))
    run = RunDirectory.create(tmp_path / "run", RECIPE)
    run.stage("candidates/00/network", {}, lambda folder: None)
    check_refused(fit_words(run.root), "RUN_EXISTS", 2, f"planish fit --resume {run.root}")
    check_refused(["fit", "--resume", run.root], "RUN_BUSY", 6, str(run.root))
    changed = ["fit", "--resume", run.root, "--latency", "1ms"]
    check_refused(changed, "RECIPE_CHANGED", 2, 'latency: "1s" -> "1ms"', "--change-recipe", "another -o")
    check_refused(["fit", "--resume", run.root, "--latency", "1s"], "RUN_BUSY", 6)  # nothing is changed by that
    check_refused([*changed, "--change-recipe"], "RUN_BUSY", 6)
    assert (run.root / "recipe.toml").read_text() == RECIPE
    check_refused([*fit_words(tmp_path / "other"), "--change-recipe"], "RESUME_OPTIONS", 2, "--resume")


def test_a_directory_with_other_files_is_not_taken_for_output(in_user_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    check_refused(fit_words(tmp_path), "OUTPUT_NOT_EMPTY", 2, str(tmp_path))


def test_words_that_are_no_command_and_no_option() -> None:
    check_refused(["fti"], "COMMAND_UNKNOWN", 2, "did you mean 'fit'?")
    check_refused(["targets", "lst"], "COMMAND_UNKNOWN", 2, "did you mean 'list'?")
    check_refused(["fit", "--latncy", "1ms"], "COMMAND_LINE", 2, "did you mean '--latency'?", "planish fit")
    check_refused(["measure", "model.tflite", "--target", "host"], "COMMAND_LINE", 2, "--data", "measure --help")


def test_an_artifact_that_cannot_be_measured(in_user_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.tflite").write_bytes(b"TFL3")
    for file, code in ((tmp_path / "model.tflite", "ARTIFACT_UNUSABLE"), ("model.py", "FORMAT_UNKNOWN")):
        check_refused(["measure", file, "--target", "host", "--data", "test.npz"], code, 2, str(file))


def test_a_report_of_nothing(tmp_path: Path) -> None:
    check_refused(["report", tmp_path], "REPORT_UNREADABLE", 2, "report.json")


# --- the whole process --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["fit", "nothing.py:build", "--data", "test.npz", "--target", "host", "--latency", "1ms"], "MODEL_MISSING"),
        (["fit", "model.py:tiny", "--data", "test.npz", "--target", "host", "--latency", "12"], "LATENCY_UNIT"),
    ],
)
def test_the_last_four_lines_of_a_process_are_the_error(words, code, in_user_folder, tmp_path) -> None:
    done = finished(*words, "-o", tmp_path / "run")
    error = "".join(done.stderr.splitlines(keepends=True)[-4:])
    assert (done.returncode, done.stdout) == (2, "") and "Traceback" not in done.stderr
    assert FOUR_LINES.fullmatch(error)[1] == code


def no_litter(run: Path) -> bool:
    return not any(run.rglob(".partial-*")) and not any(run.rglob(".export-*")) and not any(run.rglob("*.partial"))


@pytest.mark.slow
@pytest.mark.export
def test_an_interrupt_prints_the_command_that_resumes(in_user_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "a run"
    process = started(*fit_words(run))
    wait_for(process, lambda: exporting(run))
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, "") and "Traceback" not in stderr
    assert f"planish fit --resume '{run}'" in stderr.splitlines()[-1]
    assert json.loads((run / "status.json").read_text())["state"] == "interrupted"
    assert no_litter(run) and (run / "candidates/00/network/.stage.json").exists()
    assert (events_of(run)[-1]["event"], events_of(run)[-1]["state"]) == ("stopped", "interrupted")


FULL_DISK = """
run=$1; shift
"$@" --json -q > full.json 2> full.err; echo $? > full.code
find "$run" > full.files
$FREE
$RESUME --resume "$run" --json -q > resumed.json 2> resumed.err; echo $? > resumed.code
cp -r "$run" kept
"""


@pytest.mark.slow
@pytest.mark.export
def test_a_disk_that_fills_up_while_exporting(user_folder: Path, tmp_path: Path) -> None:
    """On a file system of 14 MB where the system lets a test mount one, else under a file-size limit.

    The network's weights are 4 MB: the run keeps them three times before there is an artifact, the fourth does not fit.
    """
    isolated = ["unshare", "--user", "--map-root-user", "--mount"]
    disk = tmp_path / "disk"
    disk.mkdir()
    mounts = (
        shutil.which("unshare") is not None
        and not subprocess.run([*isolated, "mount", "-t", "tmpfs", "none", str(disk)], capture_output=True).returncode
    )
    quoted = " ".join(f"'{word}'" for word in COMMAND)
    if mounts:
        prepare, limit, free = f'mount -t tmpfs -o size=14m none "{disk}"', "", f'mount -o remount,size=99m "{disk}"'
    else:
        prepare, limit, free, isolated = "true", "prlimit --fsize=4100000", "true", []
    fit = fit_words(disk / "run", model=f"{user_folder / 'model.py'}:Wide", data=user_folder / "test.npz")
    script = FULL_DISK.replace("$FREE", free).replace("$RESUME", f"{quoted} fit")
    words = [*isolated, "sh", "-c", f"{prepare}; {script}", "sh", disk / "run", *limit.split(), *COMMAND, *fit]
    subprocess.run([str(word) for word in words], cwd=tmp_path, env=ENVIRONMENT, check=True, timeout=300)

    error = json.loads((tmp_path / "full.json").read_text().splitlines()[-1])
    assert (error["event"], error["code"], error["exit_code"]) == ("error", "DISK_FULL", 6), error
    assert (tmp_path / "full.code").read_text() == "6\n" and (tmp_path / "full.err").read_text() == ""
    left = (tmp_path / "full.files").read_text()
    assert "candidates/00/network/network.pt2" in left and "model.tflite" not in left
    assert ".partial" not in left and ".export-" not in left
    assert (tmp_path / "resumed.code").read_text() == "0\n", (tmp_path / "resumed.json").read_text()
    kept = tmp_path / "kept"
    assert list(kept.glob("bundle/model.tflite")) and no_litter(kept)
    served = {row["stage"] for row in events_of(kept) if row["event"] == "stage" and row["cached"]}
    assert {"base", "candidates/00/network"} <= served


def test_the_command_can_be_started_without_torch() -> None:
    """`planish --help` and errors that need no network are quick."""
    code = ("import sys; from click.testing import CliRunner; from pipeline.cli.main import cli; "
            "done = CliRunner().invoke(cli, sys.argv[1:]); print(done.exit_code, 'torch' in sys.modules)")  # fmt: skip
    for words, expected in ((["--help"], "0 False"), (["fit", "--help"], "0 False"), (["fit", "x.toml"], "2 False")):
        done = subprocess.run([sys.executable, "-c", code, *words], env=ENVIRONMENT, capture_output=True, text=True)
        assert done.stdout.strip() == expected, done.stderr
