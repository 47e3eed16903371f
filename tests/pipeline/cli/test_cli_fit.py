"""The main job through the real command: what a run leaves, what it says, and that no kill makes a difference."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ENVIRONMENT, MODEL, events_of, exporting, finished, planish, stages_of, started, wait_for
from tiny import SHAPE

from pipeline.export.artifact import sha256_of
from pipeline.training import Training
from reports.events import EVENTS_VERSION, LOG, STREAM, ResultEvent
from reports.records import ManifestRecord, RunRecord, read_run
from targets import judging
from targets.arm.parts import is_ready

pytestmark = [pytest.mark.slow, pytest.mark.export]
emulated = [
    pytest.mark.emulator,
    pytest.mark.skipif(not is_ready(), reason="the ARM64 emulator is not set up: planish targets setup pixel-4-cpu"),
]

STEPS = 60
JOB = [*MODEL, "--target", "pixel-4-cpu", "--latency", "50%", "--max-drop", "99pt", "--format", "tflite",
       "--recover-steps", STEPS]  # fmt: skip


def hashes(run: Path) -> dict[str, str]:
    """SHA-256 of what a run hands over, and of the weights it was made from."""
    weights = run / f"candidates/{read_run(run / 'report.json').chosen.index:02d}/network/weights.safetensors"
    return {path.name: sha256_of(path) for path in [*run.glob("bundle/model.*"), weights]}


@pytest.fixture(scope="module")
def job(user_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """`planish init` and then `planish fit planish.toml --json`: the run directory, and what was said."""
    folder = tmp_path_factory.mktemp("job")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(user_folder)
        assert planish("init", *JOB, "-o", folder / "planish.toml").exit_code == 0
        return folder / "run", finished("fit", folder / "planish.toml", "-o", folder / "run", "--json")


@pytest.fixture
def again(job: tuple[Path, subprocess.CompletedProcess[str]], in_user_folder: Path, tmp_path: Path) -> Path:
    """A copy of the finished run for a test to go on with."""
    return Path(shutil.copytree(job[0], tmp_path / "run"))


class TestAFit:
    pytestmark = emulated

    def test_meets_its_goal_and_says_so(self, job) -> None:
        run, done = job
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
        record = read_run(run / "report.json")
        assert (record.verdict, record.exit_code, record.target.name) == ("met", 0, "pixel-4-cpu")
        winner, original = record.primary(record.chosen), record.primary(record.base)
        assert record.goal.latency_ms == pytest.approx(0.5 * original.median_ms)
        assert winner.high_ms <= record.goal.latency_ms and winner.instructions < original.instructions
        assert record.chosen.edits and record.chosen.parameters < record.base.parameters
        assert record.base.quality.metric == "top-1" and record.base.quality.value > 90
        assert record.chosen.quality.evaluated_on == "artifact" and record.chosen.quality.samples == 400

    def test_passes_parity_with_every_artifact(self, job) -> None:
        record = read_run(job[0] / "report.json")
        for probe in record.probes:
            levels = [("pt2", "program"), ("tflite", "host")]
            levels += (
                [("tflite", "emulator")] if probe is record.chosen else []
            )  # what is handed over, on the phone, too
            assert [(parity.format, parity.level) for parity in probe.parity] == levels
            assert all(parity.passed and len(parity.edge_cases) > 3 for parity in probe.parity)
            assert [parity.own.samples for parity in probe.parity][:2] == [64, 64]

    def test_says_what_is_delegated(self, job) -> None:
        record = read_run(job[0] / "report.json")
        (of_the_original,), (of_the_winner,) = record.base.delegation, record.chosen.delegation
        for delegation in (of_the_original, of_the_winner):
            assert (delegation.delegate, delegation.partitions, delegation.fallbacks) == ("XNNPACK", 1, ())
            assert delegation.delegated_nodes == delegation.nodes and 0.5 < delegation.time_share <= 1
        (sentence,) = of_the_original.violations  # flattening an NCHW map is a transpose where maps are NHWC
        assert "TRANSPOSE" in sentence and "'head'" in sentence

    def test_that_is_strict_refuses_what_is_not_delegated_whole(self, in_user_folder: Path, tmp_path: Path) -> None:
        done = finished("fit", *JOB, "--strict", "-o", tmp_path / "run")
        assert done.returncode == 4 and "NOT_DELEGATED" in done.stderr and "'head'" in done.stderr, done.stderr
        assert not (tmp_path / "run/candidates/01").exists()  # nothing was compressed

    def test_hands_over_what_it_measured(self, job) -> None:
        run, _ = job
        record = read_run(run / "report.json")
        manifest = ManifestRecord.model_validate_json((run / "bundle/manifest.json").read_bytes())
        assert [artifact.format for artifact in manifest.artifacts] == ["tflite"]
        for artifact in manifest.artifacts:
            measured = record.chosen.measurement(artifact.format)
            assert sha256_of(run / "bundle" / artifact.file) == artifact.sha256 == measured.artifact_sha256
            assert sha256_of(run / measured.file) == artifact.sha256
            assert artifact.bytes == (run / "bundle" / artifact.file).stat().st_size
            (given,), (taken,) = artifact.inputs, artifact.outputs
            assert (given.shape[1:], given.layout, taken.shape[1:]) == ((12, 12, 3), "NHWC", (5,))

    def test_leaves_a_report_and_whole_files(self, job) -> None:
        run, _ = job
        page = (run / "report.html").read_text()
        assert "Pixel 4" in page and not re.search(r"""(src|href)=["']?http""", page)
        events = events_of(run)
        assert (events[0]["event"], events[-1]["event"], events[-1]["exit_code"]) == ("begin", "end", 0)
        assert json.loads((run / "status.json").read_text())["state"] == "done"
        assert not any(run.rglob(".partial-*")) and not any(run.rglob(".export-*"))

    def test_speaks_json_with_the_result_last(self, job) -> None:
        run, done = job
        events = [json.loads(line) for line in done.stdout.splitlines()]
        assert events[-1]["event"] == "result" and [e["event"] for e in events].count("result") == 1
        assert RunRecord.model_validate(events[-1]["run"]) == read_run(run / "report.json")
        probes = [event["candidate"]["index"] for event in events if event["event"] == "probe"]
        assert probes == [probe.index for probe in read_run(run / "report.json").probes]

    def test_every_line_is_as_the_schemas_say(self, job) -> None:
        run, done = job
        spoken = [STREAM.validate_json(line) for line in done.stdout.splitlines()]
        kept = [LOG.validate_json(line) for line in (run / "events.ndjson").read_text().splitlines()]
        assert {event.event for event in spoken} == {"begin", "stage", "probe", "result"}
        assert {event.event for event in kept} == {"begin", "stage", "candidate", "end"}
        assert spoken[0].version == kept[0].version == EVENTS_VERSION
        assert not [event for event in (*spoken, *kept) if not isinstance(event, ResultEvent) and event.model_extra]

    def test_keeps_networks_that_load_without_the_users_file(self, job, user_folder: Path, tmp_path: Path) -> None:
        """In a fresh interpreter that has torch and nothing of the user's or of planish."""
        run, _ = job
        code = ("import sys, numpy, torch; data = numpy.load(sys.argv[1]); x = torch.from_numpy(data['x'])\n"
                "for path in sys.argv[2:]:\n"
                "    y = torch.export.load(path).module(check_guards=False)(x).argmax(1).numpy()\n"
                "    print((y == data['y']).mean() * 100)")  # fmt: skip
        paths = [run / f"candidates/{p.index:02d}/network/network.pt2" for p in read_run(run / "report.json").probes]
        words = [sys.executable, "-P", "-c", code, str(user_folder / "test.npz"), *map(str, paths)]
        environment = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONPATH"}
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
        reported = [probe.quality.value for probe in read_run(run / "report.json").probes]
        assert list(map(float, done.stdout.split())) == pytest.approx(reported, abs=0.5), done.stderr

    def test_resumed_when_finished_makes_nothing_anew(self, job, again: Path) -> None:
        seen = len(events_of(again))
        done = planish("fit", "--resume", again)
        assert done.exit_code == 0 and "met" in done.stdout, done.stderr
        made = [
            event["stage"] for event in events_of(again)[seen:] if event["event"] == "stage" and not event["cached"]
        ]
        assert made == []
        before, after = read_run(job[0] / "report.json"), read_run(again / "report.json")
        assert (after.verdict, after.headline, after.winner) == (before.verdict, before.headline, before.winner)
        assert hashes(again) == hashes(job[0])

    def test_that_loses_more_quality_than_allowed_is_not_met(self, again: Path) -> None:
        """Quality is agreement with the original here, on noise, of which no network is sure: what changes is lost."""
        noise = np.random.default_rng(5).standard_normal((400, *SHAPE)).astype(np.float32)
        np.savez(again.parent / "noise.npz", x=noise)
        recipe = (again / "recipe.toml").read_text()
        assert recipe.count('"99pt"') == recipe.count('"test.npz"') == 1
        stricter = recipe.replace('"99pt"', '"0pt"').replace('"test.npz"', f'"{again.parent}/noise.npz"')
        (again / "recipe.toml").write_text(stricter)
        done = planish("fit", "--resume", again, "-q")
        record = read_run(again / "report.json")
        assert (done.exit_code, record.verdict, record.exit_code) == (3, "not-met", 3)
        lost = record.chosen.quality.lost
        assert lost > 0 and f"{lost:.4g} points of quality were lost and 0 were allowed" in record.headline
        assert record.headline in " ".join(done.stdout.split())

    def test_killed_three_times_ends_in_the_same_bytes(self, job, in_user_folder: Path, tmp_path: Path) -> None:
        """While a probe is exported, after it was checked, while the network recovers; each followed by --resume."""
        run = tmp_path / "run"
        planned = run / "candidates/01/network/.stage.json"
        kill(started("fit", *JOB, "-o", run, "-q"), lambda: planned.exists() and exporting(run))
        assert not (run / "candidates/01/tflite").exists()
        finished_by = [(len(events_of(run)), whole(run))]

        checked = run / "candidates/01/parity/.stage.json"
        kill(started("fit", "--resume", run, "-q"), checked.exists)
        assert not (run / "report.json").exists()
        finished_by.append((len(events_of(run)), whole(run)))

        kill(started("fit", "--resume", run, "-q"), lambda: 0 < recovery_step(run) < STEPS)
        assert recovery_step(run) < STEPS
        assert not [path for path in run.rglob("plan.json") if '"recover"' in path.read_text()]
        finished_by.append((len(events_of(run)), whole(run)))

        done = finished("fit", "--resume", run, "-q")
        assert done.returncode == 0, done.stderr
        assert hashes(run) == hashes(job[0]) and len(hashes(run)) == 2
        assert not any(run.rglob(".partial-*")) and not any(run.rglob(".export-*")) and not (run / "scratch").exists()
        served = [event["stage"] for event in events_of(run) if event["event"] == "stage" and event["cached"]]
        assert {"base", "candidates/00/tflite", "candidates/01/network"} <= set(served)
        for seen, stages in finished_by:
            assert not [name for name, cached in stages_of(run, seen).items() if name in stages and not cached]
        assert finished_by[-1][1] > finished_by[-2][1] > finished_by[-3][1]
        one, other = read_run(run / "report.json"), read_run(job[0] / "report.json")
        assert (one.verdict, one.headline) == (other.verdict, other.headline)
        assert [probe.verdict for probe in one.probes] == [probe.verdict for probe in other.probes]

    def test_of_a_goal_out_of_reach_keeps_the_closest(self, in_user_folder: Path, tmp_path: Path) -> None:
        """Without labels, so that quality is agreement with the original."""
        run = tmp_path / "run"
        done = finished("fit", *MODEL[:3], "--data", "unlabelled.npz", "--target", "pixel-4-cpu",
                        "--latency", "0.0001ms", "--format", "tflite", "--recover-steps", 0, "-o", run)  # fmt: skip
        assert done.returncode == 3 and "Traceback" not in done.stderr, done.stderr
        record = read_run(run / "report.json")
        assert (record.verdict, record.winner, record.chosen.verdict) == ("not-met", None, "above")
        assert record.primary(record.chosen).median_ms == min(record.primary(p).median_ms for p in record.probes)
        times = record.primary(record.chosen).median_ms / 0.0001
        assert f"{times:.3g} times the 0.0001 ms asked for" in record.headline
        assert record.headline in " ".join(done.stdout.split())
        assert record.chosen.quality.metric == "agreement with the original"
        assert sha256_of(run / "bundle/model.tflite") == record.primary(record.chosen).artifact_sha256


def kill(process: subprocess.Popen[str], when: Callable[[], bool]) -> None:
    """SIGKILL as soon as `when` holds; it must hold before the process ends."""
    wait_for(process, when)
    process.kill()
    process.communicate()


def whole(run: Path) -> set[str]:
    """Stages of a run that are finished."""
    return {path.parent.relative_to(run).as_posix() for path in run.rglob(".stage.json") if ".partial" not in str(path)}


def doing(run: Path) -> str:
    """What status.json tells of."""
    return json.loads((run / "status.json").read_text())["doing"]


def recovery_step(run: Path) -> int:
    """The step of recovery that status.json tells of, 0 before it began."""
    match = re.search(r"recovery: step (\d+) of", doing(run))
    return int(match[1]) if match else 0


def test_a_fit_on_this_machine_is_timed_by_the_clock(in_user_folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(judging, "STEADY", math.inf)  # where other work begins or ends, the pair would not count
    run = tmp_path / "run"
    done = planish("fit", *MODEL, "--target", "host", "--latency", "0.1us", "--format", "onnx", "--recover-steps", 5,
                   "-o", run)  # fmt: skip
    assert done.exit_code == 3, done.stderr
    record = read_run(run / "report.json")
    for probe in record.probes:
        measured = record.primary(probe)
        assert (measured.format, measured.runner, measured.confidence_percent) == ("onnx", "host", 95.0)
        assert measured.n >= 30 and 0 < measured.low_ms <= measured.median_ms <= measured.high_ms
        assert measured.low_ms < measured.high_ms and measured.median_ms <= measured.p90_ms
        judged = json.loads((run / f"candidates/{probe.index:02d}/host-judged/judgement.json").read_text())["candidate"]
        assert len(judged["samples_ms"]) == measured.n
        assert np.median(judged["samples_ms"]) == pytest.approx(measured.median_ms, rel=1e-3)


def test_a_fit_by_rounds_trains_reports_and_resumes(in_user_folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(judging, "STEADY", math.inf)
    run = tmp_path / "run"
    rounds = ["--method", "easier", "--removal", "rounds", "--easier-policy", "domainbed", "--train-epochs", 1,
              "--tolerated-drop", 50]  # fmt: skip
    done = planish("fit", *MODEL, "--target", "host", "--latency", "0.1us", "--format", "onnx", "--recover-steps", 5,
                   *rounds, "-o", run)  # fmt: skip
    assert done.exit_code == 3, done.stderr
    record = read_run(run / "report.json")
    removed, merged, taught = record.chosen.edits
    assert (removed.kind, removed.site, merged.kind, taught.kind) == ("linearize", "fused.act", "merge", "recover")
    assert 0 < removed.entropy_bits < 1 and "round 1" in removed.summary and "held-out" in removed.summary
    assert merged.predicted_saving_ms > 0 and merged.damage > 0
    assert record.base.quality.value - record.chosen.quality.value < 50
    assert removed.summary.replace("%", "").split(";")[0] in (run / "report.html").read_text().replace("%", "")
    assert sorted(path.name for path in (run / "rounds").iterdir()) == ["00", "01"]
    told = [event for event in events_of(run) if event["event"] == "stage" and event["stage"].startswith("rounds/")]
    assert [(event["stage"], event["cached"]) for event in told] == [("rounds/00", False), ("rounds/01", False)]
    again = planish("fit", "--resume", run, "-q")
    assert again.exit_code == 3 and read_run(run / "report.json").chosen.edits == record.chosen.edits


def test_a_fit_whose_first_round_costs_too_much_says_why(in_user_folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(judging, "STEADY", math.inf)
    monkeypatch.setattr(Training, "retrained", lambda self, network, number: (network, 90.0 - 5 * number))
    run = tmp_path / "run"
    done = planish("fit", *MODEL, "--target", "host", "--latency", "0.1us", "--format", "onnx",
                   "--method", "easier", "--removal", "rounds", "-o", run)  # fmt: skip
    assert done.exit_code == 3, done.stderr
    record = read_run(run / "report.json")
    assert record.candidates == () and record.chosen.edits == () and "easier may do nothing" in record.headline
    (ended,) = record.base.rejected
    assert (ended.kind, ended.site) == ("linearize", "fused.act") and "5.00 points" in ended.reason
    assert ended.reason in (run / "report.html").read_text()


# --- one stage each -----------------------------------------------------------------------------------------------


def test_a_format_that_fails_leaves_the_others(in_user_folder: Path, tmp_path: Path) -> None:
    options = ["--data", "labelled.npz", "--target", "host", "--latency", "50%"]
    done = finished(
        "fit", "model.py:ordered", *options, "--format", "onnx", "--format", "tflite", "-o", tmp_path / "run"
    )
    assert done.returncode == 4 and "EXPORT_FAILED" in done.stderr and "aten.sort" in done.stderr, done.stderr
    assert "model.py:" in done.stderr  # the line of the user's
    kept = {path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("model.*")}
    assert kept == {"candidates/00/onnx/model.onnx"} and not list((tmp_path / "run").rglob(".partial*"))


def test_dry_run_plans_and_writes_nothing(in_user_folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PLANISH_CACHE", str(tmp_path / "cache"))  # and needs no emulator
    before = sorted(in_user_folder.rglob("*"))
    done = planish("fit", *JOB, "-o", tmp_path / "run", "--dry-run", "--json")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["edits"] and result["predicted_ms"] <= 0.5 * result["base_ms"]
    assert result["recipe"]["recover_steps"] == STEPS
    assert sorted(in_user_folder.rglob("*")) == before and not any(tmp_path.iterdir())


def test_init_spells_out_every_default_and_keeps_what_is_there(in_user_folder: Path, tmp_path: Path) -> None:
    words = ["init", *MODEL, "--target", "host", "--latency", "3ms", "-o", tmp_path / "planish.toml"]
    assert planish(*words).exit_code == 0
    text = (tmp_path / "planish.toml").read_text()
    for line in ('latency = "3ms"', 'formats = ["tflite", "onnx"]', "recover_steps = 400", "seed = 0"):
        assert line in text.splitlines()
    again = planish(*words)
    assert again.exit_code == 2 and "RECIPE_EXISTS" in again.stderr
    assert (tmp_path / "planish.toml").read_text() == text


def test_inspect_shows_layers_and_entropy(user_folder: Path, tmp_path: Path) -> None:
    """A package.module:callable that stands in the current directory, as the console script sees it."""
    shutil.copy(user_folder / "model.py", tmp_path / "network_of_mine.py")
    words = ["inspect", "network_of_mine:tiny", "--data", user_folder / "test.npz", "--target", "pixel-4-cpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        done = finished(*words)
    assert done.returncode == 0, done.stderr
    assert re.search(r"fused\.expand\s+conv 3×3, 16 → 32", done.stdout), done.stdout
    assert re.search(r"fused\.act\s+ReLU\s+0\.\d{3}\s", done.stdout)
    assert "predicted" in done.stdout and sorted(tmp_path.iterdir()) == [tmp_path / "network_of_mine.py"]


@pytest.mark.parametrize("mark", [pytest.param("emulated", marks=emulated)])
def test_an_exported_artifact_measures_the_same_every_time(mark: str, in_user_folder: Path, tmp_path: Path) -> None:
    done = planish("export", *MODEL[:5], "--format", "tflite", "-o", tmp_path, "--json")
    assert done.exit_code == 0, done.stderr
    (row,) = json.loads(done.stdout.splitlines()[-1])["artifacts"]
    assert row["parity"]["verdict"] == "passed" and row["artifact"]["sha256"] == sha256_of(tmp_path / "model.tflite")
    artifact = tmp_path / "model.tflite"
    words = ["measure", artifact, artifact, "--target", "pixel-4-cpu", "--data", "test.npz", "--json"]
    done = planish(*words)
    assert done.exit_code == 0, done.stderr
    one, other = json.loads(done.stdout.splitlines()[-1])["measurements"]
    assert one["median_ms"] == pytest.approx(other["median_ms"], rel=1e-3) and one["median_ms"] > 0


class TestReport:
    pytestmark = emulated

    def test_writes_the_page_again(self, job, tmp_path: Path) -> None:
        done = planish("report", job[0], "-o", tmp_path / "page.html")
        assert done.exit_code == 0 and "page.html written" in done.stdout
        assert (tmp_path / "page.html").read_text() == (job[0] / "report.html").read_text()


def test_targets_are_listed_and_shown() -> None:
    listed = planish("targets", "list", "--json")
    assert {"host", "pixel-4-cpu", "pixel-3a-cpu", "raspberry-pi-4"} <= set(json.loads(listed.stdout)["targets"])
    shown = planish("targets", "show", "pixel-4-cpu")
    assert shown.exit_code == 0 and "Cortex-A76" in shown.stdout and "2.84 GHz" in shown.stdout


def test_doctor_names_what_is_installed() -> None:
    done = planish("doctor", "--json")
    found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert found["torch"]["found"] == torch.__version__ and found["ARM64 emulator"]["ok"] == is_ready()
    assert done.exit_code == (0 if all(check["ok"] for check in found.values()) else 6)
