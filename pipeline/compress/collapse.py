"""LayerCollapse: the two linear layers of an MLP become one where its activation is the identity (arXiv 2311.17943).

For y = W2 D phi_s(W1 x + b1) + b2, D the scale of a norm behind the activation (1 without one), with

    phi_s(z) = (1 - s) phi(z) + s z           the slope s: 0 is the activation as it was, 1 the identity

the slope is driven to 1 while the network trains (see `melt`), and pairs with |s - 1| below a tolerance are merged,
which drops

    original - collapsed = W2 D (phi_s(z) - z),   norm <= |1 - s| ||W2 D|| ||phi(z) - z||

(for ReLU phi(z) - z = -min(0, z)). A norm before the activation is folded as well, which the authors' code refuses. To
keep what collapsing drops as far as one linear layer can, fit the layer on data instead.

What we do otherwise than the paper:

* ReLU, LeakyReLU and PReLU become the paper's PReLU. Any other activation is blended with the identity as above, so
  that the network starts unchanged; the paper replaces GELU by a PReLU of slope 0.01, which changes it at once. Ask for
  that with `prelu=True`.
* A pair is collapsed only where that makes it smaller, or where the caller's costs say that it is cheaper.

Dropout between the layers is the identity in a `Network`.

needs: weights, and training before it. knob: the tolerance, and which pairs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from pipeline.compress.algebra import is_scaling, operator_of, scaling_of
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
            and module.groups == 1
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
    parameter = slope_parameter(module)
    if parameter is not None:
        return parameter.detach()
    return torch.tensor([module.negative_slope if isinstance(module, nn.LeakyReLU) else 0.0])


def slope_gap(network: Network, pair: Pair) -> float:
    """|s - 1|, of the channel where it is largest."""
    return (slope_of(network.layer(pair.site)) - 1).abs().max().item()


def slope_parameter(module: nn.Module) -> nn.Parameter | None:
    """The trainable slope of a softened activation, [1] or [C]; None for others."""
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
    melted = slope_of(phi) + slope * (1 - slope_of(phi))
    if edit.arguments["prelu"]:
        soft: nn.Module = nn.PReLU(init=slope)
    elif isinstance(phi, (nn.ReLU, nn.LeakyReLU, nn.PReLU)):
        soft = nn.PReLU(len(melted))
        soft.weight = nn.Parameter(melted)
    else:
        soft = Blend(phi.phi if isinstance(phi, Blend) else phi, melted.item())
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
