"""Where the time of an artifact goes: its operators on an emulated core add up to the inference."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest

from targets.errors import PlanishError, UsageError
from targets.explain import explain
from targets.measure import measure
from targets.operators import RUNTIME
from targets.probes import tflite
from targets.probes.design import convolution
from targets.profile import load_profile
from targets.runners import emulator as emulator_runner

TARGET = "pixel-4-cpu"
MACS = [3 * 8 * 9 * 12 * 12, 8 * 8 * 9 * 6 * 6]  # of the convolutions of `small`


def explained(artifact: Path, inputs: Path, format: str, target: str = TARGET, **options):
    return explain(artifact, format=format, profile=load_profile(target), inputs=inputs, **options)


@pytest.mark.emulator
@pytest.mark.parametrize(("target", "threads", "peak"), [(TARGET, 1, 16), ("pixel-3a-cpu", 2, 2 * 8)])
@pytest.mark.parametrize("format", ["tflite", "onnx"])
def test_operators_add_up_to_the_inference(emulator, small, format, target, threads, peak):
    artifact, inputs = small[format]
    whole = measure(artifact, format=format, profile=load_profile(target), inputs=inputs, threads=threads)
    rows = explained(artifact, inputs, format, target, threads=threads, layers=[("stem", MACS[0]), ("body", MACS[1])])
    assert rows[-1].kind == RUNTIME
    assert sum(row.milliseconds for row in rows) == pytest.approx(whole.median_ms, rel=0.01)
    assert sum(row.share for row in rows) == pytest.approx(1, rel=0.01)
    weighted = [row for row in rows if row.macs]
    assert [row.macs for row in weighted] == MACS
    assert [row.module for row in weighted] == ["stem", "body"]
    for row in weighted:
        assert 0 < row.flop_per_cycle < row.peak_flop_per_cycle
        assert row.peak_flop_per_cycle == pytest.approx(peak, rel=0.01)


@pytest.mark.emulator
def test_a_layer_with_weights_that_no_cache_holds_waits_for_memory(emulator, tmp_path):
    probe = tflite.build([[convolution(1024, 2048, 1, 1, 1)]], numpy.random.default_rng(1))
    (tmp_path / "wide.tflite").write_bytes(probe.content)
    numpy.savez(tmp_path / "wide.npz", **probe.samples)
    rows = explained(tmp_path / "wide.tflite", tmp_path / "wide.npz", "tflite")
    dearest = max(rows[:-1], key=lambda row: row.milliseconds)
    assert dearest.bound == "DRAM" and dearest.shape == "1×1 1024→2048 at 1×1"
    assert dearest.flop_per_cycle < 0.5 * dearest.peak_flop_per_cycle


@pytest.mark.emulator
def test_a_profile_is_kept(emulator, small, monkeypatch):
    before = explained(*small["tflite"], "tflite")
    monkeypatch.setattr(emulator_runner, "_session", lambda *args, **options: pytest.fail("emulated again"))
    assert explained(*small["tflite"], "tflite") == before


@pytest.mark.emulator
def test_a_runtime_that_runs_otherwise_than_its_profiler_says_is_an_error_in_words(emulator, small, monkeypatch):
    profiled = emulator_runner.profile_artifact
    monkeypatch.setattr(
        emulator_runner,
        "profile_artifact",
        lambda *args, **options: [
            emulator_runner.Profiled(one.records, (), one.operators) for one in profiled(*args, **options)
        ],
    )
    with pytest.raises(PlanishError) as caught:
        explained(*small["onnx"], "onnx")
    assert caught.value.code == "OPERATORS_UNTOLD" and "calls of getpid" in caught.value.why


def test_this_machine_is_not_broken_down(small):
    artifact, inputs = small["tflite"]
    with pytest.raises(UsageError) as caught:
        explain(artifact, format="tflite", profile=load_profile("host"), inputs=inputs)
    assert caught.value.code == "OPERATORS_NOT_EMULATED"
