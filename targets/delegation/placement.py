"""Who runs each operator of an artifact: a delegate, in one of its partitions, or the runtime's own kernels.

A reader of a format (`tflite.py`, `onnx.py`, `executorch.py`) gives a `Placement`; everything that is counted follows
from it here, in the same way for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from targets.graph import Shape, macs

Where = Literal["border", "inside"]


@dataclass(frozen=True)
class Placed:
    """One operator.

    Attributes:
        kind: as the format calls it: "ATAN2", "Conv", "aten::atan".
        partition: which call of a delegate runs it; None is the runtime itself.
        inputs, outputs: names of the activations it reads and writes; constants are left out.
        in_shapes, out_shapes: of all operands, constants too; empty where the file does not tell.
        module: the user's, "" where unknown or the network itself.
        moves: whether it moves an activation to another order of its axes, and nothing else.
        views: whether its result is its operand's data, maybe of another shape, type or scale, in the same order.
        asked: whether the network itself has this operator; False for what a converter or runtime put in or might have.
        reason: why no delegate took it, where the delegate says.
    """

    kind: str
    partition: int | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    in_shapes: tuple[Shape, ...] = ()
    out_shapes: tuple[Shape, ...] = ()
    module: str = ""
    moves: bool = False
    views: bool = False
    asked: bool = False
    reason: str = ""

    @property
    def macs(self) -> int:
        """Multiply-accumulates on one sample."""
        return macs(self.kind, self.in_shapes, self.out_shapes)


@dataclass(frozen=True)
class Placement:
    """All operators of an artifact in the order they run.

    Attributes:
        delegate: its name: "XNNPACK".
        learned: how the placement is known, a clause: "LiteRT's interpreter handed them over".
        partitions: calls of the delegate.
        inputs, outputs: of the artifact.
        bytes: size of each activation that stands between operators; where a delegate hides them, those at its border.
    """

    delegate: str
    learned: str
    partitions: int
    operators: tuple[Placed, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    bytes: Mapping[str, int]

    @property
    def fallbacks(self) -> tuple[Placed, ...]:
        return tuple(operator for operator in self.operators if operator.partition is None)

    def crossing(self) -> tuple[int, int]:
        """Bytes of activations that enter or leave a partition: (between operators, of the artifact's own border).

        A tensor that two partitions read enters twice.
        """
        border = {*self.inputs, *self.outputs}
        inside = at_border = 0
        for index in range(self.partitions):
            mine = [operator for operator in self.operators if operator.partition == index]
            written = {name for operator in mine for name in operator.outputs}
            read = {name for operator in mine for name in operator.inputs}
            needed = {name for operator in self.operators if operator.partition != index for name in operator.inputs}
            for name in (read - written) | (written & (needed | {*self.outputs})):
                if name in border:
                    at_border += self.bytes[name]
                if name not in border or (name in written and name in needed):
                    inside += self.bytes[name]
        return inside, at_border

    def where(self, operator: Placed) -> Where:
        """Whether nothing but views lies between the operator and the artifact's inputs, or its outputs."""
        producers = {name: each for each in self.operators for name in each.outputs}
        readers: dict[str, list[Placed]] = {}
        for each in self.operators:
            for name in each.inputs:
                readers.setdefault(name, []).append(each)

        def from_input(name: str) -> bool:
            producer = producers.get(name)
            return producer is None or (producer.views and all(map(from_input, producer.inputs)))

        def to_output(name: str) -> bool:
            following = readers.get(name, [])
            return all(each.views and all(map(to_output, each.outputs)) for each in following)

        return "border" if any(map(from_input, operator.inputs)) or any(map(to_output, operator.outputs)) else "inside"

    def with_modules(self, modules: Mapping[int, str]) -> Placement:
        """The same with the user's modules at those operators, by index."""
        return replace(
            self,
            operators=tuple(
                replace(operator, module=modules.get(index, operator.module))
                for index, operator in enumerate(self.operators)
            ),
        )
