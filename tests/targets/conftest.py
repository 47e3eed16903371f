"""Small artifacts for the runners, built without an exporter."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest

from targets.arm import setup
from targets.operator import Operator
from targets.probes import onnx, tflite
from targets.probes.design import convolution

SMALL = [convolution(3, 8, 3, 1, 12), convolution(8, 8, 3, 2, 12)]
LARGE = [convolution(16, 48, 3, 1, 40), convolution(48, 48, 3, 1, 40)]
WIDER = [convolution(3, 16, 3, 1, 12), convolution(16, 16, 3, 2, 12)]


def write_artifact(
    folder: Path, name: str, operators: list[Operator], format: str, samples: int = 1
) -> tuple[Path, Path]:
    """(artifact, inputs .npz with `samples` samples)."""
    probe = {"tflite": tflite, "onnx": onnx}[format].build([operators], numpy.random.default_rng(1))
    artifact, inputs = folder / f"{name}.{format}", folder / f"{name}.{format}.npz"
    artifact.write_bytes(probe.content)
    rng = numpy.random.default_rng(2)
    numpy.savez(
        inputs,
        **{
            key: rng.standard_normal((samples, *array.shape[1:]), dtype=numpy.float32)
            for key, array in probe.samples.items()
        },
    )
    return artifact, inputs


@pytest.fixture(scope="session")
def writer():
    """`write_artifact`, for networks of a test's own."""
    return write_artifact


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """format -> (artifact, inputs) of a network of two convolutions, three samples."""
    folder = tmp_path_factory.mktemp("artifacts")
    return {format: write_artifact(folder, "small", SMALL, format, samples=3) for format in ("tflite", "onnx")}


@pytest.fixture(scope="session")
def wider(tmp_path_factory):
    """The same with twice the channels."""
    folder = tmp_path_factory.mktemp("artifacts")
    return {format: write_artifact(folder, "wider", WIDER, format) for format in ("tflite", "onnx")}


@pytest.fixture(scope="session")
def large(tmp_path_factory):
    """format -> (artifact, inputs, multiply-accumulates) of a network with enough work for several threads."""
    folder = tmp_path_factory.mktemp("artifacts")
    macs = sum(operator.macs for operator in LARGE)
    return {format: (*write_artifact(folder, "large", LARGE, format), macs) for format in ("tflite", "onnx")}


@pytest.fixture(scope="session")
def emulator():
    """The emulator's parts; tests that need them are skipped where they have not been set up."""
    if not setup.is_ready():
        pytest.skip("the ARM64 emulator is not set up: run `planish targets setup pixel-4-cpu`")
    return setup.require()
