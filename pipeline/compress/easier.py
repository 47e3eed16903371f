"""EASIER: remove the activations whose on/off state is decided, one after the other (Quétu, Liao & Tartaglione, 2024).

Every rectifier is scored by the entropy, in bits, of the state of its neurons on the data (see `calibration.statistics`
for the definition and its options), and the lowest one is removed:

    while quality(dense) - quality <= tolerated drop:
        rank the remaining rectifiers, remove the first, train again by the full policy

What we do otherwise than the paper:

* A removed rectifier becomes a per-channel line, which folds into the layer before it. By default it is the best fit on
  the data (see `linearize`). `replacement="identity"` is the paper's, made exact where it is not: zero entropy also
  means "never on", and there the identity would let the negative values through. Such a channel is masked.
* Entropies are counted over all samples in eval mode, after training instead of during its last epoch.
* ReLU6 may be given its saturated state as a third one (`states=3`); the paper only looks at the sign.
* A rectifier that is called at several places is split first; the authors edited their networks by hand.
* The authors' code has no tolerated drop and removes everything whose entropy is exactly zero together with the lowest
  (`together=True`, `tolerated_drop=math.inf`); it does not train after the last removal, which we do.

The lines are trained on with the network. Removing an activation saves nothing by itself: the merge behind it does.

needs: data, training. knob: the tolerated drop.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from calibration.dataset import Samples
from calibration.statistics import Pool, SiteStatistics, Statistics, Zero, collect, entropy_bits
from pipeline.compress.descent import Policy
from pipeline.compress.linearize import channel_dims, linearize, sites
from pipeline.compress.split import with_own_rectifiers
from pipeline.model import edits as edit_log
from pipeline.model.edits import Edit, replay
from pipeline.model.network import Network
from targets.errors import UsageError

Ranking = Sequence[tuple[str, float]]
"""(site, entropy) of the rectifiers that may be removed, the lowest first."""
Replacement = Literal["affine", "identity"]
BATCH = 64  # samples in one forward pass of the statistics

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


def ranking(
    network: Network, statistics: Statistics, *, zero: Zero = "on", states: Literal[2, 3] = 2
) -> list[tuple[str, float]]:
    """The network's editable rectifiers with their entropies in bits, the lowest first, ties in execution order.

    Args:
        statistics: of at least those rectifiers, `pool` as they were collected.
        zero: z == 0 counts as on (the authors' code), or is left out (their text).
        states: 3 tells the saturated part of ReLU6 from the rest of on.
    """
    scores = [(site, statistics[site].entropy(zero, states)) for site in sites(network)]
    return sorted(scores, key=lambda score: score[1])


def by_entropy(
    samples: Samples, *, zero: Zero = "on", states: Literal[2, 3] = 2, pool: Pool = "space"
) -> Callable[[Network], Ranking]:
    """The `ranking` on `samples`, measured on whatever network it is asked about; `pool` as in `collect`."""

    def rank(network: Network) -> Ranking:
        dims = channel_dims(network)
        seen = collect(network.graph, sites(network), samples.batches(BATCH), channel_dims=dims, pool=pool)
        return ranking(network, seen, zero=zero, states=states)

    return rank


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


def remover(samples: Samples, replacement: Replacement = "affine") -> Callable[[Network, Sequence[str]], Network]:
    """Removes the named rectifiers from a network, by what they do on `samples` in that network."""

    def remove(network: Network, chosen: Sequence[str]) -> Network:
        dims = channel_dims(network)
        seen = collect(network.graph, chosen, samples.batches(BATCH), channel_dims=dims)
        return replay(
            network, [removal(site, network.layer(site), seen[site], dims[site], replacement) for site in chosen]
        )

    return remove


@dataclass(frozen=True)
class Round:
    """One round of `iterate`.

    Attributes:
        number: 0 is the network as it came.
        removed: the rectifiers that this round removed.
        ranking: what it chose from.
        quality: of the network after training.
        tolerated: the drop from round 0 is within what was tolerated.
        network: after training.
    """

    number: int
    removed: tuple[str, ...]
    ranking: tuple[tuple[str, float], ...]
    quality: float
    tolerated: bool
    network: Network


def iterate(
    network: Network,
    rank: Callable[[Network], Ranking],
    remove: Callable[[Network, Sequence[str]], Network],
    train: Callable[[Network], Network],
    quality: Callable[[Network], float],
    tolerated_drop: float,
    *,
    together: bool = False,
    checkpoint: Path | None = None,
) -> Iterator[Round]:
    """Remove and train, round after round, until the quality has dropped by more than is tolerated.

    Yields round 0, the network as it came (its shared rectifiers split), and then every round when it is done. The last
    round may be one that is not tolerated; the result is the last that is. Also ends when nothing is left to remove.

    Args:
        rank, remove: `by_entropy` and `remover`, or others.
        train: returns the trained network, as `descent.train` does by a policy; must keep the structure.
        quality: higher is better, in the unit of `tolerated_drop`.
        together: a round also removes every other rectifier whose entropy is exactly 0, as the authors' code does.
        checkpoint: a folder that keeps every round (edits and weights); those already there are read instead of run.

    Raises:
        UsageError: ROUNDS_FOREIGN, the folder is of another network.
    """
    dense = with_own_rectifiers(network)
    first = None if checkpoint is None else _stored_quality(checkpoint, dense)
    if first is None:
        first = quality(dense)
        if checkpoint is not None:
            _store_quality(checkpoint, dense, first)

    def tolerated(reached: float) -> bool:
        return first - reached <= tolerated_drop

    last = Round(0, (), (), first, tolerated(first), dense)
    yield last
    while last.tolerated:
        number = last.number + 1
        folder = None if checkpoint is None else checkpoint / f"round-{number:03}"
        if folder is not None and folder.exists():
            last = _load(folder, dense, number, tolerated)
        else:
            ranked = tuple(rank(last.network))
            if not ranked:
                return
            idle = [site for site, entropy in ranked[1:] if together and entropy == 0]
            removed = (ranked[0][0], *idle)
            edited = train(remove(last.network, removed))
            reached = quality(edited)
            last = Round(number, removed, ranked, reached, tolerated(reached), edited)
            if folder is not None:
                _store(folder, dense, last)
        yield last


def one_shot(
    network: Network,
    rank: Callable[[Network], Ranking],
    remove: Callable[[Network, Sequence[str]], Network],
    train: Callable[[Network], Network],
    count: int,
) -> Network:
    """Rank once, remove the `count` lowest, train once (the paper's ablation: cheaper, and worse)."""
    network = with_own_rectifiers(network)
    return train(remove(network, [site for site, _ in rank(network)[:count]]))


def _stored_quality(checkpoint: Path, dense: Network) -> float | None:
    path = checkpoint / "dense.json"
    if not path.exists():
        return None
    stored = json.loads(path.read_text())
    if stored["fingerprint"] != dense.fingerprint():
        raise UsageError(
            "the stored rounds are of another network",
            where=str(checkpoint),
            why="the network they began from has other weights or another structure",
            fix="give another folder, or delete this one",
            code="ROUNDS_FOREIGN",
        )
    return stored["quality"]


def _store_quality(checkpoint: Path, dense: Network, quality: float) -> None:
    checkpoint.mkdir(parents=True, exist_ok=True)
    partial = checkpoint / "dense.partial"
    partial.write_text(json.dumps({"fingerprint": dense.fingerprint(), "quality": quality}) + "\n")
    os.replace(partial, checkpoint / "dense.json")


def _store(folder: Path, dense: Network, done: Round) -> None:
    """A folder appears under its name only when it is whole."""
    partial = folder.with_suffix(".partial")
    partial.mkdir(exist_ok=True)
    edit_log.save(done.network.edits[len(dense.edits) :], partial)
    done.network.save_weights(partial / "weights.safetensors")
    row = {"removed": done.removed, "quality": done.quality, "ranking": done.ranking}
    (partial / "round.json").write_text(json.dumps(row, indent=1) + "\n")
    os.replace(partial, folder)


def _load(folder: Path, dense: Network, number: int, tolerated: Callable[[float], bool]) -> Round:
    row = json.loads((folder / "round.json").read_text())
    network = replay(dense, edit_log.load(folder)).with_weights(folder / "weights.safetensors")
    ranked = tuple((site, entropy) for site, entropy in row["ranking"])
    return Round(number, tuple(row["removed"]), ranked, row["quality"], tolerated(row["quality"]), network)


def egp_entropy(seen: SiteStatistics) -> float:
    """EGP's score of a site (Liao et al., ICCV workshops 2023): the mean over its undecided neurons alone, bits.

    Zero counts as off there. 0 when every neuron is decided.
    """
    on, off = seen.on, seen.off + seen.zero
    undecided = (on > 0) & (off > 0)
    return float(entropy_bits(torch.stack([on, off]))[undecided].mean()) if undecided.any() else 0.0


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
