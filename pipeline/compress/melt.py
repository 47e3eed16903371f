"""Melting activations: their slopes are driven to 1 while the network trains (LayerCollapse, arXiv 2311.17943).

The paper adds strength * sum (1 - s)^2 over the melting activations to the loss; for language models it pulls the
slopes after every optimiser step instead; an early version climbs a staircase of fixed slopes with a short training on
each. The staircase, from the original function and with the original network as the teacher, is our default: it always
arrives, and needs no labels.

What we do otherwise than the paper (and see `collapse`):

* Slopes are kept in [0, 1], and weight decay, which would pull them to 0, leaves them alone.
* Which activations melt is the caller's choice (see `collapsing`), not the last share of the modules, nor, as for
  language models, one after the other.
* The original may teach (see `distance`); without it the labels do, as in the paper.

needs: training. knob: the slopes, and which activations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from calibration.dataset import Samples
from pipeline.compress.collapse import slope_parameter, soften
from pipeline.compress.descent import Policy, Progress, descend, require_labels, training_device
from pipeline.compress.distance import distance
from pipeline.model.edits import replay
from pipeline.model.network import Network


@dataclass(frozen=True)
class Melting:
    """Settings of a melting run.

    Attributes:
        policy: how the network trains meanwhile.
        drive: what moves the slopes. `penalty`: a term `strength * sum (1 - s)^2` of the loss. `decoupled`: after every
            step s <- s - 2 rate strength (s - 1), besides what the task's gradient does. `staircase`: nothing trains
            them, each of `stairs` holds for an equal part of the steps.
        strength: of `penalty` and `decoupled`.
        stairs: the slopes of `staircase`.
        initial: the slopes at the beginning, of `penalty` and `decoupled`.
        prelu: begin by replacing every activation by a PReLU, as the paper does.
        classes: the outputs are rows of class scores.
    """

    policy: Policy = Policy(
        epochs=8, batch=64, rate=1e-3, optimizer="adamw", milestones=None, frozen_norms=True, clip=1.0
    )
    drive: Literal["penalty", "decoupled", "staircase"] = "staircase"
    strength: float = 0.2
    stairs: tuple[float, ...] = (0.1, 0.3, 0.7, 1.0)
    initial: float = 0.0
    prelu: bool = False
    classes: bool = True

    def stair(self, made: int, steps: int) -> float:
        """The stair that holds when `made` of the `steps` are made; the last one when all are."""
        return self.stairs[min(made * len(self.stairs) // steps, len(self.stairs) - 1)]


_VISION = Policy(epochs=400, batch=128, rate=0.005, milestones=(75, 150, 250, 350), gamma=0.3)
PRESETS: Mapping[str, Melting] = {
    "taught": Melting(),
    "vision": Melting(_VISION, "penalty", strength=0.2, initial=0.01, prelu=True),
    "vgg": Melting(_VISION, "penalty", strength=0.2, initial=0.0, prelu=True),
    "language": Melting(
        Policy(epochs=1, batch=32, rate=1e-4, optimizer="adamw"), "decoupled", strength=10.0, initial=0.01, prelu=True
    ),
    "early": Melting(_VISION, "staircase", prelu=True),
}
"""`taught` is ours, by the original network. The rest are the authors' settings, by labels; their epochs and batch are
ours."""


def melt(
    network: Network,
    teacher: Network | None,
    samples: Samples,
    settings: Melting,
    sites: Sequence[str],
    *,
    checkpoint: Path | None = None,
    progress: Progress = lambda step, loss: None,
) -> Network:
    """A copy whose activations `sites` have been driven towards the identity while it trained; see `collapse` then.

    Args:
        teacher: the original, whose outputs the network follows meanwhile; None: the labels, as in the paper.
        sites: activations of `pairs`. Where there are none the network itself is returned.
        checkpoint: where the state is kept every 20 s; an existing one is resumed from.
        progress: called with (steps made, loss) after every step.

    Raises:
        UsageError: DATA_UNLABELLED, there is neither a teacher nor labels.
    """
    if teacher is None:
        require_labels(samples, "melting without the original network")
    if not sites:
        return network
    begin = settings.stairs[0] if settings.drive == "staircase" else settings.initial
    melted = replay(network, [soften(site, slope=begin, prelu=settings.prelu) for site in sites])
    slopes = [slope_parameter(melted.layer(site)) for site in sites]
    for slope in slopes:
        slope.requires_grad_(settings.drive != "staircase")
    original = None if teacher is None else teacher.copy().graph.to(training_device()).eval()

    def loss(x: Tensor, y: Tensor | None, step: int) -> Tensor:
        answer = melted.graph(x).float()
        if original is None:
            task = F.cross_entropy(answer, y)
        else:
            with torch.no_grad():
                target = original(x).float()
            task = distance(target, answer, settings.classes)
        return task + settings.strength * penalty(slopes) if settings.drive == "penalty" else task

    steps = settings.policy.steps(samples)

    def drive(step: int) -> None:
        for slope in slopes:
            if settings.drive == "decoupled":
                pull(slope, settings.policy.rate_at(step, samples), settings.strength)
            elif settings.drive == "staircase":
                slope.data.clamp_(min=settings.stair(step + 1, steps))
            slope.data.clamp_(0, 1)

    descend(
        melted.graph,
        samples,
        settings.policy,
        loss,
        undecayed=slopes,
        after=drive,
        checkpoint=checkpoint,
        progress=progress,
    )
    for slope in slopes:
        slope.requires_grad_()
    return melted


def penalty(slopes: Sequence[Tensor]) -> Tensor:
    """sum (1 - s)^2 over the sites, the mean over its channels where a site has several slopes."""
    return torch.stack([(1 - slope).square().mean() for slope in slopes]).sum()


def pull(slope: Tensor, rate: float, strength: float) -> None:
    """One step of the decoupled rule, in place: the distance to 1 shrinks by 1 - 2 rate strength."""
    slope.data.sub_(2 * rate * strength * (slope.data - 1))
