"""Small networks that stand for what users bring, and their exports, made once per test session."""

from __future__ import annotations

import atexit
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.export.artifact import Artifact
from pipeline.export.child import export
from pipeline.export.contract import Contract

CHANNELS, HEIGHT, WIDTH, CLASSES = 3, 28, 24, 10  # not square: a swapped axis must not go unnoticed
_FASHION = Path(__file__).parents[3] / "examples" / "fashion" / "test.npz"


class Residual(nn.Module):
    """ResNet's basic blocks, the second with a strided projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(CHANNELS, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.first, self.second = self._branch(8, 8, 1), self._branch(8, 16, 2)
        self.shortcut = nn.Sequential(nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16))
        self.head = nn.Linear(16, CLASSES)

    @staticmethod
    def _branch(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        x = torch.relu(x + self.first(x))
        x = torch.relu(self.shortcut(x) + self.second(x))
        return self.head(x.mean((2, 3)))


class Mobile(nn.Module):
    """MobileNetV2's inverted bottlenecks: depthwise convolution, ReLU6, linear output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(CHANNELS, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.block = nn.Sequential(
            nn.Conv2d(8, 32, 1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU6(),
            nn.Conv2d(32, 32, 3, 1, 1, groups=32, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU6(),
            nn.Conv2d(32, 8, 1, bias=False),
            nn.BatchNorm2d(8),
        )
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.block(x))


class Transformer(nn.Module):
    """One ViT block: patches, layer norm, attention, GELU."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.patches = nn.Conv2d(CHANNELS, width, 4, 4)
        self.norm_in, self.norm_mlp, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        n, tokens, width = x.shape
        q, k, v = self.qkv(self.norm_in(x)).reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        attended = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, width)
        x = x + self.project(attended)
        x = x + self.mlp(self.norm_mlp(x))
        return self.head(self.norm_out(x).mean(1))


class Features(nn.Module):
    """Class scores together with a feature map and a vector a row: outputs of rank 2, 4 and 3."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(CHANNELS, 8, 3, 2, 1), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = torch.relu(self.conv(x))
        return self.head(features.mean((2, 3))), features, features.mean(1)


class Contrast(nn.Module):
    """A box filter over 5x5 pixels, then a classifier; `limit` saturates the filter's response."""

    def __init__(self, limit: float | None = None) -> None:
        super().__init__()
        self.box, self.limit = nn.Conv2d(CHANNELS, 1, 5, bias=False), limit
        nn.init.ones_(self.box.weight)
        self.head = nn.Linear(24 * 20, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.box(x)
        if self.limit is not None:
            x = x.clamp(-self.limit, self.limit)
        return self.head(x.flatten(1))


NETWORKS = {"residual": Residual, "mobile": Mobile, "transformer": Transformer, "features": Features}


def build(kind: type[nn.Module], *arguments: float) -> nn.Module:
    """In eval mode, with seeded weights and norms that are not the identity."""
    torch.manual_seed(0)
    network = kind(*arguments)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return network.eval()


def save(network: nn.Module, path: Path, *, batch: int = 2, symbolic: bool = True) -> Path:
    """As `network.pt2`, batch dimension symbolic unless told otherwise."""
    example = torch.zeros(batch, CHANNELS, HEIGHT, WIDTH)
    dynamic_shapes = ({0: torch.export.Dim("batch")},) if symbolic else None
    torch.export.save(torch.export.export(network, (example,), dynamic_shapes=dynamic_shapes), path)
    return path


def images(count: int) -> np.ndarray:
    """Real images, [N, 3, 28, 24] float32, normalised as for training; the channels are shifted copies."""
    with np.load(_FASHION) as archive:
        pixels = archive["x"][:count].reshape(count, 28, 28).astype(np.float32) / 255
    shifted = [np.roll(pixels, shift, axis=2)[:, :, 2:-2] for shift in (0, 1, 2)]
    return ((np.stack(shifted, axis=1) - 0.286) / 0.353).astype(np.float32)


def noise(count: int) -> np.ndarray:
    """Standard normal samples in the images' shape."""
    return np.random.default_rng(0).standard_normal((count, CHANNELS, HEIGHT, WIDTH), dtype=np.float32)


def eager(network: nn.Module, samples: np.ndarray) -> list[np.ndarray]:
    with torch.no_grad():
        outputs = network(torch.from_numpy(samples))
    return [output.numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,))]


@cache
def workspace() -> Path:
    """A directory that lives as long as the test session."""
    directory = tempfile.TemporaryDirectory(prefix="planish-export-")
    atexit.register(directory.cleanup)
    return Path(directory.name)


@cache
def saved(name: str) -> Path:
    return save(build(NETWORKS[name]), workspace() / f"{name}.pt2")


CONTRACT = Contract(-1.0, 2.0)


@cache
def exported(name: str, format: str) -> Artifact:
    """The export of a named network, shared by all tests of the session."""
    return export(
        saved(name),
        format=format,
        directory=workspace() / name / format,
        contract=CONTRACT,
        log=workspace() / f"{name}.{format}.log",
    )


def residual() -> nn.Module:
    """What a user's model file has: a callable that returns the network."""
    return build(Residual)
