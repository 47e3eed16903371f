"""The same network without the fifth axis of tensors that are taken apart along it at once.

LiteRT's GPU accelerator takes no tensor of more than four axes. Vision transformers compute query, key and value by one
linear layer, reshape its channels to (3, heads, channels of a head), permute the three to the front and take them
apart: for that fifth axis most of such a network runs on the CPU. A slice of the channels for each says the same.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

MOST_AXES = 4


@dataclass(frozen=True)
class Cut:
    """Channels that are cut into parts on an axis of their own.

    Attributes:
        source: [*leading, parts * channels].
        leading, channels: sizes, or nodes that tell them; a part is [*leading, *channels] before its axes are permuted.
        order: of a part's axes.
        parts: the nodes that pick one, each with its index.
    """

    source: Node
    leading: tuple[int | Node, ...]
    channels: tuple[int, ...]
    order: tuple[int, ...]
    parts: tuple[tuple[Node, int], ...]


def without_fifth_axes(module: GraphModule) -> GraphModule:
    """`module`, of ATen operators with their values' shapes, rewritten in place; its results are the same bits."""
    import torch

    aten = torch.ops.aten
    for cut in filter(None, map(_cut, list(module.graph.nodes))):
        width = math.prod(cut.channels)
        for old, index in cut.parts:
            with module.graph.inserting_before(old):
                steps: list[tuple[Any, ...]] = [
                    (aten.slice.Tensor, -1, index * width, (index + 1) * width),
                    (aten.reshape.default, [*cut.leading, *cut.channels]),
                    (aten.permute.default, list(cut.order)),
                ]
                part = cut.source
                for target, *arguments in steps:
                    part = module.graph.call_function(target, (part, *arguments))
                    part.meta = {key: value for key, value in old.meta.items() if key != "val"}
            old.replace_all_uses_with(part)
            module.graph.erase_node(old)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _cut(reshape: Node) -> Cut | None:
    """The cut that begins with `reshape`."""
    import torch

    aten = torch.ops.aten
    if reshape.target not in (aten.reshape.default, aten.view.default):
        return None
    source = reshape.args[0]
    before, after = (tuple(each.meta["val"].shape) for each in (source, reshape))
    axis = len(before) - 1  # of the parts
    if len(after) != MOST_AXES + 1 or len(after) < len(before) + 1 or after[:axis] != before[:axis]:
        return None
    whole, order = reshape, list(range(len(after)))
    if len(reshape.users) == 1 and (user := next(iter(reshape.users))).target is aten.permute.default:
        whole, order = user, [each % len(after) for each in user.args[1]]
    parts = tuple(_parts(whole, order.index(axis)))
    if not parts:
        return None
    rest = tuple(each - (each > axis) for each in order if each != axis)
    return Cut(source, tuple(reshape.args[1][:axis]), after[axis + 1 :], rest, parts)


def _parts(whole: Node, axis: int) -> Iterator[tuple[Node, int]]:
    """What picks a part of `whole` along `axis`, with its index; nothing where anything else is done with `whole`."""
    import torch

    shape = whole.meta["val"].shape
    picked: list[tuple[Node, Any]] = []
    for user in whole.users:
        along = user.args[1] if len(user.args) > 1 else 0
        if user.target is torch.ops.aten.unbind.int and along % len(shape) == axis:
            picked += [(each, each.args[1]) for each in user.users if each.target is operator.getitem]
        elif user.target is torch.ops.aten.select.int and along % len(shape) == axis:
            picked.append((user, user.args[2]))
        else:
            return
    yield from ((node, index % shape[axis]) for node, index in picked)
