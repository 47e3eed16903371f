"""Recovery: the compressed network learns the original's outputs back on the user's samples.

Label-free by default: the student follows the original's class probabilities on the user's samples. After a few passes
over them it follows them on mixtures of samples (mixup: a few thousand samples give ever new inputs on which the
original still knows the answer; "function matching", Beyer et al., CVPR 2022); while the samples are fresh they teach
more than their mixtures do. Labels, where there are any, add a cross-entropy term on the samples themselves. Norm
statistics are frozen (re-estimated after the edits), the gradient is clipped and the rate is small: the closed
forms carry most of the load, and large steps destroy what they saved.

Deterministic on the CPU: the batches are a function of (seed, step), so that a run that was killed and resumed from its
checkpoint ends in the same bits.

needs: training. knob: the number of steps.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from calibration.dataset import Samples
from pipeline.compress.distance import distance
from pipeline.model.network import Network

CHECKPOINT_SECONDS = 20.0
FRESH_PASSES = 4  # passes over the samples before they are blended


@dataclass(frozen=True)
class Recovery:
    """Settings of a recovery run.

    Attributes:
        steps: optimiser steps; 0 leaves the network as it is.
        batch: samples a step.
        rate: peak learning rate of Adam, reached after a twentieth of the steps and then following a cosine to zero.
        label_weight: weight of the cross-entropy on labels beside the distillation loss, where there are labels.
        classes: the outputs are rows of class scores.
        mixup: blend samples after the first passes; off for inputs of which a blend means nothing.
        clip: largest gradient norm.
        seed: of the order of samples and the mixing.
    """

    steps: int = 400
    batch: int = 64
    rate: float = 1e-3
    label_weight: float = 0.1
    classes: bool = True
    mixup: bool = True
    clip: float = 1.0
    seed: int = 0


def recover(
    student: Network,
    teacher: Network,
    samples: Samples,
    settings: Recovery,
    *,
    checkpoint: Path | None = None,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> Network:
    """Distil `teacher` into a copy of `student` on the user's samples.

    Args:
        checkpoint: where the state is kept every 20 s; an existing one is resumed from.
        progress: called with (step, loss) after every step.

    Returns:
        The trained network in eval mode; structure and edits are the student's.
    """
    if settings.steps == 0:
        return student
    network = student.copy()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    graph, original = network.graph.to(device).eval(), teacher.copy().graph.to(device).eval()
    weights = [p for p in graph.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=settings.rate, weight_decay=0.0)
    first = resume(checkpoint, graph, optimizer)
    saved = time.monotonic()
    for step in range(first, settings.steps):
        x, y = batch_of(samples, settings, step)
        x, y = x.to(device), None if y is None else y.to(device)
        blended = settings.mixup and step >= FRESH_PASSES * steps_of_a_pass(samples, settings)
        shown = _mixed(x, torch.Generator().manual_seed(settings.seed * 1_000_003 + step)) if blended else x
        with torch.no_grad():
            target = original(shown)
        answer = graph(shown)
        loss = distance(target, answer, settings.classes)
        if y is not None and settings.classes and settings.label_weight > 0:
            own = F.cross_entropy(graph(x) if blended else answer, y)
            loss = (1 - settings.label_weight) * loss + settings.label_weight * own
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * schedule(step, settings.steps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, settings.clip)
        optimizer.step()
        progress(step + 1, loss.item())
        if checkpoint is not None and time.monotonic() - saved > CHECKPOINT_SECONDS:
            save(checkpoint, graph, optimizer, step + 1)
            saved = time.monotonic()
    graph.to("cpu").eval()
    return network


def batch_of(samples: Samples, settings: Recovery, step: int) -> tuple[Tensor, Tensor | None]:
    """The samples of one step: a seeded permutation an epoch, cut into batches."""
    size, a_pass = min(settings.batch, len(samples)), steps_of_a_pass(samples, settings)
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(settings.seed + step // a_pass))
    chosen = order[step % a_pass * size :][:size].tolist()
    return next(samples.select(chosen).batches(size))


def steps_of_a_pass(samples: Samples, settings: Recovery) -> int:
    return len(samples) // min(settings.batch, len(samples))


def _mixed(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each sample blended with another of the batch, in a share drawn uniformly (mixup with Beta(1, 1))."""
    share = torch.rand((len(x),) + (1,) * (x.ndim - 1), generator=generator).to(x.device)
    partner = torch.randperm(len(x), generator=generator).to(x.device)
    return share * x + (1 - share) * x[partner]


def schedule(step: int, steps: int) -> float:
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def resume(checkpoint: Path | None, graph: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    if checkpoint is None or not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, weights_only=True, map_location="cpu")
    graph.load_state_dict(state["weights"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def save(checkpoint: Path, graph: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    partial = checkpoint.with_suffix(".partial")
    torch.save({"weights": graph.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, partial)
    os.replace(partial, checkpoint)
