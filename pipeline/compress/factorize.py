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
nothing; crops that are filled with zeros after the normalisation, the mean colour.

Deterministic on the CPU: batches and augmentation are functions of (seed, step), so that a run that was killed and
resumed from its checkpoint ends in the same bits.

needs: training, with labels. knobs: the number of factors, the weight decay.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from calibration.dataset import Samples
from pipeline.compress.algebra import LinearOperator, composed, operator_of
from pipeline.compress.recover import CHECKPOINT_SECONDS, Recovery, batch_of, resume, save, steps_of_a_pass
from pipeline.compress.truncate import full_rank, truncatable
from pipeline.model.network import Network
from targets.errors import UsageError

CROP = 4  # pixels by which an image is moved at most

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


@dataclass(frozen=True)
class Training:
    """Settings of supervised training.

    Attributes:
        epochs: passes over the samples at most; 0 leaves the network as it is.
        batch: samples a step; what is left over at the end of an epoch waits for another.
        rate, momentum: of SGD.
        weight_decay: on every parameter; without it the factors put no pressure on rank.
        label_smoothing: share of a label that is spread over all classes.
        augment: flip images left to right and move them by up to four pixels.
        patience, decay: after more than `patience` epochs without a better training accuracy the rate is multiplied
            by `decay`.
        least_rate: training ends when the rate falls below it.
        seed: of the order of samples and of the augmentation.
    """

    epochs: int = 300
    batch: int = 128
    rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-3
    label_smoothing: float = 0.1
    augment: bool = False
    patience: int = 15
    decay: float = 0.1
    least_rate: float = 1e-6
    seed: int = 42


# Of the authors' ResNet-20 and VGG-16 on CIFAR-10: best 92.33 % and 94.13 % with N = 2, 91.62 % and 93.61 % with N = 3.
PRESETS: Mapping[str, Training] = {"lorita-cifar10": Training(augment=True)}


def train(
    network: Network,
    samples: Samples,
    settings: Training,
    *,
    checkpoint: Path | None = None,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> Network:
    """Train a copy of `network` on labelled samples, on the GPU and in bfloat16 where there is one that has it.

    Args:
        network: as it is or factorized; its first output dimension after the batch is the classes.
        checkpoint: where the state is kept every 20 s; an existing one is resumed from.
        progress: called with (step, loss) after every step.

    Returns:
        The trained network in eval mode, with the same layers and edits.

    Raises:
        UsageError: DATA_UNLABELLED without labels; DATA_SHAPE to augment what are no images.
    """
    _require_trainable(samples, settings)
    result = network.copy()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    mixed = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    graph = result.graph.to(device).train()
    descent = _Descent.of(graph, settings)
    optimizer = descent.optimizer
    first = resume(checkpoint, graph, descent)
    order, saved = Recovery(batch=settings.batch, seed=settings.seed), time.monotonic()
    a_pass = steps_of_a_pass(samples, order)
    for step in range(first, settings.epochs * a_pass):
        if optimizer.param_groups[0]["lr"] < settings.least_rate:
            break
        x, y = batch_of(samples, order, step)
        if settings.augment:
            x = augmented(x, torch.Generator().manual_seed(settings.seed * 1_000_003 + step))
        x, y = x.to(device), y.to(device)
        with torch.autocast(device, torch.bfloat16, enabled=mixed):
            answer = graph(x)
        loss = F.cross_entropy(answer.float(), y, label_smoothing=settings.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        descent.tally(answer.argmax(1) == y, last=(step + 1) % a_pass == 0)
        progress(step + 1, loss.item())
        if checkpoint is not None and time.monotonic() - saved > CHECKPOINT_SECONDS:
            save(checkpoint, graph, descent, step + 1)
            saved = time.monotonic()
    graph.to("cpu").eval()
    return result


def _require_trainable(samples: Samples, settings: Training) -> None:
    if not samples.has_labels:
        raise UsageError(
            "this training needs labels",
            where=samples.name,
            why="LoRITa trains a factorized network on class numbers, and the samples have none",
            fix="give labelled samples, or a method that recovers without labels",
            code="DATA_UNLABELLED",
        )
    if settings.augment and len(samples.shape) != 3:
        raise UsageError(
            "the samples cannot be augmented",
            where=samples.name,
            why=f"flips and crops are for images [C, H, W], a sample is {list(samples.shape)}",
            fix="switch the augmentation off",
            code="DATA_SHAPE",
        )


def augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images [N, C, H, W], each flipped left to right or not, and moved by up to four pixels with zeros behind."""
    count, _, height, width = x.shape
    flip = torch.rand(count, generator=generator) < 0.5
    top, left = torch.randint(2 * CROP + 1, (2, count), generator=generator)
    padded = F.pad(torch.where(flip[:, None, None, None], x.flip(3), x), (CROP,) * 4)
    image = torch.arange(count)[:, None, None]
    rows = (top[:, None] + torch.arange(height))[:, :, None]
    columns = (left[:, None] + torch.arange(width))[:, None, :]
    return padded[image, :, rows, columns].permute(0, 3, 1, 2).contiguous()


@dataclass
class _Descent:
    """The optimiser, its plateau rule, and the samples seen and right in this epoch, as a checkpoint keeps them."""

    optimizer: torch.optim.SGD
    plateau: ReduceLROnPlateau
    seen: int = 0
    correct: int = 0

    @staticmethod
    def of(graph: nn.Module, settings: Training) -> _Descent:
        optimizer = torch.optim.SGD(
            graph.parameters(), settings.rate, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
        return _Descent(
            optimizer, ReduceLROnPlateau(optimizer, "max", factor=settings.decay, patience=settings.patience)
        )

    def tally(self, right: Tensor, *, last: bool) -> None:
        """Count a batch's answers; at the `last` of an epoch its accuracy goes to the plateau rule."""
        self.seen, self.correct = self.seen + right.numel(), self.correct + int(right.sum())
        if last:
            self.plateau.step(self.correct / self.seen)
            self.seen = self.correct = 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "plateau": self.plateau.state_dict(),
            "seen": self.seen,
            "correct": self.correct,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.plateau.load_state_dict(state["plateau"])
        self.seen, self.correct = state["seen"], state["correct"]
