"""Training by a published policy: epochs, milestones, weight decay, any loss; deterministic and resumable.

Recovery (see `recover`) has one policy of its own, gentle and label-free. The methods that train for longer come with
their authors' policies, which are values here. Batches are a function of (seed, step) as in recovery, so that a run
that was killed and resumed from its checkpoint ends in the same bits on the CPU.

The one augmentation here is that of CIFAR; otherwise samples are trained on as they are given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from calibration.dataset import Samples
from pipeline.compress.factorize import augmented
from pipeline.compress.recover import (
    CHECKPOINT_SECONDS,
    Recovery,
    batch_of,
    resume,
    save,
    schedule,
    steps_of_a_pass,
)
from targets.errors import UsageError

Loss = Callable[[Tensor, Tensor | None], Tensor]
"""Scalar loss of one batch, from x [B, ...] and labels [B] (None without labels), on the training device."""


@dataclass(frozen=True)
class Policy:
    """How to train, as papers print it.

    Attributes:
        epochs: passes over the samples; a fraction is a part of a pass.
        batch: samples a step.
        rate: learning rate, before its schedule.
        optimizer: `sgd` with momentum and coupled weight decay, or `adamw` with decoupled weight decay.
        milestones: epochs at whose start the rate is multiplied by `gamma`; () keeps it constant. None is recovery's
            schedule, a short warm-up and a cosine to zero.
        augment: flip images left to right and move them by up to four pixels.
        frozen_norms: norms use, and keep, their running statistics; else they use those of the batch.
        clip: largest gradient norm; None does not clip.
        seed: of the order of the samples.
    """

    epochs: float
    batch: int
    rate: float
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    milestones: tuple[int, ...] | None = ()
    gamma: float = 0.1
    augment: bool = False
    frozen_norms: bool = False
    clip: float | None = None
    seed: int = 0

    def steps(self, samples: Samples) -> int:
        """Optimiser steps on `samples`; what is left of a pass after its last whole batch is not seen in it."""
        return round(self.epochs * steps_of_a_pass(samples, self.order))

    def rate_at(self, step: int, samples: Samples) -> float:
        """Learning rate of a step, counted from 0."""
        if self.milestones is None:
            return self.rate * schedule(step, self.steps(samples))
        epoch = step // steps_of_a_pass(samples, self.order)
        return self.rate * self.gamma ** sum(epoch >= milestone for milestone in self.milestones)

    @property
    def order(self) -> Recovery:
        """What decides which samples a step sees."""
        return Recovery(batch=self.batch, seed=self.seed)


def training_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def descend(
    graph: nn.Module,
    samples: Samples,
    policy: Policy,
    loss: Loss,
    *,
    undecayed: Collection[nn.Parameter] = (),
    after: Callable[[int], None] = lambda step: None,
    checkpoint: Path | None = None,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Train `graph` in place, with a fresh optimiser; it is left on the CPU, in eval mode.

    Args:
        undecayed: parameters that weight decay leaves alone.
        after: called with the step, counted from 0, when the optimiser has made it.
        checkpoint: where the state is kept every 20 s; an existing one is resumed from.
        progress: called with (steps made, loss) after every step.
    """
    device = training_device()
    graph.to(device).train(not policy.frozen_norms)
    weights = [p for p in graph.parameters() if p.requires_grad]
    spared = {id(p) for p in undecayed}
    optimizer = _optimizer(policy, [p for p in weights if id(p) not in spared], [p for p in weights if id(p) in spared])
    first, saved = resume(checkpoint, graph, optimizer), time.monotonic()
    for step in range(first, policy.steps(samples)):
        x, y = batch_of(samples, policy.order, step)
        if policy.augment:
            x = augmented(x, torch.Generator().manual_seed(policy.seed * 1_000_003 + step))
        value = loss(x.to(device), None if y is None else y.to(device))
        for group in optimizer.param_groups:
            group["lr"] = policy.rate_at(step, samples)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        if policy.clip is not None:
            torch.nn.utils.clip_grad_norm_(weights, policy.clip)
        optimizer.step()
        after(step)
        progress(step + 1, value.item())
        if checkpoint is not None and time.monotonic() - saved > CHECKPOINT_SECONDS:
            save(checkpoint, graph, optimizer, step + 1)
            saved = time.monotonic()
    graph.to("cpu").eval()


def require_labels(samples: Samples, purpose: str) -> None:
    """Raise UsageError DATA_UNLABELLED unless every sample has a class number."""
    if not samples.has_labels:
        raise UsageError(
            f"{purpose} needs labels",
            where=samples.name,
            why="the samples have none",
            fix="give labelled samples, or train on the original network's outputs (recovery)",
            code="DATA_UNLABELLED",
        )


def _optimizer(policy: Policy, decayed: list[nn.Parameter], undecayed: list[nn.Parameter]) -> torch.optim.Optimizer:
    groups = [{"params": decayed}, {"params": undecayed, "weight_decay": 0.0}]
    if policy.optimizer == "sgd":
        return torch.optim.SGD(groups, policy.rate, momentum=policy.momentum, weight_decay=policy.weight_decay)
    return torch.optim.AdamW(groups, policy.rate, weight_decay=policy.weight_decay)
