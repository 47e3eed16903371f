"""What `flatten.py` compresses: networks with their public weights, and data to fit and to judge them with.

Neither ships with planish. `PLANISH_WEIGHTS` names a folder that holds the weights (in any folder below),
`PLANISH_CIFAR10` the data of `cifar10.py`, `PLANISH_IMAGENET` that of `imagenet.py`, and `PLANISH_FASHION` that of
`fashion.py`, which also trains the transformer.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]  # for the project and for `networks`

from networks.convnext import ConvNeXt  # noqa: E402
from networks.efficientnet import EfficientNetLite0  # noqa: E402
from networks.mixer import MlpMixer  # noqa: E402
from networks.mobilenet import MobileNetV2  # noqa: E402
from networks.mobilenet_v3 import MobileNetV3Large  # noqa: E402
from networks.resnet import CifarResNet  # noqa: E402
from networks.small import randomise_norms  # noqa: E402
from networks.swin import Swin  # noqa: E402
from networks.vgg import VGG16  # noqa: E402
from networks.vit import small_vit, vit_tiny  # noqa: E402

from calibration.dataset import Samples, open_samples  # noqa: E402
from pipeline.model.ingest import load_weights  # noqa: E402
from targets.errors import UsageError  # noqa: E402

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Problem:
    """A trained network and its data.

    Attributes:
        title: of the network and what it was trained on.
        build: makes the network, without its weights.
        weights: name of the file.
        shape: of one sample.
        data: the callables that give samples without and with labels: to fit with, and to judge with.
        source: environment variable that the data needs.
        mean, std: of the colours, one a channel.
        inner: layers whose output channels may be pruned without touching a skip; None for all but the classifier.
    """

    title: str
    build: Callable[[], nn.Module]
    weights: str
    shape: tuple[int, ...]
    data: tuple[str, str]
    source: str
    inner: str | None = None
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def module(self) -> nn.Module:
        """In eval mode, with its weights."""
        network = self.build()
        load_weights(network, _weights(self.weights))
        return network.eval()

    def training(self) -> Samples:
        return self._samples(self.data[0], None)

    def test(self, count: int) -> Samples:
        return self._samples(self.data[1], count)

    @property
    def example(self) -> torch.Tensor:
        return torch.randn(2, *self.shape, generator=torch.Generator().manual_seed(0))

    def _samples(self, data: str, limit: int | None) -> Samples:
        if not Path(os.environ.get(self.source) or "/nowhere").exists():
            file = HERE / data.partition(":")[0]
            raise _missing(f"the data of {self.title}", self.source, f"see the first lines of {file.name}")
        colour = {"mean": self.mean, "std": self.std} if self.shape[0] == 3 else {}
        return open_samples(f"{HERE / data}", input_shape=self.shape, limit=limit, **colour)


def _weights(name: str) -> Path:
    folder = os.environ.get("PLANISH_WEIGHTS")
    found = next(iter(sorted(Path(folder).rglob(name))), None) if folder else None
    if found is None:
        raise _missing(f"the weights {name}", "PLANISH_WEIGHTS", f"let it name a folder that holds {name}")
    return found


def _missing(what: str, variable: str, fix: str) -> UsageError:
    value = os.environ.get(variable)
    return UsageError(
        f"{what} are not here",
        where=f"the environment variable {variable}",
        why=f"nothing of that is at {value}" if value else "it is not set",
        fix=fix,
        code="BENCHMARK_DATA_MISSING",
    )


_CIFAR = ((3, 32, 32), ("cifar10.py:train", "cifar10.py:test"), "PLANISH_CIFAR10", "conv1")
_PHOTOGRAPHS = ((3, 224, 224), ("imagenet.py:calibration", "imagenet.py:evaluation"), "PLANISH_IMAGENET")
_FASHION = ((1, 28, 28), ("fashion.py:training", "fashion.py:test"), "PLANISH_FASHION")

PROBLEMS = {
    "resnet-20": Problem("ResNet-20 on CIFAR-10", lambda: CifarResNet(3), "resnet20-12fca82f.th", *_CIFAR),
    "resnet-56": Problem("ResNet-56 on CIFAR-10", lambda: CifarResNet(9), "resnet56-4bfd9763.th", *_CIFAR),
    "fashion-vit": Problem("a small ViT on Fashion-MNIST", small_vit, "fashion-vit.safetensors", *_FASHION),
    "mobilenet-v2": Problem("MobileNetV2 on ImageNet", MobileNetV2, "mobilenet_v2-b0353104.pth", *_PHOTOGRAPHS),
    "efficientnet-lite0": Problem(
        "EfficientNet-Lite0 on ImageNet",
        EfficientNetLite0,
        "efficientnet-lite0-57934424.pth",
        *_PHOTOGRAPHS,
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
    ),
}

# Networks for photographs of which no weights are here; norms are random, too, or they would fold to nothing.
UNTRAINED: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    name: (title, lambda build=build: randomise_norms(build()))
    for name, title, build in (
        ("mobilenet-v3-large", "MobileNetV3-Large", MobileNetV3Large),
        ("vgg-16", "VGG-16", VGG16),
        ("vit-tiny", "ViT-Tiny", vit_tiny),
        ("swin-tiny", "Swin-Tiny", Swin),
        ("convnext-atto", "ConvNeXt-Atto", ConvNeXt),
        ("mlp-mixer", "MLP-Mixer S/16", MlpMixer),
    )
}
