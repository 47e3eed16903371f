"""Training by a policy: epochs, rate and its schedule, weight decay, any loss; deterministic and resumable.

There is one loop, `descend`. Recovery is a policy of its own, gentle and label-free (see `recover`); the methods that
train for longer come with their authors' policies, which are values here. The samples of a step, and whatever is drawn
at random for it, are functions of (seed, step), so that a run that was killed and resumed from its checkpoint ends in
the same bits on the CPU.

The one augmentation here is that of CIFAR; otherwise samples are trained on as they are given.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from calibration.dataset import Samples
from pipeline.compress.watch import Watch
from pipeline.model.network import Network
from targets.errors import UsageError

CHECKPOINT_SECONDS = 20.0
CROP = 4  # pixels by which a small image is moved at most
PHOTOGRAPH, LEAST_AREA, LONGEST = 64, 1 / 3, 4 / 3  # pixels a side; of the part that is shown: area, ratio of the sides

Loss = Callable[[Tensor, Tensor | None, int], Tensor]
"""Scalar loss of one batch, from x [B, ...], labels [B] (None without labels) and the step, on the training device."""
Progress = Callable[[int, float], None]
"""Told (steps made, loss) after every step."""


@dataclass(frozen=True)
class Plateau:
    """The rate falls when the training accuracy no longer rises (torch's `ReduceLROnPlateau`).

    Attributes:
        patience: epochs without a better accuracy that are borne.
        decay: what the rate is multiplied by after them.
        least_rate: training ends when the rate falls below it.
    """

    patience: int
    decay: float = 0.1
    least_rate: float = 1e-6


@dataclass(frozen=True)
class Policy:
    """How to train, as papers print it.

    Attributes:
        epochs: passes over the samples; a fraction is a part of a pass, 0 leaves the network as it is.
        batch: samples a step.
        rate: learning rate, before its schedule.
        optimizer: `sgd` with momentum and coupled weight decay, or `adamw` with decoupled weight decay.
        milestones: epochs at whose start the rate is multiplied by `gamma`; () keeps it constant. None is a short
            warm-up and a cosine to zero.
        plateau: lowers the rate in the milestones' place.
        label_smoothing: share of a label that is spread over all classes, where labels are what is trained on.
        augment: flip and crop images (see `augmented`).
        frozen_norms: norms use, and keep, their running statistics; else they use those of the batch.
        clip: largest gradient norm; None does not clip.
        seed: of the order of the samples and of the augmentation.
    """

    epochs: float
    batch: int
    rate: float
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    milestones: tuple[float, ...] | None = ()
    gamma: float = 0.1
    plateau: Plateau | None = None
    label_smoothing: float = 0.0
    augment: bool = False
    frozen_norms: bool = False
    clip: float | None = None
    seed: int = 0

    def lasting(self, epochs: float) -> Policy:
        """The same over another number of epochs; the milestones move along."""
        moved = self.milestones and tuple(epoch * epochs / self.epochs for epoch in self.milestones)
        return replace(self, epochs=epochs, milestones=moved)

    def steps(self, samples: Samples) -> int:
        """Optimiser steps on `samples`; what is left of a pass after its last whole batch is not seen in it."""
        return round(self.epochs * self.steps_of_a_pass(samples))

    def steps_of_a_pass(self, samples: Samples) -> int:
        return len(samples) // min(self.batch, len(samples))

    def batch_of(self, samples: Samples, step: int) -> tuple[Tensor, Tensor | None]:
        """The samples of one step: a seeded permutation an epoch, cut into batches."""
        size, a_pass = min(self.batch, len(samples)), self.steps_of_a_pass(samples)
        order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(self.seed + step // a_pass))
        x, y = next(samples.select(order[step % a_pass * size :][:size].tolist()).batches(size))
        return augmented(x, step_generator(self.seed, step)) if self.augment else x, y

    def rate_at(self, step: int, samples: Samples) -> float:
        """Learning rate of a step, counted from 0, as far as it does not depend on what was reached."""
        if self.milestones is None:
            return self.rate * warm_cosine(step, self.steps(samples))
        epoch = step // self.steps_of_a_pass(samples)
        return self.rate * self.gamma ** sum(epoch >= milestone for milestone in self.milestones)


def warm_cosine(step: int, steps: int) -> float:
    """Share of the peak rate: a twentieth of the steps up, then half a cosine down to zero."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def step_generator(seed: int, step: int) -> torch.Generator:
    """Of everything that is drawn at random for the samples of one step."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def training_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass
class Answers:
    """Of the samples seen in this epoch, how many were answered right: what a plateau is told by."""

    seen: int = 0
    right: int = 0

    def count(self, right: Tensor) -> None:
        """right: [B] bool."""
        self.seen, self.right = self.seen + right.numel(), self.right + int(right.sum())


def descend(
    graph: nn.Module,
    samples: Samples,
    policy: Policy,
    loss: Loss,
    *,
    undecayed: Collection[nn.Parameter] = (),
    after: Callable[[int], None] = lambda step: None,
    answers: Answers | None = None,
    watch: Watch | None = None,
    checkpoint: Path | None = None,
    progress: Progress = lambda step, loss: None,
) -> None:
    """Train `graph` in place, with a fresh optimiser; it is left on the CPU, in eval mode.

    On the GPU where there is one, there in bfloat16 where it has that.

    Args:
        undecayed: parameters that weight decay leaves alone.
        after: called with the step, counted from 0, when the optimiser has made it.
        answers: what `loss` counts right answers in; a policy with a plateau needs it.
        watch: ends the training early, and what it saw best is what the training leaves.
        checkpoint: where the state is kept every 20 s; an existing one is resumed from.
        progress: called with (steps made, loss) after every step.

    Raises:
        UsageError: DATA_SHAPE, to augment what are no images.
    """
    _require_augmentable(samples, policy)
    device = training_device()
    mixed = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    graph.to(device).train(not policy.frozen_norms)
    weights = [p for p in graph.parameters() if p.requires_grad]
    state = _State(graph, _optimizer(policy, weights, undecayed), policy.plateau, answers or Answers(), watch)
    a_pass, steps, saved = policy.steps_of_a_pass(samples), policy.steps(samples), time.monotonic()
    first = state.resume(checkpoint)
    if watch is not None and first == 0:
        watch.look(graph)
    for step in range(first, steps):
        if state.ended:
            break
        x, y = policy.batch_of(samples, step)
        with torch.autocast(device, torch.bfloat16, enabled=mixed):
            value = loss(x.to(device), None if y is None else y.to(device), step)
        state.set_rate(policy.rate_at(step, samples))
        state.optimizer.zero_grad(set_to_none=True)
        value.backward()
        if policy.clip is not None:
            torch.nn.utils.clip_grad_norm_(weights, policy.clip)
        state.optimizer.step()
        if (step + 1) % a_pass == 0:
            state.end_epoch()
        after(step)
        progress(step + 1, value.item())
        if watch is not None and watch.due(step + 1, steps):
            watch.look(graph)
        if checkpoint is not None and time.monotonic() - saved > CHECKPOINT_SECONDS:
            state.save(checkpoint, step + 1)
            saved = time.monotonic()
    if watch is not None:
        graph.load_state_dict(watch.weights)
    graph.to("cpu").eval()


def train(
    network: Network,
    samples: Samples,
    policy: Policy,
    *,
    checkpoint: Path | None = None,
    progress: Progress = lambda step, loss: None,
) -> Network:
    """A copy of `network` trained on the labels, by cross-entropy; the layers and edits are the same.

    Args:
        network: its outputs are rows of class scores [N, C].
        checkpoint, progress: as for `descend`.

    Raises:
        UsageError: DATA_UNLABELLED, the samples have no labels; and what `descend` raises.
    """
    require_labels(samples, "training by a published policy")
    trained, answers = network.copy(), Answers()

    def loss(x: Tensor, y: Tensor | None, step: int) -> Tensor:
        answer = trained.graph(x)
        answers.count(answer.argmax(1) == y)
        return F.cross_entropy(answer.float(), y, label_smoothing=policy.label_smoothing)

    descend(trained.graph, samples, policy, loss, answers=answers, checkpoint=checkpoint, progress=progress)
    return trained


def augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images [N, C, H, W], each flipped left to right or not and cropped, as trainings on CIFAR and on ImageNet do.

    Small ones are moved by up to four pixels with zeros behind; zero is the mean colour where samples are normalised.
    Of photographs, from `PHOTOGRAPH` pixels a side, a part is shown in the size of the whole ("random resized crop",
    Szegedy et al., CVPR 2015): a third of the area or more, its sides in a ratio of 3:4 to 4:3 of the image's.
    """
    flip = torch.rand(len(x), generator=generator) < 0.5
    if min(x.shape[2:]) >= PHOTOGRAPH:
        return _part_of_each(x, flip, generator)
    count, _, height, width = x.shape
    top, left = torch.randint(2 * CROP + 1, (2, count), generator=generator)
    padded = F.pad(torch.where(flip[:, None, None, None], x.flip(3), x), (CROP,) * 4)
    image = torch.arange(count)[:, None, None]
    rows = (top[:, None] + torch.arange(height))[:, :, None]
    columns = (left[:, None] + torch.arange(width))[:, None, :]
    return padded[image, :, rows, columns].permute(0, 3, 1, 2)  # channels last, as samples come


def _part_of_each(x: Tensor, flip: Tensor, generator: torch.Generator) -> Tensor:
    area, tall, across, down = torch.rand(4, len(x), generator=generator)
    area = LEAST_AREA + (1 - LEAST_AREA) * area
    ratio = LONGEST ** (2 * tall - 1)
    width, height = ((area * each).sqrt().clamp(max=1) for each in (ratio, 1 / ratio))
    theta = torch.zeros(len(x), 2, 3)  # from a place in the result to one in the image, both in [-1, 1]
    theta[:, 0, 0], theta[:, 1, 1] = torch.where(flip, -width, width), height
    theta[:, 0, 2], theta[:, 1, 2] = (1 - width) * (2 * across - 1), (1 - height) * (2 * down - 1)
    places = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, places, padding_mode="border", align_corners=False)


def require_labels(samples: Samples, purpose: str) -> None:
    """Raise UsageError DATA_UNLABELLED unless every sample has a class number."""
    if not samples.has_labels:
        raise UsageError(
            f"{purpose} needs labels",
            where=samples.name,
            why="the samples have none",
            fix="give labelled samples, or a method that works without labels",
            code="DATA_UNLABELLED",
        )


def _require_augmentable(samples: Samples, policy: Policy) -> None:
    if policy.augment and len(samples.shape) != 3:
        raise UsageError(
            "the samples cannot be augmented",
            where=samples.name,
            why=f"flips and crops are for images [C, H, W], a sample is {list(samples.shape)}",
            fix="switch the augmentation off",
            code="DATA_SHAPE",
        )


def _optimizer(
    policy: Policy, weights: list[nn.Parameter], undecayed: Collection[nn.Parameter]
) -> torch.optim.Optimizer:
    spared = {id(p) for p in undecayed}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in weights if id(p) not in spared]},
        {"params": [p for p in weights if id(p) in spared], "weight_decay": 0.0},
    ]
    if policy.optimizer == "sgd":
        return torch.optim.SGD(groups, policy.rate, momentum=policy.momentum, weight_decay=policy.weight_decay)
    return torch.optim.AdamW(groups, policy.rate, weight_decay=policy.weight_decay)


class _State:
    """Everything that a descent goes on from, and its checkpoint."""

    def __init__(
        self,
        graph: nn.Module,
        optimizer: torch.optim.Optimizer,
        plateau: Plateau | None,
        answers: Answers,
        watch: Watch | None,
    ) -> None:
        self.graph, self.optimizer, self.answers, self.watch, self.least_rate = graph, optimizer, answers, watch, 0.0
        self.rule: ReduceLROnPlateau | None = None
        if plateau is not None:
            self.least_rate = plateau.least_rate
            self.rule = ReduceLROnPlateau(optimizer, "max", factor=plateau.decay, patience=plateau.patience)

    @property
    def ended(self) -> bool:
        """Whether the plateau rule has made the rate nothing, or the watch has seen nothing better for long."""
        if self.watch is not None and self.watch.ended:
            return True
        return self.optimizer.param_groups[0]["lr"] < self.least_rate

    def set_rate(self, rate: float) -> None:
        """The schedule's rate; a plateau rule keeps its own."""
        if self.rule is None:
            for group in self.optimizer.param_groups:
                group["lr"] = rate

    def end_epoch(self) -> None:
        if self.rule is not None:
            self.rule.step(self.answers.right / self.answers.seen)
        self.answers.seen = self.answers.right = 0

    def save(self, checkpoint: Path, step: int) -> None:
        state = {
            "step": step,
            "weights": self.graph.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "plateau": self.rule and self.rule.state_dict(),
            "answers": vars(self.answers),
            "watch": self.watch and self.watch.state,
        }
        partial = checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, checkpoint)

    def resume(self, checkpoint: Path | None) -> int:
        """The first step to make."""
        if checkpoint is None or not checkpoint.exists():
            return 0
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")
        self.graph.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.rule is not None:
            self.rule.load_state_dict(state["plateau"])
        self.answers.seen, self.answers.right = state["answers"]["seen"], state["answers"]["right"]
        if self.watch is not None:
            self.watch.resume(state["watch"])
        return state["step"]
