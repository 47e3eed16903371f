"""A small residual network for Fashion-MNIST, built of fused inverted bottlenecks.

The block is the Fused-MBConv of EfficientNetV2 (Tan & Le 2021, figure 2) without squeeze-excite and with ReLU: a 3x3
convolution widens, a 1x1 convolution narrows, and the sum with the input is left linear. Input: [N, 1, 28, 28] float32
in [0, 1]; output: [N, 10] logits.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

EXPANSION = 4
CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


class ConvNormAct(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class FusedBottleneck(nn.Module):
    """3x3 to `EXPANSION` times the width, ReLU, 1x1 back; added to the input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        hidden = EXPANSION * inputs
        self.expand = nn.Conv2d(inputs, hidden, 3, stride, 1, bias=False)
        self.expand_norm = nn.BatchNorm2d(hidden)
        self.act = nn.ReLU()
        self.project = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.project_norm = nn.BatchNorm2d(outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.project_norm(self.project(self.act(self.expand_norm(self.expand(x)))))
        return x + y if self.residual else y


class FashionNet(nn.Module):
    """0.36 M parameters, 24 M multiply-accumulates, eight ReLUs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNormAct(1, 24, 3, stride=2)  # 28 -> 14
        self.blocks = nn.Sequential(
            FusedBottleneck(24, 24),
            FusedBottleneck(24, 24),
            FusedBottleneck(24, 48, stride=2),  # 14 -> 7
            FusedBottleneck(48, 48),
            FusedBottleneck(48, 48),
            FusedBottleneck(48, 48),
        )
        self.head = ConvNormAct(48, 128, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(128, len(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.head(self.blocks(self.stem(x)))).flatten(1))


def build() -> FashionNet:
    """The network with fresh weights, in training mode."""
    return FashionNet()


def trained() -> FashionNet:
    """The network with the weights of `weights.safetensors` beside this file, in eval mode."""
    from safetensors.torch import load_model

    network = build()
    load_model(network, Path(__file__).with_name("weights.safetensors"))
    return network.eval()
