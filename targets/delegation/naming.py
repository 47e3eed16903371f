"""Whose operators they are: the user's modules at the operators of an artifact.

An artifact keeps no modules, or few, and its operators are the network's own, fused, split up, and in part others. What
stays is their order and the size of what they compute. Operators are paired with those of the exported network by kind
and size, and those with weights by multiply-accumulates; what is left between two pairs belongs to what the network has
between these.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import takewhile

from targets.delegation.placement import Placed, Placement
from targets.graph import macs
from targets.operators import WEIGHTED, align

# What exporters and runtimes fold into the operator before; nothing is named after it by its place alone.
FOLDED = {"relu", "relu6", "hardtanh", "clamp", "batchnorm", "dropout", "contiguous", "to", "detach", "alias"}
# One operator's names where they do not begin alike.
SAME = [
    {"fullyconnected", "gemm", "fusedgemm", "matmul", "linear", "addmm", "mm", "bmm", "batchmatmul"},
    {"mean", "reducemean", "adaptiveavgpool2d", "globalavgpooling2d", "globalaveragepool", "averagepool2d"},
    {"avgpool2d", "averagepool2d", "averagepool"},
    {"reshape", "view", "flatten", "squeeze", "unsqueeze"},
    {"transpose", "permute", "t", "movedim", "reorderinput", "reorderoutput", "todimorder"},
    {"concatenation", "concat", "cat", "stack", "pack"},
    {"gather", "gathernd", "index", "indexselect", "embedding"},
    {"slice", "stridedslice", "narrow", "select"},
    {"split", "splitv", "evensplit", "chunk", "unbind", "unpack"},
    {"logistic", "sigmoid"},
    {"relu0to1", "relun1to1", "clip", "clamp", "hardtanh"},
    {"reversev2", "flip"},
    {"resizebilinear", "resize", "upsamplebilinear2d", "upsamplenearest2d", "resizenearestneighbor"},
    {"instancenormalization", "groupnormalization", "nativegroupnorm", "groupnorm"},
    {"layernormalization", "nativelayernorm", "layernorm"},
    {"reducesum", "sum"},
    {"reducemax", "amax"},
    {"where", "selectv2"},
    {"convtranspose2d", "transposeconv"},
]
# Kinds whose multiply-accumulates follow from shapes as those of an operator that `targets.graph.macs` knows.
PRODUCTS = {
    "XNNConv2d": "CONV_2D",
    "XNNDepthwiseConv2d": "DEPTHWISE_CONV_2D",
    "XNNFullyConnected": "FULLY_CONNECTED",
    "XNNBatchMatrixMultiply": "BATCH_MATMUL",
    **dict.fromkeys(("et_vk.conv_with_clamp.default", "aten.convolution.default", "aten::convolution"), "Conv"),
    **dict.fromkeys(("aten.linear.default", "aten.mm.default", "aten.bmm.default", "aten::mm", "aten::bmm"), "MatMul"),
}


@dataclass(frozen=True)
class Site:
    """An operator of the network as it was exported.

    Attributes:
        module: path in the user's model, "" for the network itself.
        kind: PyTorch's name: "aten.atan.default".
        size: elements of its result on one sample.
        macs: multiply-accumulates on one sample; 0 for what does not accumulate products.
    """

    module: str
    kind: str
    size: int
    macs: int


def name_modules(placement: Placement, sites: Sequence[Site]) -> Placement:
    """The placement with the user's modules, and with what moves activations because the network itself does.

    Args:
        sites: in the order of execution. Without any, only what a file tells itself is known.

    What cannot be paired is the module's of the sites around it that give as much, else of what holds both neighbours.
    """
    weighted = [(operator, _products(operator)) for operator in placement.operators]
    pairs = dict(align(weighted, sites, lambda mine, site: _likeness(*mine, site)))
    operators = list(placement.operators)
    for index, operator in enumerate(operators):
        module = operator.module or (sites[pairs[index]].module if index in pairs else "")
        operators[index] = replace(operator, module=module, asked=operator.moves and index in pairs)
    by_size = {}
    for index, operator in enumerate(operators):
        inside = [site.module for site in _unpaired(index, pairs, sites) if site.size == operator.size]
        if inside and index not in pairs and not operator.module:
            by_size[index] = common(inside)
    operators = [replace(each, module=by_size.get(index, each.module)) for index, each in enumerate(operators)]
    around = list(zip(_last_known(operators), reversed(_last_known(operators[::-1]))))
    return replace(
        placement,
        operators=tuple(
            replace(each, module=each.module or (common(sides) if index not in pairs else ""), between=sides)
            for index, (each, sides) in enumerate(zip(operators, around))
        ),
    )


def _last_known(operators: Sequence[Placed]) -> list[str]:
    """The nearest known module before each."""
    known = [""]
    for operator in operators:
        known.append(operator.module or known[-1])
    return known[:-1]


def _likeness(operator: Placed, products: int, site: Site) -> int:
    """How strongly an operator of so many multiply-accumulates may be a site's; 0: it is not."""
    if products or site.macs:
        return WEIGHTED if products == site.macs else 0
    return int(operator.size == site.size and alike(operator.kind, site.kind))


def _products(operator: Placed) -> int:
    return macs(PRODUCTS.get(operator.kind, operator.kind), operator.in_shapes, operator.out_shapes)


def _unpaired(index: int, pairs: Mapping[int, int], sites: Sequence[Site]) -> list[Site]:
    """The sites between the pairs on either side of an operator, without those that are folded into others."""
    first = max((its for mine, its in pairs.items() if mine < index), default=-1) + 1
    last = min((its for mine, its in pairs.items() if mine > index), default=len(sites))
    return [site for site in sites[first:last] if plain(site.kind) not in FOLDED]


def common(paths: Sequence[str]) -> str:
    """The innermost module that holds all of them, or is all of them."""
    parts = zip(*(path.split(".") for path in paths))
    return ".".join(step[0] for step in takewhile(lambda step: len(set(step)) == 1, parts))


@cache
def alike(one: str, other: str) -> bool:
    """Whether two kinds, of whatever format, are one operator's."""
    one, other = plain(one), plain(other)
    begins = min(len(one), len(other)) > 2 and (one.startswith(other) or other.startswith(one))
    return one == other or begins or any(one in row and other in row for row in SAME)


@cache
def plain(kind: str) -> str:
    """ "XNNStaticTranspose", "aten::view_copy", "aten.mean.dim" and "REVERSE_V2" as "transpose", "view", "mean", ..."""
    parts = re.split(r"::|\.", kind)
    name = parts[1] if len(parts) > 1 else parts[0]
    name = re.sub(r"^XNN(Static)?|^et_|_copy$", "", name)
    return re.sub(r"[^a-z0-9]", "", name.lower())
