"""`planish compare`: two runs or two artifacts, and what it refuses to hold against each other."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from commands import planish

from pipeline.recipe import make_recipe
from reports.artifacts_compared import ArtifactsComparedRecord
from reports.measured import MeasurementRecord
from reports.records import CandidateRecord, GoalRecord, LayerRecord, LimitRecord, RunRecord, TargetRecord
from reports.runs_compared import RunsComparedRecord
from targets.probes import onnx, tflite
from targets.probes.design import convolution

NETWORKS = {"one": [convolution(3, 8, 3, 1, 12)], "two": [convolution(3, 8, 3, 1, 12), convolution(8, 8, 3, 2, 12)]}
LAYER = LayerRecord(name="stem", kind="conv", description="conv 3×3, 3→8", parameters=224, macs=31104, predicted_ms=1.0)


def write_run(folder: Path, median_ms: float, latency: str, parameters: int = 224, **recipe: object) -> Path:
    """A finished run whose original meets its goal."""
    measured = MeasurementRecord(
        format="tflite",
        target="pixel-4-cpu",
        runner="emulator",
        runtime="r 1",
        n=1,
        median_ms=median_ms,
        p90_ms=median_ms,
        low_ms=median_ms,
        high_ms=median_ms,
        instructions=1000,
        cycles=1000.0,
        artifact_sha256="0" * 64,
        bytes=900,
    )
    base = CandidateRecord(
        index=0,
        budget_ms=None,
        predicted_ms=None,
        layers=(LAYER.model_copy(update={"parameters": parameters, "description": f"conv of {parameters}"}),),
        parameters=parameters,
        macs=31104,
        measurements=(measured,),
        verdict="base",
    )
    limit = LimitRecord(quantity="latency", target="pixel-4-cpu", limit=9.0, unit="ms", asked=latency)
    now = datetime.now(UTC)
    record = RunRecord(
        planish_version="0.1.0",
        name=folder.name,
        model="m.py:net",
        data="d.npz",
        targets=(
            TargetRecord(
                name="pixel-4-cpu",
                title="Pixel 4",
                core="Cortex-A76",
                clock_ghz=2.84,
                kind="emulator",
                profile_version="1",
            ),
        ),
        goal=GoalRecord(limits=(limit,), max_drop=None, formats=("tflite",), primary_format="tflite"),
        verdict="met",
        exit_code=0,
        headline="It fits as it is.",
        base=base,
        candidates=(),
        winner=0,
        best=None,
        environment={"torch": "2.13.0"},
        started=now,
        finished=now,
        seconds=1.0,
        command="planish fit",
    )
    folder.mkdir()
    asked = make_recipe(model="m.py:net", data="d.npz", target="pixel-4-cpu", latency=latency, **recipe)
    (folder / "recipe.toml").write_text(asked.to_toml())
    (folder / "report.json").write_text(record.to_json())
    return folder


@pytest.fixture
def files(tmp_path: Path) -> dict[tuple[str, str], Path]:
    found = {}
    for name, operators in NETWORKS.items():
        for format, writer in (("onnx", onnx), ("tflite", tflite)):
            found[name, format] = tmp_path / f"{name}.{format}"
            found[name, format].write_bytes(writer.build([operators], np.random.default_rng(1)).content)
    return found


def test_two_runs_as_text_and_as_data(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", 8.0, "9ms")
    b = write_run(tmp_path / "b", 6.4, "70%", max_drop="1pt")
    shown = planish("compare", a, b)
    assert shown.exit_code == 0, shown.stderr
    for words in ("1.25× faster", "max_drop", "1pt", "70%", "the original"):
        assert words in shown.stdout, words
    told = planish("compare", a, b, "--json")
    (event,) = [json.loads(line) for line in told.stdout.splitlines()]
    runs = RunsComparedRecord.model_validate(event["runs"])
    assert event["event"] == "result" and runs.latencies[0].ratio == pytest.approx(0.8)
    assert {each.key: (each.a, each.b) for each in runs.recipe} == {
        "latency": ("9ms", "70%"),
        "max_drop": (None, "1pt"),
    }
    assert (runs.a.directory, runs.b.directory) == (str(a), str(b))


def test_runs_of_other_networks_say_why_their_latencies_are_not_compared(tmp_path: Path) -> None:
    shown = planish("compare", write_run(tmp_path / "a", 8.0, "9ms"), write_run(tmp_path / "b", 6.4, "9ms", 448))
    assert shown.exit_code == 0
    assert "1 layers with 224 parameters, 1 with 448" in " ".join(shown.stdout.split())
    assert "not compared" in shown.stdout and "faster" not in shown.stdout


@pytest.mark.parametrize(("format", "kind", "first"), [("onnx", "Conv", 1), ("tflite", "CONV_2D", 1)])
def test_two_artifacts_of_one_format(files: dict[tuple[str, str], Path], format: str, kind: str, first: int) -> None:
    one, two = files["one", format], files["two", format]
    shown = planish("compare", one, two)
    assert shown.exit_code == 0, shown.stderr
    assert "not the same" in shown.stdout and kind in shown.stdout and "+1" in shown.stdout
    told = json.loads(planish("compare", one, two, "--json").stdout.splitlines()[-1])
    found = ArtifactsComparedRecord.model_validate(told["artifacts"])
    assert {each.kind: (each.a, each.b) for each in found.operators}[kind] == (first, first + 1)
    assert (found.same_bytes, found.same_inputs, found.same_outputs) == (False, True, False)
    assert found.a.bytes == one.stat().st_size and found.b.macs > found.a.macs > 0


def test_a_copy_has_the_same_bytes(files: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    copy = Path(shutil.copy(files["one", "tflite"], tmp_path / "copy.tflite"))
    found = planish("compare", files["one", "tflite"], copy)
    assert "tflite: the same bytes" in found.stdout and "CONV_2D" not in found.stdout


def test_packages_of_core_ml_are_artifacts_whose_content_is_not_read_here(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.mlpackage").mkdir()
        (tmp_path / f"{name}.mlpackage" / "Manifest.json").write_text(name)
    shown = planish("compare", tmp_path / "a.mlpackage", tmp_path / "b.mlpackage")
    assert shown.exit_code == 0 and "The operators of coreml files cannot be read here." in shown.stdout


def test_what_cannot_be_compared_is_a_usage_error(files: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    run, empty = write_run(tmp_path / "run", 8.0, "9ms"), tmp_path / "empty"
    empty.mkdir()
    several = tmp_path / "several"
    several.mkdir()
    write_run(several / "pixel-4-cpu", 8.0, "9ms")
    (tmp_path / "broken.tflite").write_bytes(b"rubbish")
    artifact = files["one", "onnx"]
    for a, b, code, words in (
        (run, artifact, "COMPARE_UNLIKE", "two artifacts of one format"),
        (artifact, files["one", "tflite"], "COMPARE_UNLIKE", "is ONNX"),
        (artifact, tmp_path / "none.onnx", "COMPARE_MISSING", "none.onnx"),
        (run, several, "COMPARE_SEVERAL", "several/pixel-4-cpu"),
        (run, empty, "REPORT_UNREADABLE", "No such file"),
        (files["one", "tflite"], tmp_path / "broken.tflite", "ARTIFACT_UNUSABLE", "broken.tflite"),
        (tmp_path / "run" / "recipe.toml", artifact, "FORMAT_UNKNOWN", ".tflite"),
    ):
        refused = planish("compare", a, b)
        assert refused.exit_code == 2 and f"error[{code}]" in refused.stderr, (refused.stderr, refused.stdout)
        assert words in refused.stderr and refused.stdout == ""
