"""The GPU path as it is set up on this machine, and small artifacts for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from ai_edge_litert import schema_py_generated as schema

from targets.gpu import places
from targets.probes.flatbuffer import Writer

SIDE, CHANNELS = 12, 8
PROGRAM = """
import sys
from pathlib import Path
from runtimes import CifarResNet, randomise_norms, torch, write_tflite
torch.manual_seed(0)
write_tflite(randomise_norms(CifarResNet(1)), torch.randn(4, 3, 32, 32), Path(sys.argv[1]))
"""


@pytest.fixture
def driver() -> places.Places:
    """The software GPU driver; tests that need it are skipped where it has not been set up."""
    if not places.is_ready():
        pytest.skip("the software GPU driver is not set up: run `planish targets setup pixel-4-gpu`")
    return places.require()


@pytest.fixture
def mali(driver: places.Places) -> places.Places:
    """The same for Mali GPUs."""
    if not places.is_ready(mali=True):
        pytest.skip("the driver of Mali GPUs is not set up: run `planish targets setup galaxy-s10-exynos-gpu`")
    return places.require(mali=True)


@pytest.fixture(scope="session")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a ResNet-8 for CIFAR, exported by LiteRT's converter: fp32.tflite, int8.tflite, tflite.npz."""
    folder = tmp_path_factory.mktemp("resnet")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)], cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


class Chain:
    """A .tflite of operators one behind the other on [1, 12, 12, 8], the first on as many channels as are given."""

    def __init__(self, channels: int = 3) -> None:
        self.writer, self.rng = Writer(), numpy.random.default_rng(0)
        self.last, self.channels = self.writer.input((1, SIDE, SIDE, channels)), channels

    def conv(self) -> Chain:
        weights = self.rng.uniform(-0.3, 0.3, (CHANNELS, 3, 3, self.channels)).astype(numpy.float32)
        inputs = [self.last, self.writer.constant(weights), self.writer.constant(numpy.ones(CHANNELS, numpy.float32))]
        options = {"padding": schema.Padding.SAME, "strideH": 1, "strideW": 1}
        out = self.writer.tensor((1, SIDE, SIDE, CHANNELS))
        self.last, self.channels = self.writer.node("CONV_2D", "Conv2DOptions", inputs, out, **options), CHANNELS
        return self

    def angle(self) -> Chain:
        """Of a tensor and itself, which the accelerator does not know."""
        out = self.writer.tensor((1, SIDE, SIDE, CHANNELS))
        self.last = self.writer.node("ATAN2", None, [self.last, self.last], out)
        return self

    def turned(self, other: int) -> Chain:
        """Of two tensors, which it does know."""
        out = self.writer.tensor((1, SIDE, SIDE, CHANNELS))
        self.last = self.writer.node("ATAN2", None, [self.last, other], out)
        return self

    def save(self, path: Path) -> Path:
        path.write_bytes(self.writer.finish([self.last]))
        return path


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """Two convolutions."""
    return Chain().conv().conv().save(tmp_path / "whole.tflite")


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """Known: 0, 2, 3, 4, 5; not known: 1. Operator 4 is of the kind that 1 is of."""
    chain = Chain().conv().angle().conv()
    beside = chain.last
    return chain.conv().turned(beside).conv().save(tmp_path / "split.tflite")


@pytest.fixture
def unknown(tmp_path: Path) -> Path:
    """One operator, which is not known."""
    return Chain(CHANNELS).angle().save(tmp_path / "unknown.tflite")


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """Three, for `whole` and `split`."""
    path = tmp_path / "samples.npz"
    numpy.savez(path, x=numpy.random.default_rng(1).standard_normal((3, SIDE, SIDE, 3), dtype=numpy.float32))
    return path
