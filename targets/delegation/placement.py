"""Who runs each operator of an artifact: a delegate, in one of its partitions, or the runtime's own kernels.

A reader of a format (`tflite.py`, `onnx.py`, `executorch.py`) gives a `Placement`; everything that is counted follows
from it here, in the same way for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
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
        between: the nearest known modules before and after it.
        moves: whether it only moves an activation to another order of its axes.
        views: whether its result is its operand in the same order, maybe of another shape, type or scale.
        asked: whether the network itself permutes there; False where a converter or a runtime may have put it in.
    """

    kind: str
    partition: int | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    in_shapes: tuple[Shape, ...] = ()
    out_shapes: tuple[Shape, ...] = ()
    module: str = ""
    between: tuple[str, str] = ("", "")
    moves: bool = False
    views: bool = False
    asked: bool = False

    @property
    def macs(self) -> int:
        """Multiply-accumulates on one sample; 0 in formats whose names `targets.graph.macs` does not know."""
        return macs(self.kind, self.in_shapes, self.out_shapes)

    @property
    def size(self) -> int:
        """Elements of its first result."""
        return math.prod(self.out_shapes[0]) if self.out_shapes else 0


@dataclass(frozen=True)
class Placement:
    """The operators of an artifact that an input has a say in, in the order they run.

    Attributes:
        delegate: its name: "XNNPACK".
        learned: how the placement is known, a clause: "LiteRT's interpreter handed them over".
        partitions: calls of the delegate.
        inputs, outputs: of the artifact.
        bytes: size of each activation that may stand at the border of a partition.
        opaque: partitions hide their operators; each is one entry of `operators`.
    """

    delegate: str
    learned: str
    partitions: int
    operators: tuple[Placed, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    bytes: Mapping[str, int]
    opaque: bool = False

    @property
    def fallbacks(self) -> tuple[Placed, ...]:
        return tuple(operator for operator in self.operators if operator.partition is None)

    def crossing(self) -> tuple[int, int]:
        """Bytes of activations that enter or leave partitions: (between operators, of the artifact's own border).

        A tensor that two partitions read enters twice. An output of the artifact that another partition reads, too,
        counts on both sides.
        """
        between = border = 0
        for index in range(self.partitions):
            mine = [operator for operator in self.operators if operator.partition == index]
            written = {name for operator in mine for name in operator.outputs}
            entering = {name for operator in mine for name in operator.inputs} - written
            others = {name for operator in self.operators if operator.partition != index for name in operator.inputs}
            leaving = written & others
            own = (entering & {*self.inputs}) | (written & {*self.outputs})
            between += sum(self.bytes[name] for name in (entering - {*self.inputs}) | leaving)
            border += sum(self.bytes[name] for name in own)
        return between, border

    def where(self, operator: Placed) -> Where:
        """ "border" when nothing but views lies between the operator and an input of the artifact, or an output."""
        at_input = any(map(self._from_input, operator.inputs))
        return "border" if at_input or any(map(self._to_output, operator.outputs)) else "inside"

    @cached_property
    def _writers(self) -> dict[str, Placed]:
        return {name: operator for operator in self.operators for name in operator.outputs}

    @cached_property
    def _readers(self) -> dict[str, list[Placed]]:
        readers: dict[str, list[Placed]] = {}
        for operator in self.operators:
            for name in operator.inputs:
                readers.setdefault(name, []).append(operator)
        return readers

    def _from_input(self, name: str) -> bool:
        writer = self._writers.get(name)
        return writer is None or (writer.views and all(map(self._from_input, writer.inputs)))

    def _to_output(self, name: str) -> bool:
        if name in self.outputs:
            return True
        readers = self._readers.get(name, [])
        return bool(readers) and all(reader.views and all(map(self._to_output, reader.outputs)) for reader in readers)


def of_activations(operators: Iterable[Placed]) -> tuple[Placed, ...]:
    """Without the operators that read no activation: what they make is a constant, and so is what is made of it."""
    made: set[str] = set()
    kept = []
    for operator in operators:
        if inputs := tuple(name for name in operator.inputs if name not in made):
            kept.append(replace(operator, inputs=inputs))
        else:
            made.update(operator.outputs)
    return tuple(kept)


def moves_data(shape: Shape, order: Sequence[int]) -> bool:
    """Whether axes of more than one element change their order; otherwise a transpose is a view."""
    kept = [axis for axis in order if shape[axis] != 1]
    return kept != sorted(kept)
