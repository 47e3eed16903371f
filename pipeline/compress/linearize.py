"""Linearising an activation: the rectifier is replaced by the affine map that fits it best on the data.

EASIER (Quétu et al., 2024) ranks rectifiers by the entropy of their on/off state and writes the identity in place of
the lowest. We keep the ranking and change the replacement: per channel

    phi(z) ~ scale z + shift,   scale = Cov(z, phi) / Var(z),   shift = E[phi] - scale E[z]

A channel that is always on gets (1, 0), one that is always off gets (0, 0): where the entropy is zero the step is exact
on the data, which the identity is not for channels that are always off. Being per channel, the map folds into the
layer before it at no cost.

needs: data. knob: how many sites.
"""

from __future__ import annotations

from torch import Tensor, nn

from pipeline.model.edits import Edit, applies
from pipeline.model.network import ChannelAffine, Network, probe_shapes

RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish, nn.LeakyReLU, nn.PReLU)


def sites(network: Network) -> list[str]:
    """Names of the rectifiers that can be edited, in execution order."""
    editable = network.editable()
    return [name for name, layer in network.layers().items() if isinstance(layer, RECTIFIERS) and name in editable]


def channel_dims(network: Network) -> dict[str, int]:
    """Site -> dimension of its channels: 1 for maps [N, C, H, W], last for tokens and for what a `Linear` made."""
    dims, ranks = {}, {name: len(shape) for name, (shape, _) in probe_shapes(network).items()}
    for site in sites(network):
        source = network.node(site).args[0]
        while source.op == "call_module" and not isinstance(network.layer(source.target), (nn.Conv2d, nn.Linear)):
            source = source.args[0]
        made_by_linear = source.op == "call_module" and isinstance(network.layer(source.target), nn.Linear)
        dims[site] = -1 if made_by_linear or ranks[site] != 4 else 1
    return dims


def linearize(site: str, scale: Tensor, shift: Tensor, channel_dim: int) -> Edit:
    """The edit that replaces rectifier `site` by `scale * z + shift`; scale and shift are [C]."""
    return Edit("linearize", site, {"channel_dim": channel_dim}, {"scale": scale.float(), "shift": shift.float()})


@applies("linearize")
def _apply(network: Network, edit: Edit) -> Network:
    graph = network.copy().graph
    graph.set_submodule(
        edit.site, ChannelAffine(edit.tensors["scale"], edit.tensors["shift"], edit.arguments["channel_dim"])
    )
    return network.edited(graph, edit)
