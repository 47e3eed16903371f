"""Lifting operators back to layers never changes what a network computes, whatever the user's forward does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.compress.merge import merge
from pipeline.compress.segments import segments
from pipeline.compress.truncate import truncate
from pipeline.model.edits import replay
from pipeline.model.ingest import export_program, from_program
from targets.cost import CostTable
from targets.profile import load_profile


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.c = nn.Conv2d(3, 8, 3, padding=1)


class OneWeightTwoStrides(Base):
    def forward(self, x):
        return self.c(x) + F.conv2d(x, self.c.weight, self.c.bias, padding=2, dilation=2)


class ReluOfASlice(Base):
    def forward(self, x):
        y = self.c(x)
        y[:, :2].relu_()
        return y


class ViewReadAfterItsBaseChanged(Base):
    def forward(self, x):
        y = self.c(x)
        i = y.flatten(2)
        return torch.relu_(y).flatten(2) + i


class ViewOfAMap(Base):
    def forward(self, x):
        y = self.c(x)
        return y.view(y.shape[0], -1)


class NameUnderAWeight(Base):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.inner.child = nn.Linear(8, 8)

    def forward(self, x):
        y = self.c(x).mean((2, 3))
        return F.linear(self.inner.child(y), self.inner.weight, self.inner.bias)


class SharedLayer(Base):
    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return self.again(self.again(self.c(x)).relu())


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.block(self.patch(x).flatten(2).transpose(1, 2)).mean(1))


class BatchStatistics(Base):
    def forward(self, x):
        return F.batch_norm(self.c(x), None, None, training=True)


@pytest.mark.parametrize(
    "model",
    [
        OneWeightTwoStrides,
        ReluOfASlice,
        ViewReadAfterItsBaseChanged,
        ViewOfAMap,
        NameUnderAWeight,
        SharedLayer,
        Attention,
        BatchStatistics,
    ],
)
def test_the_lifted_network_computes_the_same(model: type[nn.Module]) -> None:
    network, x = model().eval(), torch.randn(4, 3, 8, 8)
    lifted = from_program(export_program(network, (x[:2],)))
    with torch.no_grad():
        assert torch.allclose(lifted(x), network(x), atol=1e-5)


def test_a_layer_called_twice_or_read_elsewhere_is_not_offered_for_edits() -> None:
    assert "again" not in from_program(export_program(SharedLayer().eval(), (torch.randn(2, 3, 8, 8),))).editable()

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e = nn.Linear(6, 4)

        def forward(self, x):
            return F.linear(self.e(x), self.e.weight.t())

    assert "e" not in from_program(export_program(Tied().eval(), (torch.randn(2, 6),))).editable()


def test_a_view_takes_maps_with_the_channels_last() -> None:
    x = torch.randn(2, 3, 8, 8)
    network = from_program(export_program(ViewOfAMap().eval(), (x,)))
    with torch.no_grad():
        last = network(x.contiguous(memory_format=torch.channels_last))
        assert (last - network(x)).abs().max() <= 1e-5


def test_truncating_attention_leaves_no_dead_weights_behind() -> None:
    x = torch.randn(2, 3, 8, 8)
    network = from_program(export_program(Attention().eval(), (x,)))
    layer = next(name for name in network.layers() if "in_proj" in name)
    assert replay(network, [truncate(layer, 2)]).parameters() < network.parameters()


def test_a_norm_over_tokens_is_no_link_of_a_linear_chain() -> None:
    """BatchNorm1d on [N, T, C] scales T, not the features that a merge would scale."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(8, 64), nn.BatchNorm1d(8), nn.Linear(64, 8)

        def forward(self, x):
            return self.b(self.norm(self.a(x)))

    network = from_program(export_program(Tokens().eval(), (torch.randn(2, 8, 8),)))
    costs = CostTable.load(load_profile("pixel-4-cpu"), "tflite")
    assert not [segment for segment in segments(network, costs) if "norm" in segment.layers]


def test_a_users_layer_keeps_its_name_beside_truncated_ones() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.fc_reduce = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.fc_reduce(F.relu(self.fc(x)))

    x = torch.randn(4, 8)
    network = from_program(export_program(Named().eval(), (x[:2],)))
    with torch.no_grad():
        assert (replay(network, [truncate("fc", 8)])(x) - network(x)).abs().max() <= 1e-5


def test_merging_needs_a_linear_chain() -> None:
    network = from_program(
        export_program(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).eval(), (torch.randn(2, 4),))
    )
    with pytest.raises(ValueError, match="is not linear"):
        replay(network, [merge(["0", "1", "2"])])
