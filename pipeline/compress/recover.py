"""Recovery: the compressed network learns the original's outputs back on the user's samples.

Label-free by default: the student follows the original's softened class probabilities (temperature 4; Hinton et al.
2015: a network that is sure of its own training samples says little at 1) on mixtures of samples (mixup: a few
thousand samples give ever new inputs on which the original still knows the answer; "function matching", Beyer et al.,
CVPR 2022). Labels can add a cross-entropy term on the samples themselves. Norm statistics are frozen (re-estimated
after the edits), the gradient is clipped and the rate is small: the closed forms carry most of the load, and large
steps destroy what they saved. A tenth of the samples is held out where there are enough; the state whose answers were
nearest to the original's on them is what stays, and a recovery ends when none is nearer for long (see `watch`). They
also tell the rate (see `learning_rate`).

needs: training. knob: the number of steps.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibration.dataset import Samples
from pipeline.compress.descent import Loss, Policy, Progress, descend, step_generator, training_device
from pipeline.compress.distance import distance
from pipeline.compress.learning_rate import Found, find_rate, trial_steps
from pipeline.compress.watch import Watch
from pipeline.model.network import Network
from targets.cache import write_atomic

TEMPERATURE = 4.0
HELD_OUT, FEWEST_HELD_OUT, MOST_HELD_OUT = 0.1, 64, 256  # share and number of the samples that it is judged on


@dataclass(frozen=True)
class Recovery:
    """Settings of a recovery run.

    Attributes:
        steps: optimiser steps; 0 leaves the network as it is.
        batch: samples a step.
        rate: peak learning rate of Adam, reached after a twentieth of the steps and then following a cosine to zero; a
            smaller one where a recovery finds that the network comes nearer with it.
        label_weight: weight of the cross-entropy on labels beside the distillation loss, where there are labels.
        classes: the outputs are rows of class scores.
        mixup: blend samples; off for inputs of which a blend means nothing.
        augment: flip and crop images, for both networks alike (see `descent.augmented`).
        clip: largest gradient norm.
        seed: of the order of samples and the mixing.
    """

    steps: int = 400
    batch: int = 64
    rate: float = 1e-3
    label_weight: float = 0.0
    classes: bool = True
    mixup: bool = True
    augment: bool = False
    clip: float = 1.0
    seed: int = 0

    def policy(self, samples: Samples) -> Policy:
        """Adam without weight decay and with frozen norms, for as many passes as make the steps."""
        policy = Policy(
            epochs=1,
            batch=self.batch,
            rate=self.rate,
            optimizer="adamw",
            milestones=None,
            frozen_norms=True,
            clip=self.clip,
            augment=self.augment,
            seed=self.seed,
        )
        return policy.lasting(self.steps / policy.steps_of_a_pass(samples))


def recover(
    student: Network,
    teacher: Network,
    samples: Samples,
    settings: Recovery,
    *,
    checkpoint: Path | None = None,
    progress: Progress = lambda step, loss: None,
) -> Network:
    """Distil `teacher` into a copy of `student` on the user's samples.

    Args:
        checkpoint: where the state is kept every 20 s, and the rate beside it; an existing one is resumed from.
        progress: called with (steps made, loss) after every step, those of trials too.

    Returns:
        The trained network in eval mode; structure and edits are the student's.
    """
    if settings.steps == 0:
        return student
    held = None
    if len(samples) * HELD_OUT >= FEWEST_HELD_OUT:
        samples, held = samples.split(HELD_OUT, settings.seed)
        held = held.take(MOST_HELD_OUT)
    original = teacher.copy().graph.to(training_device()).eval()
    temperature = TEMPERATURE if settings.classes else 1.0

    def apart(target: Tensor, answer: Tensor) -> Tensor:
        return temperature**2 * distance(target / temperature, answer / temperature, settings.classes)

    def loss_of(graph: nn.Module) -> Loss:
        def loss(x: Tensor, y: Tensor | None, step: int) -> Tensor:
            shown = _mixed(x, step_generator(settings.seed, step)) if settings.mixup else x
            with torch.no_grad():
                target = original(shown).float()
            answer = graph(shown).float()
            value = apart(target, answer)
            if y is not None and settings.classes and settings.label_weight > 0:
                own = F.cross_entropy(graph(x).float() if settings.mixup else answer, y)
                value = (1 - settings.label_weight) * value + settings.label_weight * own
            return value

        return loss

    wanted = None if held is None else _answers(original, held)

    def judge_of(graph: nn.Module) -> Callable[[], float]:
        return lambda: apart(wanted, _answers(graph, held)).item()

    def attempt(rate: float, told: Progress) -> float:
        tried, trial = student.copy(), replace(settings, steps=tried_for, rate=rate)
        descend(tried.graph, samples, trial.policy(samples), loss_of(tried.graph), progress=told)
        return judge_of(tried.graph.to(training_device()))()

    network, tried_for = student.copy(), trial_steps(settings.steps)
    watch = None if held is None else Watch(judge_of(network.graph.to(training_device())))
    found, kept = Found(settings.rate, 0), checkpoint and checkpoint.with_suffix(".rate.json")
    if kept and kept.exists():
        found = Found(**json.loads(kept.read_text(encoding="utf-8")))
    elif watch is not None and tried_for:
        found = find_rate(settings.rate, attempt, watch.judge(), progress)
        if kept:
            write_atomic(kept, json.dumps(asdict(found)))
    policy = replace(settings, steps=settings.steps - found.steps, rate=found.rate).policy(samples)

    def told(step: int, loss: float) -> None:
        progress(found.steps + step, loss)

    descend(network.graph, samples, policy, loss_of(network.graph), watch=watch, checkpoint=checkpoint, progress=told)
    return network


def _answers(graph: nn.Module, samples: Samples) -> Tensor:
    """[N, ...] float32, on the training device."""
    with torch.no_grad():
        return torch.cat([graph(x.to(training_device())).float() for x, _ in samples.batches()])


def _mixed(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each sample blended with another of the batch, in a share drawn uniformly (mixup with Beta(1, 1))."""
    share = torch.rand((len(x),) + (1,) * (x.ndim - 1), generator=generator).to(x.device)
    partner = torch.randperm(len(x), generator=generator).to(x.device)
    return share * x + (1 - share) * x[partner]
