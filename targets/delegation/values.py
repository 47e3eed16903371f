"""The values of an ExecuTorch program, or of a graph of Vulkan's, and the operators that are called on them.

A call lists all it reads and writes as indices of values, in an order that each operator has of its own: what no call
before it wrote is what it writes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from targets.delegation.placement import Placed, moves_data
from targets.graph import Shape

ITEM_BYTES = {"BYTE": 1, "CHAR": 1, "BOOL": 1, "SHORT": 2, "HALF": 2, "BFLOAT16": 2, "INT": 4, "FLOAT": 4}  # else 8
VIEWS = re.compile(
    r"(aten::|aten\.|executorch_prim::et_)(view|_reshape_alias|squeeze|unsqueeze|_to|clone|alias|detach)(_copy)?\b"
    r"|quantized_decomposed::"
)
MOVES = re.compile(r"(aten::|aten\.)(permute|transpose|t)(_copy)?\b")
ORDERS = re.compile(r"dim_order_ops[:.]+_(to|clone)_dim_order")


@dataclass(frozen=True)
class Tensor:
    """`order`: its axes as memory holds them, slowest first; `item`: bytes of an element."""

    shape: Shape
    constant: bool
    order: tuple[int, ...] = ()
    item: int = 4


class Values:
    """Args:
    tensors, numbers, lists: by index; a list holds indices of tensors, or plain numbers.
    inputs: of the graph.
    name: of a tensor, by index.
    """

    def __init__(
        self,
        tensors: Mapping[int, Tensor],
        numbers: Mapping[int, int],
        lists: Mapping[int, Sequence[int]],
        inputs: Iterable[int],
        name: Callable[[int], str] = str,
    ) -> None:
        self._tensors, self._numbers, self._lists, self._name = tensors, numbers, lists, name
        self._written = set(inputs)
        self._constant = {index for index, tensor in tensors.items() if tensor.constant}

    @classmethod
    def of_program(cls, values: Sequence[Mapping[str, Any]], inputs: Iterable[int]) -> Values:
        """The values of an ExecuTorch program."""
        tensors, numbers, lists = {}, {}, {}
        for index, each in enumerate(values):
            kind, value = each["val_type"], each["val"]
            if kind == "Tensor":
                external = value.get("extra_tensor_info", {}).get("location") == "EXTERNAL"
                constant = value["data_buffer_idx"] > 0 or external
                item = ITEM_BYTES.get(value["scalar_type"], 8)
                tensors[index] = Tensor(tuple(value["sizes"]), constant, tuple(value["dim_order"]), item)
            elif kind == "Int":
                numbers[index] = value["int_val"]
            elif "items" in value:
                lists[index] = value["items"]
        # A list of integers holds the indices of its values, as one of tensors does.
        lists = {index: [numbers.get(item, item) for item in items] for index, items in lists.items()}
        return cls(tensors, numbers, lists, inputs)

    @classmethod
    def of_vulkan(
        cls, values: Sequence[Mapping[str, Any]], inputs: Iterable[int], name: Callable[[int], str]
    ) -> Values:
        """The values of a graph of Vulkan's."""
        tensors, numbers, lists = {}, {}, {}
        for index, each in enumerate(values):
            kind, value = each["value_type"], each["value"]
            if kind == "VkTensor":
                tensors[index] = Tensor(tuple(value["dims"]), value["constant_id"] >= 0)
            elif kind == "Int":
                numbers[index] = value["int_val"]
            elif "items" in value:
                lists[index] = value["items"]
        return cls(tensors, numbers, lists, inputs, name)

    def name(self, index: int) -> str:
        return self._name(index)

    def bytes(self) -> dict[str, int]:
        return {self._name(index): math.prod(each.shape) * each.item for index, each in self._tensors.items()}

    def called(self, arguments: Sequence[int]) -> tuple[list[int], list[int]]:
        """The tensors that a call reads, constants among them, and those it writes."""
        tensors = dict.fromkeys(item for index in arguments for item in self._tensors_of(index))
        read = [index for index in tensors if index in self._written or index in self._constant]
        written = [index for index in tensors if index not in read]
        self._written.update(written)
        return read, written

    def _tensors_of(self, index: int) -> list[int]:
        return [index] if index in self._tensors else [i for i in self._lists.get(index, ()) if i in self._tensors]

    def activations(self, tensors: Sequence[int]) -> tuple[str, ...]:
        return tuple(self._name(index) for index in tensors if index not in self._constant)

    def operator(self, kind: str, arguments: Sequence[int]) -> Placed | None:
        """A kernel's call; None when it reads no activation: what it writes is a constant."""
        read, written = self.called(arguments)
        if not self.activations(read):
            self._constant.update(written)
            return None
        order = self._order(kind, arguments, read[0], written)
        moves = order is not None and moves_data(self._tensors[read[0]].shape, order)
        return Placed(
            kind=kind,
            partition=None,
            inputs=self.activations(read),
            outputs=self.activations(written),
            in_shapes=tuple(self._tensors[index].shape for index in read),
            out_shapes=tuple(self._tensors[index].shape for index in written),
            moves=moves,
            views=not moves and (order is not None or bool(VIEWS.match(kind))),
        )

    def _order(self, kind: str, arguments: Sequence[int], operand: int, written: Sequence[int]) -> list[int] | None:
        """The operand's axes in the order that the result has them; None for operators that keep or mix them."""
        tensor = self._tensors[operand]
        rank = len(tensor.shape)
        if ORDERS.match(kind):
            return [tensor.order.index(axis) for axis in self._tensors[written[0]].order]
        if not MOVES.match(kind):
            return None
        if "permute" in kind:
            axes = next(self._lists[index] for index in arguments if index in self._lists)
            return [axis % rank for axis in axes]
        swapped = [self._numbers[index] % rank for index in arguments if index in self._numbers] or [0, -1 % rank]
        order = list(range(rank))
        order[swapped[0]], order[swapped[1]] = order[swapped[1]], order[swapped[0]]
        return order
