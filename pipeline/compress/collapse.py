"""LayerCollapse: an MLP's two linear layers become one as its activation melts into the identity (arXiv 2311.17943).

For y = W2 D phi_s(W1 x + b1) + b2, D the scale of a norm behind the activation (1 without one), with

    phi_s(z) = (1 - s) phi(z) + s z           the slope s: 0 is the activation as it was, 1 the identity

the slope is driven to 1 while the network trains, L = L_task + strength * sum (1 - s)^2, and pairs with |s - 1| below a
tolerance are merged, dropping

    original - collapsed = W2 D (phi_s(z) - z),   norm <= |1 - s| ||W2 D|| ||phi(z) - z||

(for ReLU phi(z) - z = -min(0, z)). A norm before the activation is folded as well, which the authors' code refuses. To
keep what collapsing drops as far as one linear layer can, fit the layer on data instead.

What we do otherwise than the paper:

* ReLU, LeakyReLU and PReLU become the paper's PReLU. Any other activation is blended with the identity as above, so
  that the network starts unchanged; the paper replaces GELU by a PReLU of slope 0.01, which changes it at once. Ask for
  that with `prelu=True`.
* Slopes are kept in [0, 1], and weight decay, which would pull them to 0, leaves them alone.
* `fraction` counts the MLPs that shrink, in execution order, not modules of any kind in registration order.
* A pair is collapsed only where that makes it smaller, or where the caller's costs say that it is cheaper.

Dropout between the layers is the identity in a `Network`.

needs: training. knob: the slopes, and which pairs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from calibration.dataset import Samples
from pipeline.compress.algebra import is_scaling, operator_of, scaling_of
from pipeline.compress.descent import Policy, descend, require_labels, training_device
from pipeline.compress.distance import distance
from pipeline.compress.linearize import RECTIFIERS, linearize
from pipeline.compress.merge import merge
from pipeline.model.edits import Edit, applies, replay
from pipeline.model.network import Network, probe_shapes


class Blend(nn.Module):
    """`(1 - slope) phi(z) + slope z`, with one trainable slope."""

    def __init__(self, phi: nn.Module, slope: float) -> None:
        super().__init__()
        self.phi, self.slope = phi, nn.Parameter(torch.tensor([slope]))

    def forward(self, z: Tensor) -> Tensor:
        return (1 - self.slope) * self.phi(z) + self.slope * z


@dataclass(frozen=True)
class Pair:
    """Two linear layers (or 1x1 convolutions) with one activation between them, and norms that fold.

    Attributes:
        layers: names of the whole chain in execution order; the first and the last are the two layers.
        site: the activation among them.
        inputs, hidden, outputs: widths.
        channel_dim: of the values between them: -1 behind a linear layer, 1 behind a convolution.
        parameters: of the two layers; norms are not counted.
    """

    layers: tuple[str, ...]
    site: str
    inputs: int
    hidden: int
    outputs: int
    channel_dim: int
    parameters: int

    @property
    def collapsed_parameters(self) -> int:
        return self.inputs * self.outputs + self.outputs

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the two layers, per token or position."""
        return self.hidden * (self.inputs + self.outputs)

    @property
    def collapsed_macs(self) -> int:
        return self.inputs * self.outputs

    @property
    def shrinks(self) -> bool:
        """Whether the collapsed layer has fewer parameters and fewer multiply-accumulates."""
        return self.collapsed_parameters < self.parameters and self.collapsed_macs < self.macs


def pairs(network: Network) -> list[Pair]:
    """The collapsible pairs in execution order; consecutive ones share a layer."""
    editable = network.editable()
    ranks = {name: len(shape) for name, (shape, _) in probe_shapes(network).items()}
    chains = (_chain(network, node, editable, ranks) for node in network.graph.graph.nodes)
    return [_pair(network, chain) for chain in chains if chain]


def _chain(network: Network, node: fx.Node, editable: set[str], ranks: Mapping[str, int]) -> tuple[str, ...]:
    """The names from layer `node` to the next one, with one activation between; () when there is no such chain."""
    if not (node.op == "call_module" and node.target in editable and _is_pointwise(network.layer(node.target))):
        return ()
    first, names, activations = network.layer(node.target), [node.target], 0
    while len(node.users) == 1:
        node = next(iter(node.users))
        if node.op != "call_module" or node.target not in editable:
            return ()
        names.append(node.target)
        module = network.layer(node.target)
        if _is_pointwise(module):
            return tuple(names) if activations == 1 and type(module) is type(first) else ()
        if isinstance(module, (*RECTIFIERS, Blend)):
            activations += 1
        elif not is_scaling(module) or (isinstance(first, nn.Linear) and _scales_tokens(module, ranks[node.target])):
            return ()
    return ()


def _is_pointwise(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return (
            module.kernel_size == (1, 1)
            and module.stride == (1, 1)
            and module.padding in ((0, 0), "valid")
            and (module.groups == 1)
        )
    return isinstance(module, nn.Linear)


def _scales_tokens(module: nn.Module, rank: int) -> bool:
    """A batch norm of a value [N, T, C] scales the second dimension, not the features."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and rank > 2


def _pair(network: Network, names: tuple[str, ...]) -> Pair:
    first, last = network.layer(names[0]), network.layer(names[-1])
    site = next(name for name in names if isinstance(network.layer(name), (*RECTIFIERS, Blend)))
    (hidden, inputs), outputs = first.weight.shape[:2], last.weight.shape[0]
    parameters = sum(p.numel() for layer in (first, last) for p in layer.parameters())
    return Pair(names, site, inputs, hidden, outputs, -1 if isinstance(first, nn.Linear) else 1, parameters)


def slope_of(module: nn.Module) -> Tensor:
    """How far an activation has melted: its slope below zero for the PReLU family, its blend for others; [1] or [C]."""
    parameter = _slope_parameter(module)
    if parameter is not None:
        return parameter.detach()
    return torch.tensor([module.negative_slope if isinstance(module, nn.LeakyReLU) else 0.0])


def slope_gap(network: Network, pair: Pair) -> float:
    """|s - 1|, of the channel where it is largest."""
    return (slope_of(network.layer(pair.site)) - 1).abs().max().item()


def _slope_parameter(module: nn.Module) -> nn.Parameter | None:
    if isinstance(module, nn.PReLU):
        return module.weight
    return module.slope if isinstance(module, Blend) else None


def soften(site: str, *, slope: float = 0.0, prelu: bool = False) -> Edit:
    """The edit that gives the activation `site` a trainable slope.

    Args:
        slope: share of the identity to begin with; with 0 the function does not change.
        prelu: replace the activation, whatever it is, by a PReLU of that slope (the paper's way).
    """
    return Edit("soften", site, {"slope": slope, "prelu": prelu})


@applies("soften")
def _soften(network: Network, edit: Edit) -> Network:
    graph, slope = network.copy().graph, edit.arguments["slope"]
    phi = graph.get_submodule(edit.site)
    if edit.arguments["prelu"]:
        soft: nn.Module = nn.PReLU(init=slope)
    elif isinstance(phi, (nn.ReLU, nn.LeakyReLU, nn.PReLU)):
        below = slope_of(phi)
        soft = nn.PReLU(len(below))
        soft.weight = nn.Parameter(below + slope * (1 - below))
    else:
        soft = Blend(phi, slope)
    graph.set_submodule(edit.site, soft.eval())
    return network.edited(graph, edit)


def collapse_edits(pair: Pair) -> tuple[Edit, Edit]:
    """The edits that drop the pair's activation and merge its layers into one, under the name of the first."""
    ones, zeros = torch.ones(pair.hidden), torch.zeros(pair.hidden)
    return linearize(pair.site, ones, zeros, pair.channel_dim), merge(pair.layers)


def collapse(
    network: Network, *, tolerance: float = 0.05, cheaper: Callable[[Pair], bool] = lambda pair: pair.shrinks
) -> Network:
    """Collapse every pair whose slope is within `tolerance` of 1 (the paper's 0.01 to 0.1), from the last to the first.

    A layer made by one collapse may be part of the next. Collapsing again changes nothing: without such a pair the
    network itself is returned.

    Args:
        cheaper: whether to collapse a pair; the default asks for fewer parameters and multiply-accumulates.
    """
    while ready := [pair for pair in pairs(network) if slope_gap(network, pair) < tolerance and cheaper(pair)]:
        network = replay(network, collapse_edits(ready[-1]))
    return network


@torch.no_grad()
def residual(network: Network, pair: Pair, x: Tensor) -> Tensor:
    """What collapsing the pair drops on its inputs x, original - collapsed = W2 D (phi(z) - z).

    Args:
        x: what the pair's first layer takes, [..., inputs] for linear layers, [N, inputs, H, W] for convolutions.

    Returns:
        [..., outputs] float64, channels last in either case.
    """
    return _dropped(network, pair, x) @ _behind(network, pair).T


@torch.no_grad()
def residual_bound(network: Network, pair: Pair, x: Tensor) -> Tensor:
    """||W2 D|| ||phi(z) - z|| >= ||residual||, for every token or position; x as for `residual`, [...] float64."""
    return torch.linalg.matrix_norm(_behind(network, pair), 2) * _dropped(network, pair, x).norm(dim=-1)


def _dropped(network: Network, pair: Pair, x: Tensor) -> Tensor:
    """phi(z) - z with channels last."""
    z = x.double()
    for name in pair.layers[: pair.layers.index(pair.site)]:
        z = copy.deepcopy(network.layer(name)).double().eval()(z)
    phi = copy.deepcopy(network.layer(pair.site)).double()
    return (phi(z) - z).movedim(pair.channel_dim, -1)


def _behind(network: Network, pair: Pair) -> Tensor:
    """W2 D, [outputs, hidden] float64."""
    weight = operator_of(network.layer(pair.layers[-1])).weight.flatten(1)
    for name in pair.layers[pair.layers.index(pair.site) + 1 : -1]:
        weight = weight * scaling_of(network.layer(name))[0]
    return weight


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
        fraction: of the pairs that shrink, the last to be melted.
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
    fraction: float = 0.5
    initial: float = 0.0
    prelu: bool = False
    classes: bool = True

    def stair(self, made: int, steps: int) -> float:
        """The stair that holds when `made` of the `steps` are made; the last one when all are."""
        return self.stairs[min(made * len(self.stairs) // steps, len(self.stairs) - 1)]


_VISION = Policy(epochs=400, batch=128, rate=0.005, milestones=(75, 150, 250, 350), gamma=0.3)
PRESETS: Mapping[str, Melting] = {
    "vision": Melting(_VISION, "penalty", strength=0.2, fraction=0.5, initial=0.01, prelu=True),
    "vgg": Melting(_VISION, "penalty", strength=0.2, fraction=0.5, initial=0.0, prelu=True),
    "language": Melting(
        Policy(epochs=1, batch=32, rate=1e-4, optimizer="adamw"), "decoupled", strength=10.0, initial=0.01, prelu=True
    ),
    "early": Melting(_VISION, "staircase", prelu=True),
}
"""The authors' settings. Epochs and batch are ours; `language` melts one pair at a time, the last first (`sites`)."""


def candidates(network: Network, fraction: float) -> list[str]:
    """The activations of the last `fraction` of the pairs that shrink, at least one if there is one."""
    shrinking = [pair.site for pair in pairs(network) if pair.shrinks]
    return shrinking[len(shrinking) - math.ceil(fraction * len(shrinking)) :]


def melt(
    network: Network,
    teacher: Network | None,
    samples: Samples,
    settings: Melting,
    *,
    sites: Sequence[str] | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> Network:
    """A copy whose activations `sites` have been driven towards the identity while it trained; see `collapse` then.

    Args:
        teacher: the original, whose outputs the network follows meanwhile; None: the labels, as in the paper.
        sites: activations of `pairs`; by default `candidates`. Where there are none the network itself is returned.
        checkpoint: where the state is kept every 20 s; an existing one is resumed from.
        progress: called with (steps made, loss) after every step.

    Raises:
        UsageError: DATA_UNLABELLED, there is neither a teacher nor labels.
    """
    if teacher is None:
        require_labels(samples, "melting without the original network")
    chosen = candidates(network, settings.fraction) if sites is None else sites
    if not chosen:
        return network
    begin = settings.stairs[0] if settings.drive == "staircase" else settings.initial
    melted = replay(network, [soften(site, slope=begin, prelu=settings.prelu) for site in chosen])
    slopes = [_slope_parameter(melted.layer(site)) for site in chosen]
    for slope in slopes:
        slope.requires_grad_(settings.drive != "staircase")
    original = None if teacher is None else teacher.copy().graph.to(training_device()).eval()

    def loss(x: Tensor, y: Tensor | None) -> Tensor:
        answer = melted.graph(x)
        if original is None:
            task = F.cross_entropy(answer, y)
        else:
            with torch.no_grad():
                target = original(x)
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
