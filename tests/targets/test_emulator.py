"""The emulated cores: measurements repeat, follow the work, and outputs agree with this machine's."""

from __future__ import annotations

import json
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy
import pytest

from targets.arm import timing
from targets.arm.counts import Block
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
def test_the_same_artifact_takes_the_same_time_in_another_process(first, small, format):
    artifact, inputs = small[format]
    again = measure(artifact, format=format, profile=load_profile("pixel-4-cpu"), inputs=inputs)
    before = first["small", format]
    assert again.artifact_sha256 == before.artifact_sha256
    assert again.median_ms == pytest.approx(before.median_ms, rel=1e-3)
    assert again.instructions == pytest.approx(before.instructions, rel=1e-3)
    assert again.n == 3 and again.low_ms <= again.median_ms <= again.high_ms


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
    assert 0 <= measurement.state["unmodelled_share"] < 0.01
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


def test_a_runtime_that_crashes_under_emulation_is_said_with_how_it_ended(emulator, small, monkeypatch):
    crash = ["/bin/sh", "-c", "echo 'qemu: uncaught target signal 11' >&2; kill -SEGV $$"]
    monkeypatch.setattr(emulator_runner.qemu, "command", lambda *args, **options: crash)
    with pytest.raises(PlanishError) as caught:
        measure(small["onnx"][0], format="onnx", profile=load_profile("pixel-4-cpu"), inputs=small["onnx"][1])
    assert caught.value.code == "EMULATION_FAILED" and "small.onnx" in caught.value.where
    assert re.search(r"SIGSEGV|exit status -11", caught.value.what)
    assert "uncaught target signal 11" in caught.value.why and "--target host" in caught.value.fix
    assert str(caught.value).count("\n") == 3


def test_blocks_are_timed_by_what_they_do(emulator):
    fmla = bytes.fromhex("20cc224e")  # fmla v0.4s, v1.4s, v2.4s: each waits for the last
    unknown = bytes.fromhex("ffffffff")  # no instruction
    costs = timing.block_costs({fmla, fmla * 4, fmla + unknown}, emulator, "neoverse-n1")
    assert costs[fmla * 4].cycles > 3 * costs[fmla].cycles
    assert [costs[code].skipped for code in (fmla, fmla * 4, fmla + unknown)] == [0, 0, 1]
    phase = [(Block(0, fmla), 10), (Block(4, fmla + unknown), 10)]
    timed = timing.time_phases([phase], emulator, "neoverse-n1")[0]
    assert timed.instructions == 30 and timed.unmodelled_share == pytest.approx(1 / 3)
    assert timed.cycles == pytest.approx(10 * costs[fmla].cycles + 10 * costs[fmla + unknown].cycles)


def test_a_block_seen_before_is_not_analysed_again(emulator, monkeypatch):
    code = bytes.fromhex("20cc224e") * 3
    before = timing.block_costs({code}, emulator, "neoverse-n1")
    monkeypatch.setattr(timing, "_analyse", lambda blocks, *rest: pytest.fail("llvm-mca was asked again"))
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: pytest.fail("an LLVM tool was started"))
    assert timing.block_costs({code}, emulator, "neoverse-n1") == before
