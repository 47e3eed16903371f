"""EASIER: remove the activations whose on/off state is decided, one after the other (Quétu, Liao & Tartaglione, 2024).

Every rectifier is scored by the entropy, in bits, of the state of its neurons on the data (see `calibration.statistics`
for the definition and its options), and the lowest one is removed:

    while accuracy(dense) - accuracy <= tolerated drop:
        rank the remaining rectifiers, remove the first, train again by the full policy

What we do otherwise than the paper:

* A removed rectifier becomes a per-channel line, which folds into the layer before it: the best fit on the data (see
  `linearize`). `replacement="identity"` is the paper's, made exact where it is not: zero entropy also means "never on",
  and there the identity would let the negative values through. Such a channel is masked.
* Entropies are counted in eval mode, after training instead of during its last epoch, and on calibration samples.
* The dense network is a trained one that came with its data, and answers what it was trained on better than anything
  new. So it trains by the policy once, too, before its accuracy is what the drop is counted from.
* A rectifier that is called at several places is split first; the authors edited their networks by hand.
* The authors' code has no tolerated drop, removes everything whose entropy is exactly zero together with the lowest,
  and does not train after the last removal.

The lines are trained on with the network. Removing an activation saves nothing by itself: the merge behind it does (see
`easing` for the rounds that serve a latency).

needs: data, training. knob: the tolerated drop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from calibration.statistics import SiteStatistics, Statistics, collect
from pipeline.compress.descent import Policy
from pipeline.compress.linearize import channel_dims, linearize, sites
from pipeline.model.edits import Edit, replay
from pipeline.model.network import Network

Replacement = Literal["affine", "identity"]

_CIFAR = {"epochs": 160, "batch": 128, "weight_decay": 1e-4, "milestones": (80, 120), "augment": True}
POLICIES: Mapping[str, Policy] = {
    # CIFAR-10 and Tiny-ImageNet-200
    "cifar-resnet18": Policy(rate=0.1, **_CIFAR),
    "cifar-mobilenetv2": Policy(rate=0.1, **_CIFAR),
    "cifar-vgg16": Policy(rate=0.01, **_CIFAR),
    "cifar-swin-t": Policy(rate=1e-3, **_CIFAR),
    # PACS and VLCS
    "domainbed": Policy(epochs=30, batch=16, rate=1e-3, weight_decay=5e-4, milestones=(24,)),
    # Flowers-102, DTD and Aircraft, from ImageNet weights
    "transfer": Policy(epochs=50, batch=16, rate=1e-4, optimizer="adamw"),
}
"""The paper's training policies (appendix, table 4). Without weight decay its Adam is AdamW. Of its augmentations only
CIFAR's is here; Tiny-ImageNet-200 was flipped alone, the others cropped, rotated and recoloured."""


def ranking(network: Network, statistics: Statistics) -> list[tuple[str, float]]:
    """The editable rectifiers that there are statistics of, with their entropies in bits.

    The lowest first, ties in execution order.
    """
    scores = [(site, statistics[site].entropy()) for site in sites(network) if site in statistics]
    return sorted(scores, key=lambda score: score[1])


def removal(site: str, module: nn.Module, seen: SiteStatistics, channel_dim: int, replacement: Replacement) -> Edit:
    """The edit that removes rectifier `module` at `site`.

    Args:
        seen: its statistics per channel (`pool="space"`).
        replacement: `affine`, the line of least squares, or `identity`, see `idle_line`.
    """
    line = (seen.slope, seen.intercept) if replacement == "affine" else idle_line(module, seen)
    return linearize(site, *line, channel_dim)


def idle_line(module: nn.Module, seen: SiteStatistics) -> tuple[Tensor, Tensor]:
    """Scale and shift, [C] float64: the identity, but exact on the data where a channel never leaves one state.

    A channel that is never on gets the slope that the rectifier has there, 0 or the leaky slope; one that is always
    beyond the upper limit of ReLU6 is constant. For ReLU, ReLU6, LeakyReLU and PReLU that is the function itself on
    the data; GELU, SiLU and Hardswish only come near their asymptotes.
    """
    channels = torch.ones(seen.channels, dtype=torch.float64)
    below = channels * 0
    if isinstance(module, nn.LeakyReLU):
        below = channels * module.negative_slope
    elif isinstance(module, nn.PReLU):
        below = channels * module.weight.detach().double()
    saturated = seen.saturated == seen.observations
    scale = torch.where(seen.on == 0, below, torch.where(saturated, 0.0, 1.0).double())
    return scale, torch.where(saturated, seen.phi_mean, 0.0)


@dataclass(frozen=True)
class Removal:
    """A rectifier is gone.

    Attributes:
        site: it.
        entropy_bits: of its state, the lowest there was.
        network: with its line in its place, not yet trained.
    """

    site: str
    entropy_bits: float
    network: Network


def remove_lowest(network: Network, batches: Iterable[Tensor], among: Sequence[str]) -> Removal | None:
    """Remove the rectifier of the lowest entropy; None where there is none.

    Args:
        batches: [B, ...] float32; what the entropies are counted and the line is fitted on.
        among: the editable rectifiers that may be removed.
    """
    if not among:
        return None
    dims = channel_dims(network)
    seen = collect(network.graph, among, batches, channel_dims=dims)
    site, entropy = ranking(network, seen)[0]
    edit = removal(site, network.layer(site), seen[site], dims[site], "affine")
    return Removal(site, entropy, replay(network, [edit]))


@dataclass(frozen=True)
class Easing:
    """How rounds train and judge, and when they end.

    Attributes:
        retrained: given a network and the number of its round, a trained one of the same structure, and the accuracy
            that it reaches on samples it was not trained on, in points of a hundred.
        tolerated_drop: in points, from the accuracy of round 0.
    """

    retrained: Callable[[Network, int], tuple[Network, float]]
    tolerated_drop: float


@dataclass(frozen=True)
class Removed:
    """What one round removed.

    Attributes:
        site: the rectifier.
        entropy_bits: of its state when it went.
        accuracy: of the network after the training that followed, in points.
    """

    site: str
    entropy_bits: float
    accuracy: float


@dataclass(frozen=True)
class Round:
    """One round of `iterate`.

    Attributes:
        removed: by this round and all before it, in their order; () is round 0, the dense network.
        accuracy: of the network, in points.
        drop: points lost since round 0.
        tolerated: the drop is.
        network: after training.
    """

    removed: tuple[Removed, ...]
    accuracy: float
    drop: float
    tolerated: bool
    network: Network


def iterate(dense: Network, remove: Callable[[Network], Removal | None], easing: Easing) -> Iterator[Round]:
    """Remove and train, round after round, until the accuracy has dropped by more than is tolerated.

    Yields round 0, the dense network trained by the policy, and then every round when it is done. The last round may be
    one that is not tolerated; the result is the last that is. Also ends when nothing is left to remove.

    Args:
        remove: `remove_lowest`, or another.
    """
    network, first = easing.retrained(dense, 0)
    last = Round((), first, 0.0, True, network)
    yield last
    while last.tolerated and (gone := remove(last.network)) is not None:
        network, reached = easing.retrained(gone.network, len(last.removed) + 1)
        removed = (*last.removed, Removed(gone.site, gone.entropy_bits, reached))
        drop = first - reached
        last = Round(removed, reached, drop, drop <= easing.tolerated_drop + 1e-9, network)
        yield last


def egp_budgets(
    entropies: Sequence[float], magnitudes: Sequence[float], remaining: Sequence[int], share: float
) -> list[int]:
    """How many weights EGP prunes in front of each site in one round.

    With I = entropy x mean |w|, a layer's part of the budget is softmax(sum(I) / I): nearly all of it goes to the layer
    of least I. A layer that has not that many weights gives all it has, and the rest is divided again. Of several such
    layers the one that lacks most goes first.

    Args:
        magnitudes: mean |w| of the weights that are not zero yet, of the layer before each site.
        remaining: how many those are.
        share: of the remaining weights, without those of layers of entropy 0, to be pruned in this round (paper: 0.5).
    """
    budgets = [0] * len(entropies)
    importance = {i: h * w for i, (h, w) in enumerate(zip(entropies, magnitudes, strict=True)) if h > 0 and w > 0}
    left = share * sum(remaining[i] for i in importance)
    while importance:
        ratio = torch.tensor([sum(importance.values()) / value for value in importance.values()], dtype=torch.float64)
        parts = dict(zip(importance, (left * ratio.softmax(0)).tolist(), strict=True))
        fullest = max(parts, key=lambda i: parts[i] - remaining[i])
        if parts[fullest] <= remaining[fullest]:
            for i, part in parts.items():
                budgets[i] = math.floor(part)
            break
        budgets[fullest] = remaining[fullest]
        left -= remaining[fullest]
        del importance[fullest]
    return budgets
