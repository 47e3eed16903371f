"""What came out of a conversion, followed from each output back to the inputs."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from targets.delegation.placement import Placed, Placement

if TYPE_CHECKING:
    from pipeline.export.conversion import Conversion

_ONNX_VIEWS = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast", "Transpose"}
_MIL_VIEWS = {"reshape", "squeeze", "expand_dims", "identity", "cast", "transpose"}


@dataclass(frozen=True)
class Branch:
    """What some outputs are computed by.

    Attributes:
        operators: kinds, in order. Reorders, reshapes and casts count only where there is nothing else: they come from
            the layout of an operator's neighbours, and between these they cancel out.
        left: kinds among them that the delegate left, in a format that has one.
    """

    operators: tuple[str, ...]
    left: tuple[str, ...]


@dataclass(frozen=True)
class Traced:
    """The operators of an artifact and who writes what.

    Attributes:
        outputs: names of its outputs in the program's order.
        outside: how many operators the delegate left, by kind; None for a format without one.
    """

    operators: tuple[Placed, ...]
    outputs: tuple[str, ...]
    outside: Mapping[str, int] | None

    def branches(self, results: Sequence[int]) -> list[Branch]:
        """One for each group of outputs, the first `results[0]` of them, the next `results[1]`, …."""
        writers = {name: index for index, operator in enumerate(self.operators) for name in operator.outputs}
        found, start = [], 0
        for count in results:
            reached: set[int] = set()
            names = list(self.outputs[start : start + count])
            start += count
            while names:
                index = writers.get(names.pop())
                if index is not None and index not in reached:
                    reached.add(index)
                    if not self._opaque(index):  # others of its operators are not this branch's
                        names += self.operators[index].inputs
            mine = [self.operators[index] for index in sorted(reached)]
            computing = [operator for operator in mine if not operator.moves and not operator.views]
            left = [one.kind for one in computing or mine if self.outside is not None and one.partition is None]
            found.append(Branch(tuple(operator.kind for operator in computing or mine), tuple(left)))
        return found

    def _opaque(self, index: int) -> bool:
        """Whether it stands for a whole partition."""
        mine = self.operators[index]
        others = sum(other.partition == mine.partition for other in self.operators)
        return mine.partition is not None and others == 1 and mine.kind.endswith("Backend")


def traced(conversion: Conversion, format: str) -> Traced:
    """The operators that a conversion to `format` consists of."""
    if isinstance(conversion.content, bytes):
        with tempfile.TemporaryDirectory(prefix="planish-dry-") as scratch:
            path = Path(scratch) / "model"
            path.write_bytes(conversion.content)
            return _READERS[format](path)
    return _coreml(conversion.content)


def _delegated(placement: Placement, outputs: tuple[str, ...]) -> Traced:
    return Traced(placement.operators, outputs, Counter(operator.kind for operator in placement.fallbacks))


def _tflite(path: Path) -> Traced:
    from ai_edge_litert import schema_py_generated as schema

    from targets.delegation.tflite import read_tflite

    placement = read_tflite(path)
    (signature,) = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0).signatureDefs
    by_name = {output.name.decode(): str(output.tensorIndex) for output in signature.outputs}
    ordered = sorted(by_name, key=lambda name: int(name.rpartition("_")[2]))
    return _delegated(placement, tuple(by_name[name] for name in ordered))


def _pte(path: Path) -> Traced:
    from targets.delegation.executorch import read_pte

    placement = read_pte(path)
    return _delegated(placement, placement.outputs)


def _onnx(path: Path) -> Traced:
    import onnx

    graph = onnx.load(path).graph
    operators = [
        Placed(node.op_type, None, tuple(node.input), tuple(node.output), views=node.op_type in _ONNX_VIEWS)
        for node in graph.node
        if node.op_type != "Constant"
    ]
    return Traced(tuple(operators), tuple(output.name for output in graph.output), None)


def _ort(path: Path) -> Traced:
    """Nothing is asked of an ORT file but that it was written: its graph is that of the ONNX file it was made of."""
    return Traced((), (), None)


def _coreml(content: Mapping[str, bytes]) -> Traced:
    from coremltools.proto.Model_pb2 import Model

    from pipeline.export.coreml import MODEL

    model = Model()
    model.ParseFromString(content[MODEL])
    (function,) = model.mlProgram.functions.values()
    (block,) = function.block_specializations.values()
    operators = [
        Placed(
            operation.type,
            None,
            tuple(binding.name for argument in operation.inputs.values() for binding in argument.arguments),
            tuple(output.name for output in operation.outputs),
            views=operation.type in _MIL_VIEWS,
        )
        for operation in block.operations
        if operation.type != "const"
    ]
    return Traced(tuple(operators), tuple(block.outputs), None)


_READERS = {"tflite": _tflite, "pte": _pte, "pte-vulkan": _pte, "pte-coreml": _pte, "onnx": _onnx, "ort": _ort}
