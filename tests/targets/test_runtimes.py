"""Three runtimes, fp32 and int8: one real network as each of them takes it, on this machine and on emulated cores."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy
import pytest

from targets.arm.qemu import run_python
from targets.explain import explain
from targets.measure import Measurement, measure, measure_many
from targets.operators import RUNTIME
from targets.peak_memory import peak_memory
from targets.profile import Profile, list_profiles, load_profile
from targets.runners import emulator as emulator_runner
from targets.runners import host

FORMATS = ("tflite", "onnx", "pte")
DOT, NO_DOT = "pixel-4-cpu", "raspberry-pi-4"
HWCAP = {"atomics": 8, "fphp": 9, "asimdhp": 10, "asimdrdm": 12, "asimddp": 20}  # bits of AT_HWCAP in Linux on ARM64
HWCAP_OF_GUEST = """
import ctypes, numpy, onnxruntime, ai_edge_litert.interpreter  # each looks at the core when it is loaded
read = ctypes.CDLL(None).getauxval
read.restype = ctypes.c_ulong
print(read(ctypes.c_ulong(16)))
"""


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory) -> Path:
    """<precision>.<format> and <format>.npz of one network, and `expected.npy`, its outputs in PyTorch."""
    folder = tmp_path_factory.mktemp("runtimes")
    program = Path(__file__).with_name("runtimes.py")
    done = subprocess.run([sys.executable, str(program), str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def measured(emulator, artifacts) -> dict[tuple[str, str, str], Measurement]:
    """{(target, precision, format): measurement} on a core with the dot product and on one without."""
    wanted = [(precision, format) for precision in ("fp32", "int8") for format in FORMATS]
    files = [(artifacts / f"{precision}.{format}", format, artifacts / f"{format}.npz") for precision, format in wanted]
    return {
        (target, *which): measurement
        for target in (DOT, NO_DOT)
        for which, measurement in zip(wanted, measure_many(files, profile=load_profile(target)))
    }


def dequantised(outputs: numpy.ndarray) -> numpy.ndarray:
    """Outputs on any scale, for comparisons that do not depend on it."""
    outputs = outputs.astype(numpy.float64)
    return (outputs - outputs.mean()) / outputs.std()


@pytest.mark.slow
@pytest.mark.export
@pytest.mark.parametrize("format", FORMATS)
def test_every_runtime_computes_the_network(artifacts, tmp_path, format):
    expected = numpy.load(artifacts / "expected.npy")
    for precision in ("fp32", "int8"):
        host.run(artifacts / f"{precision}.{format}", format, artifacts / f"{format}.npz", tmp_path / "out.npz")
        with numpy.load(tmp_path / "out.npz") as archive:
            (outputs,) = archive.values()
        if precision == "fp32":
            numpy.testing.assert_allclose(outputs, expected, rtol=1e-3, atol=1e-3)
        else:
            distance = numpy.abs(dequantised(outputs) - dequantised(expected)).max()
            assert 0 < distance < 0.3, "int8 is near the network, and is not the network"


@pytest.mark.slow
@pytest.mark.export
@pytest.mark.parametrize("format", FORMATS)
def test_every_runtime_needs_less_memory_for_int8(artifacts, format):
    fp32, int8 = (
        peak_memory(artifacts / f"{precision}.{format}", format, artifacts / f"{format}.npz", children=2)
        for precision in ("fp32", "int8")
    )
    assert (artifacts / f"int8.{format}").stat().st_size < int8.bytes < fp32.bytes
    assert fp32.high_bytes - fp32.low_bytes <= 256 * 1024  # what the kernel may not have added up yet


@pytest.mark.slow
@pytest.mark.export
@pytest.mark.emulator
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_program_gives_the_same_outputs_on_the_emulated_core(emulator, artifacts, tmp_path, precision):
    program, inputs = artifacts / f"{precision}.pte", artifacts / "pte.npz"
    emulator_runner.run(program, "pte", inputs, tmp_path / "arm.npz", load_profile(DOT))
    host.run(program, "pte", inputs, tmp_path / "host.npz")
    arm, here = (numpy.load(tmp_path / f"{where}.npz")["output_0"] for where in ("arm", "host"))
    step = 1e-4 if precision == "fp32" else numpy.ptp(here) / 100  # a tie may round either way, layer by layer
    numpy.testing.assert_allclose(arm, here, rtol=1e-4, atol=step)


@pytest.mark.slow
@pytest.mark.export
@pytest.mark.emulator
@pytest.mark.parametrize("format", FORMATS)
def test_int8_gains_most_where_the_core_has_the_dot_product(measured, format):
    """Each runtime asks what the core can do: with the dot product its int8 kernels execute far fewer instructions."""

    def of(target: str, precision: str) -> Measurement:
        return measured[target, precision, format]

    assert of(DOT, "int8").instructions < 0.6 * of(NO_DOT, "int8").instructions
    assert of(DOT, "fp32").instructions == pytest.approx(of(NO_DOT, "fp32").instructions, rel=0.15)
    gains = {target: of(target, "fp32").median_ms / of(target, "int8").median_ms for target in (DOT, NO_DOT)}
    assert gains[DOT] > 1.2 * gains[NO_DOT] and gains[NO_DOT] > 1.0
    assert "asimddp" in of(DOT, "int8").state["isa"] and "asimddp" not in of(NO_DOT, "int8").state["isa"]


@pytest.mark.slow
@pytest.mark.export
@pytest.mark.emulator
def test_a_program_takes_the_same_time_in_another_process(measured, artifacts):
    again = measure(artifacts / "int8.pte", format="pte", profile=load_profile(DOT), inputs=artifacts / "pte.npz")
    assert again.median_ms == pytest.approx(measured[DOT, "int8", "pte"].median_ms, rel=1e-3)
    assert again.runtime.startswith("executorch ")


@pytest.mark.slow
@pytest.mark.export
def test_a_program_is_timed_on_this_machine(artifacts):
    found = measure(
        artifacts / "fp32.pte", format="pte", profile=load_profile("host"), inputs=artifacts / "pte.npz", budget_s=0.1
    )
    assert found.n >= 30 and 0 < found.low_ms <= found.median_ms and found.threads == 1


def cores() -> list[Profile]:
    """A profile for each kind of core that is emulated."""
    profiles = [profile for profile in list_profiles() if profile.core]
    return list({(p.core.qemu_cpu, p.core.features): p for p in reversed(profiles)}.values())


@pytest.mark.emulator
@pytest.mark.parametrize("profile", cores(), ids=lambda profile: profile.core.name)
def test_a_runtime_is_told_the_same_features_by_both_its_sources(emulator, profile):
    """Runtimes read /proc/cpuinfo, which the profile writes, and the kernel's capability bits, which QEMU sets."""
    done = run_python(emulator, profile, ["-c", HWCAP_OF_GUEST])
    assert done.returncode == 0, done.stderr
    bits = int(done.stdout)
    reported = {feature for feature, bit in HWCAP.items() if bits >> bit & 1}
    assert reported == HWCAP.keys() & set(profile.core.features)


@pytest.mark.slow
@pytest.mark.export
@pytest.mark.emulator
@pytest.mark.parametrize("format", FORMATS)
def test_every_runtime_is_broken_down_into_the_layers_of_the_network(measured, artifacts, format):
    for precision in ("fp32", "int8"):
        rows = explain(
            artifacts / f"{precision}.{format}",
            format=format,
            profile=load_profile(DOT),
            inputs=artifacts / f"{format}.npz",
        )
        whole = measured[DOT, precision, format]
        assert sum(row.milliseconds for row in rows) == pytest.approx(whole.median_ms, rel=0.01)
        assert sum("Conv" in row.kind and "Convert" not in row.kind for row in rows) == 7
        assert rows[-1].kind == RUNTIME and rows[-1].share < 0.06
