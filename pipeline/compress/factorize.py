"""Training that lets rank fall by itself: a layer becomes a product of factors, with weight decay on each of them.

LoRITa (2405.03089): W = W_N ... W_1 with nothing in between. Over all factorisations of one W,

    min 1/2 sum_i |W_i|_F^2  =  N/2 sum_j sigma_j(W)^(2/N)

so that ordinary weight decay on N factors is a Schatten-2/N penalty on the layer: the nuclear norm for N = 2, stronger
still on small singular values for N = 3, and no pressure on rank for N = 1, which is the control. After training the
factors are merged, exactly, and the layers truncated (`ranks` chooses to which rank, `truncate` does it).

Layouts are the paper's: a k x k convolution keeps its kernel, stride and padding in the first factor and is followed by
1x1 factors [Cout, Cout]; a linear layer or 1x1 convolution is preceded by square factors [Cin, Cin]. Only the last
factor has a bias, so merging is exact up to the border. Ours: factors as narrow as the layer's full rank, which allow
the same products with fewer weights (`width="least"`); a start from a trained layer; stopping once the rate has become
nothing; crops that are filled with zeros after the normalisation, the mean colour. `descent.train` does the training.

needs: training, with labels. knobs: the number of factors, the weight decay.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import reduce
from typing import Literal

import torch
from torch import nn

from pipeline.compress.algebra import LinearOperator, composed, operator_of
from pipeline.compress.descent import Plateau, Policy
from pipeline.compress.truncate import full_rank, truncatable
from pipeline.model.network import Network

Width = Literal["paper", "least"]


class FactorChain(nn.Sequential):
    """The factors of one layer, in the order they are applied; stands in a network under the layer's name."""


def factorized(
    network: Network,
    factors: int,
    *,
    layers: Collection[str] | None = None,
    width: Width = "paper",
    start: Literal["trained", "random"] = "trained",
    seed: int = 0,
) -> Network:
    """A copy of `network` to be trained, in which layers are products of `factors` factors.

    Args:
        factors: N; 1 leaves the layers as they are.
        layers: which; None takes every dense convolution and linear layer that is called once.
        width: channels between the factors: the paper's, or as few as the layer's full rank.
        start: `trained` computes what `network` computes: with W = U S V^T every factor gets S^(1/N), which is the
            balanced factorisation that weight decay favours. `random` is for training from scratch: torch's own
            initialisation of every layer, norms included; parameters of the user that are in no layer stay as they are.
        seed: of the random start.

    Raises:
        KeyError: a name in `layers` is of no layer that can be factorized.
    """
    copy = network.copy()
    editable = copy.editable()
    able = {name: module for name, module in copy.layers().items() if name in editable and truncatable(module)}
    for name in able if layers is None else layers:
        if factors > 1:
            copy.graph.set_submodule(name, _chain(able[name], factors, width))
    if start == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for module in copy.graph.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
    return copy


def merged(network: Network) -> Network:
    """A copy of `network` with plain layers again: each chain multiplied out in float64."""
    copy = network.copy()
    for name, module in network.layers().items():
        if isinstance(module, FactorChain):
            layer = reduce(composed, map(operator_of, module)).module()
            if module[-1].bias is None:
                layer.bias = None
            copy.graph.set_submodule(name, layer)
    return copy


def _chain(module: nn.Module, factors: int, width: Width) -> FactorChain:
    """The balanced factors of a layer, W_1 first."""
    operator = operator_of(module)
    pointwise = operator.kernel == (1, 1)
    published = operator.in_channels if pointwise else operator.out_channels
    inner = full_rank(module) if width == "least" else published
    left, values, right = torch.linalg.svd(operator.weight.flatten(1), full_matrices=False)
    rank, root = len(values), values ** (1 / factors)
    first = operator.weight.new_zeros(inner, right.shape[1])
    first[:rank] = root[:, None] * right
    middle = operator.weight.new_zeros(inner, inner)
    middle[range(rank), range(rank)] = root
    last = operator.weight.new_zeros(operator.out_channels, inner)
    last[:, :rank] = left * root

    spatial = factors - 1 if pointwise else 0  # the factor that has the kernel, the stride and the padding
    parts = []
    for i, matrix in enumerate([first, *[middle] * (factors - 2), last]):
        silent = torch.zeros(len(matrix), dtype=torch.float64)
        if i == spatial:
            part = replace(operator, weight=matrix.reshape(len(matrix), -1, *operator.kernel), bias=silent)
        else:
            part = LinearOperator(matrix[:, :, None, None], silent, tokens=operator.tokens)
        if i == factors - 1:
            part = replace(part, bias=operator.bias)
        layer = part.module()
        if i < factors - 1 or module.bias is None:
            layer.bias = None
        parts.append(layer)
    return FactorChain(*parts)


# Of the authors' ResNet-20 and VGG-16 on CIFAR-10: best 92.33 % and 94.13 % with N = 2, 91.62 % and 93.61 % with N = 3.
PRESETS: Mapping[str, Policy] = {
    "lorita-cifar10": Policy(
        epochs=300,
        batch=128,
        rate=0.01,
        weight_decay=1e-3,
        plateau=Plateau(patience=15),
        label_smoothing=0.1,
        augment=True,
        seed=42,
    )
}
"""The authors' training; the weight decay is what makes rank fall, without it the factors put no pressure on it."""
