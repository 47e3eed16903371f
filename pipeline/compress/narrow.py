"""Narrowing: of the channels between two layers some go, and the second layer is fitted to what stays.

Channel pruning with reconstruction (He et al., ICCV 2017), the channels chosen by what their loss costs the outputs of
the second layer when all others make up for it as well as they can (the optimal brain surgeon of Hassibi & Stork, 1993,
for groups of weights, as in Kurtic et al., ZipLM, 2023). With the second moments G of what the second layer reads, its
taps of channel c being the block c, and W = G^-1 B the least-squares weights, losing c leaves

    W_c^T ((G^-1)_cc)^-1 W_c

more, summed over the outputs. The least go first, a few at a time; G^-1 and W follow by a block of elimination.
Activations stay what they are, so this is what to do where a stretch is far from linear.

needs: data. knob: how many channels stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, fx, nn

from calibration.regression import Regression
from pipeline.compress.linearize import RECTIFIERS
from pipeline.compress.refit import ridge, ridge_solution
from pipeline.model.edits import Edit, applies
from pipeline.model.network import ChannelAffine, Network, positions

aten = torch.ops.aten
ROUNDS = 64  # of elimination; each looks at all channels that are left
ELEMENTWISE = (*RECTIFIERS, nn.Hardtanh, nn.Tanh, nn.Sigmoid, nn.ELU, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
FUNCTIONS = (
    aten.relu.default,
    aten.gelu.default,
    aten.silu.default,
    aten.hardswish.default,
    aten.hardtanh.default,
    aten.max_pool2d.default,
    aten.avg_pool2d.default,
    aten.adaptive_avg_pool2d.default,
)


@dataclass(frozen=True)
class Stretch:
    """Two layers, and between them only what treats every channel by itself.

    Attributes:
        first, last: the layers, as the user knows them.
        inner: what is between, in order: layers by the user's name, functions by the graph's.
        source, end: nodes, what `last` reads and what it gives.
        span: positions in the graph of the first and the last node.
        channels: between the layers.
        tokens: channels are the last dimension.
    """

    first: str
    last: str
    inner: tuple[str, ...]
    source: str
    end: str
    span: tuple[int, int]
    channels: int
    tokens: bool


def stretches(network: Network) -> Iterator[Stretch]:
    """Every stretch, in execution order; each layer begins at most one."""
    place, editable = positions(network), network.editable()
    for node in network.graph.graph.nodes:
        if not _dense(network, node) or node.target not in editable:
            continue
        first, tokens = network.layer(node.target), isinstance(network.layer(node.target), nn.Linear)
        inner: list[str] = []
        end = _only_reader(node)
        while end is not None and _channelwise(network, end, tokens, editable):
            inner.append(end.target if end.op == "call_module" else end.name)
            end = _only_reader(end)
        if end is None or not _dense(network, end) or end.target not in editable:
            continue
        if isinstance(network.layer(end.target), nn.Linear) is tokens and _fittable(network.layer(end.target)):
            channels = first.out_features if tokens else first.out_channels
            span = place[node.name], place[end.name]
            yield Stretch(node.target, end.target, tuple(inner), end.args[0].name, end.name, span, channels, tokens)


def _only_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _dense(network: Network, node: fx.Node) -> bool:
    module = network.layer(node.target) if node.op == "call_module" else None
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def _fittable(layer: nn.Module) -> bool:
    """Whether the moments see what the layer reads: an odd square kernel with zeros around."""
    if isinstance(layer, nn.Linear):
        return True
    edge = layer.kernel_size[0] // 2
    square = layer.kernel_size[0] == layer.kernel_size[1] and layer.kernel_size[0] % 2 == 1
    plain = layer.padding_mode == "zeros" and layer.dilation == (1, 1) and layer.stride[0] == layer.stride[1]
    return square and plain and layer.padding == (edge, edge)


def _channelwise(network: Network, node: fx.Node, tokens: bool, editable: set[str]) -> bool:
    if node.op == "call_function":
        return node.target in FUNCTIONS
    module = network.layer(node.target) if node.op == "call_module" else None
    if isinstance(module, ELEMENTWISE):
        return not isinstance(module, nn.PReLU) or module.num_parameters == 1 or node.target in editable
    if isinstance(module, nn.Conv2d):
        return node.target in editable and module.groups == module.in_channels == module.out_channels
    if isinstance(module, ChannelAffine):
        return node.target in editable and module.channel_dim == (-1 if tokens else 1)
    return isinstance(module, nn.BatchNorm2d) and node.target in editable


class Narrower:
    """Fits the last layer of one stretch to fewer channels; the order in which channels go is found once.

    Args:
        regression: from what the last layer reads to what it gives.
        channels: between the layers.
    """

    def __init__(self, regression: Regression, channels: int) -> None:
        self.regression, self.channels = regression, channels
        self.taps = len(regression.in_mean) // channels
        self._fits: dict[int, tuple[Tensor, Tensor, float]] = {}

    @cached_property
    def order(self) -> Tensor:
        """[C]: the channels, those that stay longest first."""
        gram, taps = self.regression.gram, self.taps
        inverse = torch.linalg.inv(gram + ridge(gram))
        weight = inverse @ self.regression.cross
        alive, gone = torch.arange(self.channels), []
        most = max(1, self.channels // ROUNDS)
        while len(alive) > 1:
            blocks = inverse.view(len(alive), taps, len(alive), taps).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
            rows = weight.view(len(alive), taps, -1)
            loss = (rows * torch.linalg.solve(blocks, rows)).sum((1, 2))
            ranked = loss.argsort(stable=True)
            leaving, staying = ranked[: min(most, len(alive) - 1)], ranked[min(most, len(alive) - 1) :].sort().values
            lost, kept = self._features(leaving), self._features(staying)
            pivot = torch.linalg.solve(inverse[lost][:, lost], torch.cat([inverse[lost], weight[lost]], 1))
            taken = inverse[kept][:, lost] @ pivot
            weight = weight[kept] - taken[:, len(inverse) :]
            inverse = inverse[kept][:, kept] - taken[:, : len(inverse)][:, kept]
            gone += alive[leaving].tolist()
            alive = alive[staying]
        return torch.tensor([*alive.tolist(), *reversed(gone)])

    def fit(self, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """(channels that stay [width], weight [O, width k k], bias [O]) of the last layer; float64."""
        kept, weight, _ = self._fit(width)
        features = self._features(kept)
        bias = self.regression.out_mean - weight @ self.regression.in_mean[features]
        return kept, weight, bias

    def residual(self, width: int) -> float:
        """Mean squared error that is left, all outputs together."""
        return self._fit(width)[2]

    def _fit(self, width: int) -> tuple[Tensor, Tensor, float]:
        if width not in self._fits:
            kept = self.order[:width].sort().values
            features = self._features(kept)
            gram, cross = self.regression.gram[features][:, features], self.regression.cross[features]
            weight = ridge_solution(gram, cross).T
            explained = 2 * (weight.T * cross).sum() - ((weight @ gram) * weight).sum()
            self._fits[width] = kept, weight, max(self.regression.energy - explained.item(), 0.0)
        return self._fits[width]

    def _features(self, channels: Tensor) -> Tensor:
        return (channels[:, None] * self.taps + torch.arange(self.taps)).flatten()


def narrow(stretch: Stretch, kept: Sequence[int], weight: Tensor, bias: Tensor) -> Edit:
    """The edit that leaves the channels `kept` between the layers of a stretch.

    Args:
        weight: [O, width k k] of the last layer.
        bias: [O].
    """
    arguments = {"last": stretch.last, "inner": list(stretch.inner), "kept": [int(channel) for channel in kept]}
    return Edit("narrow", stretch.first, arguments, {"weight": weight.float(), "bias": bias.float()})


@applies("narrow")
def _apply(network: Network, edit: Edit) -> Network:
    graph, kept = network.copy().graph, torch.tensor(edit.arguments["kept"])
    layers = network.layers()
    for name in (edit.site, *edit.arguments["inner"]):
        if name in layers:
            graph.set_submodule(name, _sliced(graph.get_submodule(name), kept))
    last = graph.get_submodule(edit.arguments["last"])
    shape = (len(last.weight), len(kept), *last.weight.shape[2:])
    last.weight = nn.Parameter(edit.tensors["weight"].view(shape).clone())
    last.bias = nn.Parameter(edit.tensors["bias"].clone())
    setattr(last, "in_features" if isinstance(last, nn.Linear) else "in_channels", len(kept))
    return network.edited(graph, edit)


def _sliced(module: nn.Module, kept: Tensor) -> nn.Module:
    """The module with the channels `kept` of what it gives."""
    for name, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        if value.ndim and len(value) > 1:
            value = value.detach()[kept].clone()
            setattr(module, name, nn.Parameter(value) if name in module._parameters else value)
    for name in ("out_channels", "out_features", "num_features", "num_parameters"):
        if getattr(module, name, 1) != 1:
            setattr(module, name, len(kept))
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        module.in_channels = module.groups = len(kept)
    return module
