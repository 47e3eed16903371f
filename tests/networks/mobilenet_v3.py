"""MobileNetV3-Large (Howard et al., ICCV 2019)."""

from __future__ import annotations

from torch import Tensor, nn

ROWS = (  # kernel, hidden, outputs, squeeze, hard-swish, stride
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
)


def conv_norm(inputs: int, outputs: int, kernel: int, stride: int, groups: int, act: nn.Module | None) -> nn.Sequential:
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=1e-3),
    ]
    return nn.Sequential(*layers, *([act] if act else []))


def rounded(channels: float) -> int:
    """To a multiple of 8 that is not below nine tenths."""
    near = max(8, int(channels + 4) // 8 * 8)
    return near + 8 if near < 0.9 * channels else near


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = rounded(channels / 4)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)
        self.relu, self.gate = nn.ReLU(), nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.fc2(self.relu(self.fc1(self.pool(x)))))


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, row: tuple[int, int, int, bool, bool, int]) -> None:
        super().__init__()
        kernel, hidden, outputs, squeeze, swish, stride = row
        act = nn.Hardswish if swish else nn.ReLU
        layers = [conv_norm(inputs, hidden, 1, 1, 1, act())] if hidden != inputs else []
        layers.append(conv_norm(hidden, hidden, kernel, stride, hidden, act()))
        layers += [SqueezeExcite(hidden)] if squeeze else []
        self.block = nn.Sequential(*layers, conv_norm(hidden, outputs, 1, 1, 1, None))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x) if self.residual else self.block(x)


class MobileNetV3Large(nn.Module):
    """Input [N, 3, 224, 224], output [N, 1000]."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        inputs, layers = 16, [conv_norm(3, 16, 3, 2, 1, nn.Hardswish())]
        for row in ROWS:
            layers.append(Bottleneck(inputs, row))
            inputs = row[2]
        self.features = nn.Sequential(*layers, conv_norm(inputs, 960, 1, 1, 1, nn.Hardswish()))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Linear(960, 1280), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(1280, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))
