"""Measuring on this machine, and what a user hears of artifacts and samples that do not fit."""

from __future__ import annotations

import json
import os

import numpy
import pytest

from targets.errors import PlanishError, UsageError
from targets.measure import Measurement, measure, measure_many
from targets.profile import load_profile
from targets.runners import child, host

HOST = load_profile("host")


@pytest.fixture(scope="module")
def measured(small):
    artifacts = [(small[format][0], format, small[format][1]) for format in ("onnx", "tflite")]
    return measure_many(artifacts, profile=HOST, budget_s=0.2)


def test_measurements_come_in_the_order_asked_with_samples_and_an_interval(measured):
    assert [measurement.format for measurement in measured] == ["onnx", "tflite"]
    for measurement in measured:
        assert measurement.target == measurement.runner == "host"
        assert measurement.n == len(measurement.samples_ms) >= 30
        assert 0 < measurement.low_ms <= measurement.median_ms <= measurement.high_ms
        assert measurement.instructions is None and measurement.cycles is None
        assert measurement.threads == measurement.state["threads"] == len(measurement.state["cpus"]) == 1
        assert isinstance(measurement.state["steady"], bool) and measurement.state["isa"]
        assert Measurement.from_json(json.loads(json.dumps(measurement.to_json()))) == measurement


def test_a_larger_budget_takes_more_samples(wider):
    artifact, inputs = wider["tflite"]
    few, many = (
        host.time_artifacts(
            [host.Job(artifact, inputs)],
            "tflite",
            lambda message: None,
            least_samples=least,
            budget_s=0.01,
            warmup_s=0.0,
        )[0]
        for least in (5, 400)
    )
    assert len(few.samples_ms) < 400 <= len(many.samples_ms)


@pytest.mark.parametrize("format", ["tflite", "onnx"])
def test_every_sample_is_run_by_itself(small, tmp_path, format):
    artifact, inputs = small[format]
    host.run(artifact, format, inputs, tmp_path / "out.npz")
    with numpy.load(inputs) as archive:
        arrays = {name: archive[name][1:2] for name in archive.files}
    numpy.savez(tmp_path / "second.npz", **arrays)
    host.run(artifact, format, tmp_path / "second.npz", tmp_path / "second_out.npz")
    whole, second = numpy.load(tmp_path / "out.npz"), numpy.load(tmp_path / "second_out.npz")
    for name in whole.files:
        numpy.testing.assert_array_equal(whole[name][1:2], second[name])


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({"x": numpy.zeros((1, 5, 5, 3), numpy.float32)}, "one sample is [1, 5, 5, 3] float32"),
        ({"x": numpy.zeros((1, 12, 12, 3), numpy.float64)}, "float64"),
        ({"x": numpy.zeros((0, 12, 12, 3), numpy.float32)}, "at least one"),
        ({"x": numpy.zeros(1), "y": numpy.zeros(1)}, "it has 1 inputs (t0), the samples have 2 arrays"),
    ],
)
def test_samples_that_do_not_fit_are_the_users_error(small, tmp_path, arrays, why):
    numpy.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UsageError) as caught:
        measure(small["tflite"][0], format="tflite", profile=HOST, inputs=tmp_path / "bad.npz")
    assert caught.value.code == "ARTIFACT_UNUSABLE" and why in caught.value.why


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [("model.tflite", b"rubbish", "cannot load it"), ("model.onnx", b"rubbish", "cannot load it")],
)
def test_a_file_the_runtime_does_not_load_is_the_users_error(small, tmp_path, name, content, why):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError) as caught:
        measure(tmp_path / name, format=name.split(".")[1], profile=HOST, inputs=small["tflite"][1])
    assert why in caught.value.why and str(tmp_path / name) == caught.value.where


def test_a_missing_artifact_and_unreadable_samples_are_named(small, tmp_path):
    with pytest.raises(UsageError, match="cannot be run") as caught:
        measure(tmp_path / "none.onnx", format="onnx", profile=HOST, inputs=small["onnx"][1])
    assert "no such file" in caught.value.why
    (tmp_path / "cut.npz").write_bytes(small["onnx"][1].read_bytes()[:100])
    with pytest.raises(UsageError) as caught:
        measure(small["onnx"][0], format="onnx", profile=HOST, inputs=tmp_path / "cut.npz")
    assert "the samples cannot be read" in caught.value.why


def test_an_unknown_format_is_refused(small):
    with pytest.raises(UsageError) as caught:
        measure(small["tflite"][0], format="tfite", profile=HOST, inputs=small["tflite"][1])
    assert caught.value.code == "FORMAT_UNKNOWN" and "did you mean 'tflite'?" in caught.value.fix


@pytest.mark.parametrize("format", ["tflite", "onnx"])
def test_each_thread_has_a_cpu_of_its_own(wider, format):
    threads = min(2, len(os.sched_getaffinity(0)))
    artifact, inputs = wider[format]
    found = measure(artifact, format=format, profile=HOST, inputs=inputs, budget_s=0.05, threads=threads)
    assert found.threads == found.state["threads"] == len(set(found.state["cpus"])) == threads


def test_more_threads_than_cpus_are_refused(small):
    cpus = len(os.sched_getaffinity(0))
    with pytest.raises(UsageError) as caught:
        measure(small["onnx"][0], format="onnx", profile=HOST, inputs=small["onnx"][1], threads=cpus + 1)
    assert caught.value.code == "THREADS_TOO_MANY" and f"at most {cpus}" in caught.value.fix


def test_more_threads_than_the_cluster_has_cores_are_refused(small):
    phone = load_profile("pixel-4-cpu")
    with pytest.raises(UsageError) as caught:
        measure(small["onnx"][0], format="onnx", profile=phone, inputs=small["onnx"][1], threads=phone.cores + 1)
    assert caught.value.code == "THREADS_TOO_MANY" and phone.core.name in caught.value.why


def test_a_runtime_that_is_killed_is_said_with_the_signal(small, tmp_path, monkeypatch):
    (tmp_path / "killed.py").write_text(
        "import os, sys\nprint('last words', file=sys.stderr, flush=True)\nos.abort()\n"
    )
    monkeypatch.setattr(child, "ROOT", tmp_path)
    monkeypatch.setattr(host, "WORKER", "killed")
    with pytest.raises(PlanishError) as caught:
        measure(small["onnx"][0], format="onnx", profile=HOST, inputs=small["onnx"][1])
    assert caught.value.code == "RUNTIME_FAILED" and "SIGABRT" in caught.value.what
    assert "last words" in caught.value.why and "small.onnx" in caught.value.where
    assert str(caught.value).count("\n") == 3


def test_a_file_that_is_no_program_is_the_users_error(small, tmp_path):
    (tmp_path / "model.pte").write_bytes(b"rubbish")
    with pytest.raises(UsageError) as caught:
        measure(tmp_path / "model.pte", format="pte", profile=HOST, inputs=small["onnx"][1])
    assert caught.value.code == "ARTIFACT_UNUSABLE" and "cannot load it: Error::Invalid" in caught.value.why
