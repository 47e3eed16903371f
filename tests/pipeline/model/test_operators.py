"""What a network is priced as: attention by its parts, activations by their kind, a ReLU where nothing fuses it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.model.ingest import export_program, from_program
from pipeline.model.operators import operators


def priced(model: nn.Module, *shape: int):
    return operators(from_program(export_program(model.eval(), (torch.randn(2, *shape),))))


def test_attention_is_priced_by_head_and_token_of_one_sample() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)

        def forward(self, x):
            return self.block(x)

    rows = [row.operator for row in priced(Block(), 9, 16)]
    products = [row for row in rows if row.kind == "matmul"]
    assert [(row.groups, row.pixels, row.in_channels, row.out_channels) for row in products] == [
        (2, 9, 8, 9),
        (2, 9, 9, 8),
    ]
    (softmax,) = (row for row in rows if row.kind == "softmax")
    assert softmax.pixels == 2 * 9 and softmax.out_channels == 9
    assert [row.pixels for row in rows if row.kind == "linear"] == [9] * 4
    assert [row.kind for row in rows].count("norm") == 2 and [row.kind for row in rows].count("add") == 2


@pytest.mark.parametrize(
    ("layer", "kind"),
    [(nn.GELU(), "gelu"), (nn.SiLU(), "silu"), (nn.Hardswish(), "hardswish"), (nn.Sigmoid(), "sigmoid")],
)
def test_an_activation_is_priced_as_its_kind(layer: nn.Module, kind: str) -> None:
    rows = [row.operator.kind for row in priced(nn.Sequential(nn.Conv2d(3, 4, 3), layer), 3, 8, 8)]
    assert rows == ["conv", kind]


def test_a_relu_costs_where_no_layer_is_before_it() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.inner, self.outer = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.ReLU()

        def forward(self, x):
            return self.outer(x + self.inner(self.conv(x)))

    assert [row.operator.kind for row in priced(Residual(), 4, 8, 8)] == ["conv", "add", "clamp"]


def test_a_gate_of_one_pixel_is_no_product_of_two_images() -> None:
    class Gate(nn.Module):
        def forward(self, x):
            return x * F.adaptive_avg_pool2d(x, 1)

    assert [row.operator.kind for row in priced(Gate(), 4, 8, 8)][-1] == "scale"
