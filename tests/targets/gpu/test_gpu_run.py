"""LiteRT's GPU accelerator on the software driver: outputs beside the CPU's, what it takes, what it dispatches."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest

from targets.delegation.gpu import on_gpu, read_gpu
from targets.errors import PlanishError, UsageError
from targets.gpu import counts, gpus, process
from targets.gpu.counts import compiled, count
from targets.gpu.run import run
from targets.runners import host

pytestmark = pytest.mark.gpu


def difference(artifact: Path, inputs: Path, precision: str, folder: Path) -> float:
    """Largest of any output between GPU path and CPU, over the largest of the CPU's."""
    host.run(artifact, "tflite", inputs, folder / "cpu.npz")
    run(artifact, inputs, folder / "gpu.npz", precision)
    with numpy.load(folder / "cpu.npz") as cpu, numpy.load(folder / "gpu.npz") as gpu:
        assert cpu.files == gpu.files and all(cpu[name].shape == gpu[name].shape for name in cpu.files)
        return max(float(abs(gpu[name] - cpu[name]).max() / abs(cpu[name]).max()) for name in cpu.files)


@pytest.mark.export
@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-5), ("fp16", 1e-2)])
def test_a_network_computes_on_the_gpu_path_what_it_does_on_the_cpu(driver, resnet, tmp_path, precision, limit):
    assert 0 < difference(resnet / "fp32.tflite", resnet / "tflite.npz", precision, tmp_path) <= limit


@pytest.mark.export
def test_a_quantised_artifact_is_fed_with_float_samples_as_on_the_cpu(driver, resnet, tmp_path):
    host.run(resnet / "int8.tflite", "tflite", resnet / "tflite.npz", tmp_path / "cpu.npz")
    run(resnet / "int8.tflite", resnet / "tflite.npz", tmp_path / "gpu.npz", "fp32")
    with numpy.load(tmp_path / "cpu.npz") as cpu, numpy.load(tmp_path / "gpu.npz") as gpu:
        (name,) = cpu.files
        assert gpu[name].dtype == numpy.int8
        assert abs(gpu[name].astype(int) - cpu[name].astype(int)).max() <= 2, "steps of the quantisation"


def test_an_onnx_runs_on_the_webgpu_provider(driver, small, tmp_path):
    artifact, inputs = small["onnx"]
    host.run(artifact, "onnx", inputs, tmp_path / "cpu.npz")
    done = run(artifact, inputs, tmp_path / "gpu.npz", "fp32")
    with numpy.load(tmp_path / "cpu.npz") as cpu, numpy.load(tmp_path / "gpu.npz") as gpu:
        (name,) = cpu.files
        assert gpu[name].shape == cpu[name].shape
        assert abs(gpu[name] - cpu[name]).max() <= 1e-5 * abs(cpu[name]).max()
    assert done.accelerated and done.gpu_operators >= 2 and done.refused == ()
    assert done.runtime.startswith("onnxruntime-webgpu")
    assert count(artifact, precision="fp32").dispatches >= 2
    assert all(kernel.statistics["Instruction Count"] > 0 for kernel in compiled(artifact, "adreno-740", "fp32"))


def test_an_onnx_is_not_compiled_for_a_mali(small):
    with pytest.raises(UsageError) as caught:
        compiled(small["onnx"][0], "mali-g76", "fp32")
    assert caught.value.code == "GPU_FORMAT"


def test_an_onnx_is_not_run_in_another_precision(small, tmp_path):
    artifact, inputs = small["onnx"]
    with pytest.raises(UsageError) as caught:
        run(artifact, inputs, tmp_path / "gpu.npz", "fp16")
    assert caught.value.code == "GPU_PRECISION"


def test_the_accelerator_reports_that_it_takes_all(driver, whole, samples, tmp_path):
    said = []
    done = run(whole, samples, tmp_path / "out.npz", "fp32", said.append)
    assert (done.accelerated, done.gpu_operators, done.cpu_operators, done.refused) == (True, 2, 0, ())
    assert len(done.seconds) == 3 and done.setup_seconds > 0
    assert "Mesa" in done.driver and said == ["running whole.tflite on the GPU path, fp32"]


def test_an_operator_that_it_does_not_know_is_reported_with_the_reason(driver, split, samples, tmp_path):
    done = run(split, samples, tmp_path / "out.npz", "fp32")
    assert (done.accelerated, done.gpu_operators, done.cpu_operators) == (False, 4, 2)
    ((kind, reason),) = done.refused
    assert kind == "ATAN2" and "identical inputs" in reason
    assert difference(split, samples, "fp32", tmp_path) <= 1e-5, "what is on the CPU takes part"


def test_of_a_kind_that_is_named_only_the_refused_operator_is_refused(driver, split):
    found = on_gpu(split)
    assert found.kinds[1] == found.kinds[4] == "ATAN2"
    assert {*found.refused} == {1} and "identical inputs" in found.refused[1]
    assert found.taken == {2, 3, 4, 5}, "the larger subset; the convolution before it is known, and runs on the CPU"
    placement = read_gpu(split)
    assert [operator.partition for operator in placement.operators] == [None, None, 0, 0, 0, 0]
    bytes_of_one = 4 * 12 * 12 * 8
    assert placement.crossing() == (bytes_of_one, bytes_of_one), "in from the CPU; out to the artifact's output"


def test_an_artifact_of_unknown_operators_stays_on_the_cpu(driver, unknown):
    placement = read_gpu(unknown)
    assert placement.partitions == 0 and [operator.kind for operator in placement.fallbacks] == ["ATAN2"]
    assert count(unknown).dispatches == 0


def test_dispatches_are_counted_and_repeat(driver, whole):
    first = count(whole)
    assert first.dispatches > 2 and first.kernels > 1, "a convolution each, and the layout of input and output"
    assert first.invocations >= first.workgroups >= first.dispatches
    assert first.submits > 0 and first.barriers > 0 and first.allocated_bytes > 0
    counts._remembered(whole, gpus.GPUS["software"], "fp16", driver).unlink()
    assert count(whole) == first


def test_counts_are_kept_by_artifact_and_gpu(driver, whole):
    said = []
    count(whole, "adreno-740", progress=said.append)
    count(whole, "adreno-740", progress=said.append)
    assert len(said) <= 1
    assert compiled(whole, "adreno-740", progress=said.append) and len(said) <= 1


@pytest.mark.parametrize("gpu", ["adreno-640", "adreno-740"])
def test_kernels_are_compiled_to_adreno_code(driver, whole, gpu):
    kernels = compiled(whole, gpu)
    total = count(whole, gpu)
    assert total.gpu == {"adreno-640": "adreno-630"}.get(gpu, gpu), "the one that stands in is named"
    assert sum(kernel.dispatches for kernel in kernels) == total.dispatches
    assert sum(kernel.invocations for kernel in kernels) == total.invocations
    assert sorted(order for kernel in kernels for order in kernel.order) == [*range(total.dispatches)]
    for kernel in kernels:
        assert kernel.statistics["Instruction Count"] > 10 and kernel.statistics["Registers used"] > 0
    assert any(kernel.statistics["Loops"] for kernel in kernels), "over the channels of a convolution"


@pytest.mark.slow
@pytest.mark.parametrize("gpu", ["mali-g76", "mali-g710"])
def test_kernels_are_compiled_to_mali_code(mali, whole, gpu):
    kernels = compiled(whole, gpu)
    assert sum(kernel.dispatches for kernel in kernels) == count(whole, gpu).dispatches > 2
    assert all(kernel.statistics["Cycles"] > 0 and kernel.statistics["Registers used"] > 0 for kernel in kernels)


def test_a_file_that_is_no_artifact_is_said(driver, samples, tmp_path):
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"\0" * 64)
    with pytest.raises(UsageError) as caught:
        run(broken, samples, tmp_path / "out.npz")
    assert caught.value.code == "ARTIFACT_UNUSABLE" and caught.value.where.endswith("broken.tflite")


def test_a_run_that_takes_too_long_is_ended(driver, whole, samples, tmp_path):
    plan = {"mode": "run", "artifact": str(whole), "inputs": str(samples), "outputs": "out.npz", "precision": "fp32"}
    with pytest.raises(PlanishError) as caught:
        process.work(plan, gpus.GPUS["software"], driver, limit_s=0.05)
    assert caught.value.code == "GPU_RUN_FAILED" and "0 seconds" in caught.value.what


def test_a_driver_that_does_not_load_is_no_gpu(driver, monkeypatch):
    right = process.environment
    monkeypatch.setattr(process, "environment", lambda *a, **k: right(*a, **k) | {"VK_DRIVER_FILES": "/nowhere"})
    with pytest.raises(PlanishError) as caught:
        process.try_out(gpus.GPUS["software"], driver)
    assert caught.value.code == "GPU_RUN_FAILED" and "finds no GPU" in caught.value.what
    assert "No adapters found" in caught.value.why
