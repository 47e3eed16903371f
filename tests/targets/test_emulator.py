"""The emulated cores: measurements repeat, follow the work, and outputs agree with this machine's."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy
import pytest

from targets.arm.chip import WAKE_US
from targets.arm.wire import CAUSES
from targets.errors import PlanishError, UsageError
from targets.measure import Measurement, measure, measure_many
from targets.profile import load_profile
from targets.runners import emulator as emulator_runner
from targets.runners import host

pytestmark = pytest.mark.emulator


@pytest.fixture(scope="module")
def first(emulator, small, wider):
    """One session of a process a format: {(name, format): Measurement}."""
    wanted = [
        (name, format, *artifacts[format])
        for name, artifacts in (("small", small), ("wider", wider))
        for format in ("tflite", "onnx")
    ]
    found = measure_many(
        [(artifact, format, inputs) for _, format, artifact, inputs in wanted], profile=load_profile("pixel-4-cpu")
    )
    return {(name, format): measurement for (name, format, _, _), measurement in zip(wanted, found)}


@pytest.mark.parametrize("format", ["tflite", "onnx"])
def test_the_same_artifact_takes_the_same_time_in_another_emulator(emulator, small, tmp_path, monkeypatch, format):
    """Twice emulated, each time without a remembered timing. A line in another cache more or less is 300 cycles, and
    where an allocation falls is a hundred instructions of these hundred thousand."""
    artifact, inputs = small[format]
    found = []
    for name in ("one", "other"):
        monkeypatch.setattr(emulator_runner, "cache_root", lambda name=name: tmp_path / name)
        found.append(measure(artifact, format=format, profile=load_profile("pixel-4-cpu"), inputs=inputs))
        assert len([*(tmp_path / name).rglob("*.json")]) == 1
    one, other = found
    assert one.cycles == pytest.approx(other.cycles, rel=1e-3, abs=1000)
    assert one.samples_ms == pytest.approx(other.samples_ms, rel=1e-3, abs=1e-3)
    assert one.instructions == pytest.approx(other.instructions, rel=1e-3, abs=300)
    assert one.n == emulator_runner.PHASES and one.low_ms <= one.median_ms <= one.high_ms


def test_an_artifact_that_was_measured_before_is_answered_at_once(first, small, monkeypatch):
    artifact, inputs = small["tflite"]
    monkeypatch.setattr(emulator_runner.subprocess, "Popen", lambda *args, **options: pytest.fail("emulated again"))
    began = time.monotonic()
    again = measure(artifact, format="tflite", profile=load_profile("pixel-4-cpu"), inputs=inputs)
    assert time.monotonic() - began < 1.0
    assert again == first["small", "tflite"]


def test_what_a_timing_depends_on_makes_it_another(first, small, wider):
    """Nothing is remembered for another artifact, other samples, another core, other threads or another runtime."""
    phases = emulator_runner.PHASES
    profile, job = load_profile("pixel-4-cpu"), emulator_runner.Job(*small["onnx"])
    remembered = partial(emulator_runner._remembered, format="onnx", runtime=None)
    paths = {
        remembered(job, profile=profile, threads=1, phases=phases),
        remembered(emulator_runner.Job(job.artifact, wider["onnx"][1]), profile=profile, threads=1, phases=phases),
        remembered(emulator_runner.Job(wider["onnx"][0], job.inputs), profile=profile, threads=1, phases=phases),
        remembered(job, profile=load_profile("pixel-4-mid-cpu"), threads=1, phases=phases),
        remembered(job, profile=profile, threads=2, phases=phases),
        remembered(job, profile=profile, threads=1, phases=phases + 1),
        remembered(job, profile=profile, threads=1, phases=phases, runtime="tflite-runtime"),
    }
    assert len(paths) == 7 and remembered(job, profile=profile, threads=1, phases=phases).exists()


@pytest.mark.slow
@pytest.mark.parametrize("format", ["tflite", "onnx"])
def test_two_threads_are_faster_than_one_but_not_twice(emulator, large, format):
    artifact, inputs, macs = large[format]
    profile = load_profile("pixel-3a-cpu")
    one, two = (measure(artifact, format=format, profile=profile, inputs=inputs, threads=n) for n in (1, 2))
    for measurement in (one, two):
        lanes = 8 * measurement.threads  # two 128-bit multiply-accumulates a cycle and core at the very most
        assert macs / lanes < measurement.cycles < macs, "between the core's peak and no vectors at all"
    assert 1.3 < one.median_ms / two.median_ms < 2.05
    assert two.instructions < 0.8 * one.instructions, "the main thread's instructions"
    assert (one.threads, two.threads) == (1, 2) and two.state["threads"] == 2
    assert one.state["cycles"]["threads"] < 1 and two.state["cycles"]["threads"] < two.cycles / 3
    assert two.cycles - one.cycles / 2 < one.cycles / 4 + 20 * WAKE_US * 1e3 * profile.clock_ghz


def test_more_threads_than_cores_are_refused(small):
    profile = load_profile("pixel-4-cpu")
    with pytest.raises(UsageError) as caught:
        measure(small["onnx"][0], format="onnx", profile=profile, inputs=small["onnx"][1], threads=profile.cores + 1)
    assert caught.value.code == "THREADS_TOO_MANY"


@pytest.mark.parametrize("format", ["tflite", "onnx"])
def test_cycles_are_accounted_for_by_their_causes(first, format):
    for name in ("small", "wider"):
        measurement = first[name, format]
        causes = measurement.state["cycles"]
        assert causes.keys() == {"core", *CAUSES, "threads"} and min(causes.values()) >= 0
        assert sum(causes.values()) == pytest.approx(measurement.cycles, rel=1e-6)
        assert causes["core"] > measurement.cycles / 2, "these few kilobytes lie in the caches"
        assert 0.2 < measurement.instructions / measurement.cycles < load_profile("pixel-4-cpu").core.dispatch_width


@pytest.mark.parametrize("format", ["tflite", "onnx"])
def test_more_work_is_more_instructions_and_more_time(first, format):
    small, wider = first["small", format], first["wider", format]
    assert wider.instructions > 1.5 * small.instructions
    assert wider.median_ms > small.median_ms


def test_milliseconds_are_cycles_at_the_profile_clock_and_the_state_says_how(first):
    measurement = first["small", "tflite"]
    assert measurement.median_ms == pytest.approx(measurement.cycles / 2.84e6, rel=1e-3)
    assert measurement.runtime.startswith("ai-edge-litert ")
    assert measurement.runner == "emulator" and measurement.state["core_model"] == "neoverse-n1"
    assert 0 <= measurement.state["unpriced_share"] < 0.05
    assert {"qemu", "llvm", "clock_ghz"} <= measurement.state.keys()
    assert Measurement.from_json(json.loads(json.dumps(measurement.to_json()))) == measurement


def test_two_profiles_can_be_measured_at_the_same_time(emulator, small):
    artifact, inputs = small["tflite"]
    names = ("raspberry-pi-4", "pixel-3a-cpu")
    with ThreadPoolExecutor(2) as pool:
        slow, fast = pool.map(
            lambda name: measure(artifact, format="tflite", profile=load_profile(name), inputs=inputs), names
        )
    assert (slow.target, fast.target) == names
    assert slow.median_ms > fast.median_ms


@pytest.mark.parametrize("format", ["tflite", "onnx"])
def test_outputs_on_the_emulated_core_agree_with_this_machine(emulator, small, tmp_path, format):
    artifact, inputs = small[format]
    emulator_runner.run(artifact, format, inputs, tmp_path / "arm.npz", load_profile("pixel-4-cpu"))
    host.run(artifact, format, inputs, tmp_path / "host.npz")
    arm, here = numpy.load(tmp_path / "arm.npz"), numpy.load(tmp_path / "host.npz")
    assert arm.files == here.files
    for name in arm.files:
        assert arm[name].shape[0] == 3
        numpy.testing.assert_allclose(arm[name], here[name], rtol=1e-4, atol=1e-4)


def test_a_file_that_is_no_artifact_is_the_users_error(emulator, small, tmp_path):
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"not a model")
    with pytest.raises(UsageError) as caught:
        measure(broken, format="tflite", profile=load_profile("pixel-4-cpu"), inputs=small["tflite"][1])
    assert caught.value.code == "ARTIFACT_UNUSABLE" and "broken.tflite" in caught.value.where


def test_an_interrupted_measurement_leaves_no_emulator_behind(emulator, small, tmp_path, monkeypatch):
    pid = tmp_path / "pid"
    waits = ["/bin/sh", "-c", f"echo $$ > {pid}; echo ran small.onnx; exec sleep 60"]
    monkeypatch.setattr(emulator_runner.qemu, "command", lambda *args, **options: waits)
    monkeypatch.setattr(emulator_runner, "cache_root", lambda: tmp_path / "cache")

    def interrupt(message):
        raise KeyboardInterrupt

    began = time.monotonic()
    artifact, inputs = small["onnx"]
    with pytest.raises(KeyboardInterrupt):
        measure(artifact, format="onnx", profile=load_profile("pixel-4-cpu"), inputs=inputs, progress=interrupt)
    assert time.monotonic() - began < 10
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()
    assert not (tmp_path / "cache").exists(), "nothing half-measured is remembered"


def test_a_plugin_that_gives_up_is_quoted(emulator, small, tmp_path, monkeypatch):
    """Its end of the conversation closes in the middle of a word."""
    command = ["/bin/sh", "-c", "echo 'timing plugin: out of memory' >&2; exit 70"]
    monkeypatch.setattr(emulator_runner.qemu, "command", lambda *args, **options: command)
    monkeypatch.setattr(emulator_runner, "cache_root", lambda: tmp_path)
    with pytest.raises(PlanishError) as caught:
        measure(small["onnx"][0], format="onnx", profile=load_profile("pixel-4-cpu"), inputs=small["onnx"][1])
    assert caught.value.code == "EMULATION_FAILED" and "exit status 70" in caught.value.what
    assert caught.value.why == "timing plugin: out of memory" and not any(tmp_path.iterdir())


def test_code_that_cannot_be_priced_is_said_and_ends_the_emulator(emulator, small, tmp_path, monkeypatch):
    def fails(blocks, emulator, core):
        assert blocks and all(block.instructions for block in blocks)
        raise PlanishError("untimed", where="here", why="no model", fix="none", code="TIMING_FAILED")

    monkeypatch.setattr(emulator_runner.pricing, "prices", fails)
    monkeypatch.setattr(emulator_runner, "cache_root", lambda: tmp_path)
    with pytest.raises(PlanishError) as caught:
        measure(small["onnx"][0], format="onnx", profile=load_profile("pixel-4-cpu"), inputs=small["onnx"][1])
    assert caught.value.code == "TIMING_FAILED" and not any(tmp_path.iterdir())


def test_a_runtime_that_crashes_under_emulation_is_said_with_how_it_ended(emulator, small, tmp_path, monkeypatch):
    monkeypatch.setattr(emulator_runner, "cache_root", lambda: tmp_path)
    crash = ["/bin/sh", "-c", "echo 'qemu: uncaught target signal 11' >&2; kill -SEGV $$"]
    monkeypatch.setattr(emulator_runner.qemu, "command", lambda *args, **options: crash)
    with pytest.raises(PlanishError) as caught:
        measure(small["onnx"][0], format="onnx", profile=load_profile("pixel-4-cpu"), inputs=small["onnx"][1])
    assert caught.value.code == "EMULATION_FAILED" and "small.onnx" in caught.value.where
    assert re.search(r"SIGSEGV|exit status -11", caught.value.what)
    assert "uncaught target signal 11" in caught.value.why and "--target host" in caught.value.fix
    assert str(caught.value).count("\n") == 3


def test_an_app_that_still_ships_tensorflow_lite_is_timed_in_that(emulator, small, first):
    artifact, inputs = small["tflite"]
    wanted = [(artifact, "tflite", inputs)]
    (found,) = measure_many(wanted, profile=load_profile("pixel-4-cpu"), runtime="tflite-runtime")
    today = first["small", "tflite"]
    assert (found.runtime, found.state["qemu"]) == ("tflite-runtime 2.14.0", today.state["qemu"])
    assert today.runtime.startswith("ai-edge-litert") and found.instructions != today.instructions
    assert today.median_ms / 2 < found.median_ms < 2 * today.median_ms


def test_what_tensorflow_lite_cannot_load_is_said(emulator, tmp_path, small):
    (tmp_path / "broken.tflite").write_bytes(b"no flatbuffer at all")
    wanted = [(tmp_path / "broken.tflite", "tflite", small["tflite"][1])]
    with pytest.raises(UsageError) as caught:
        measure_many(wanted, profile=load_profile("pixel-4-cpu"), runtime="tflite-runtime")
    assert caught.value.code == "ARTIFACT_UNUSABLE" and "tflite-runtime 2.14.0" in caught.value.why


@pytest.mark.parametrize(
    ("runtime", "format", "target"),
    [
        ("tflite-runtime", "onnx", "pixel-4-cpu"),
        ("tflite-runtime", "tflite", "host"),
        ("tflite-runtime", "tflite", "pixel-4-gpu"),
        ("tflite", "tflite", "pixel-4-cpu"),
    ],
)
def test_other_runtimes_are_refused(small, runtime, format, target):
    with pytest.raises(UsageError) as caught:
        measure_many([(small[format][0], format, small[format][1])], profile=load_profile(target), runtime=runtime)
    assert caught.value.code == "RUNTIME_UNAVAILABLE"
