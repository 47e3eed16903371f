"""The operators of a program side by side, each on inputs of its own: what a converter makes of one, whatever is near.

A converter speaks of a network as a whole. Two questions are about single operators: which of them it refused, and what
it made of each. Both are answered by a program that holds one call of every kind of operator and joins none of them:
converting it costs about what the network costs, since weights and shapes are the network's own. If the converter
refuses it, so it does a half of it, and the halves of that.
"""

from __future__ import annotations

import importlib
import operator
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from pipeline.export.conversion import Request
from pipeline.export.formats import FORMATS

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram
    from torch.fx import Node

LARGE = 16  # sizes beyond it count as the same in `kinds`: no converter treats 96 channels unlike 192

Lower = Callable[["ExportedProgram"], Any]


@dataclass(frozen=True)
class Kind:
    """Calls of one operator that differ in nothing a converter decides by.

    Attributes:
        operator: `aten.roll.default`.
        nodes: of the program, in its order; the first stands for all.
    """

    operator: str
    nodes: tuple[Node, ...]

    @property
    def results(self) -> int:
        """How many outputs it has in `side_by_side`."""
        return len(_read(self.nodes[0])) or 1


def kinds(program: ExportedProgram) -> list[Kind]:
    """The operators that compute tensors, by name, constants among their arguments, ranks and types.

    Lengths and channel counts above `LARGE` are not told apart. Arithmetic on sizes and checks are left out.
    """
    constants = _constants(program)
    found: dict[tuple[Any, ...], list[Node]] = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target is not operator.getitem and _computes(node):
            form = (str(node.target), tuple(_read(node)), *_form((node.args, node.kwargs), constants))
            found.setdefault(form, []).append(node)
    return [Kind(str(nodes[0].target), tuple(nodes)) for nodes in found.values()]


def side_by_side(of: Sequence[Kind], program: ExportedProgram) -> ExportedProgram:
    """A program of one call of each kind; `Kind.results` outputs each, in their order.

    Weights are the network's own, every other tensor is an input. What an operator writes over is a copy. Inputs and
    outputs are float32, cast where an operator has integers or booleans, which the border of a format may not know.

    Raises:
        ValueError: a call cannot stand by itself: a size in it depends on data, or it calls a graph.
    """
    import torch
    from torch import fx, nn

    constants = _constants(program)
    root, graph = nn.Module(), fx.Graph()
    examples: list[Tensor] = []
    results: list[Node] = []
    for kind in of:
        call = kind.nodes[0]

        @cache  # x * x is one input twice
        def argument(node: Node, writes: bool = _writes(call)) -> Node:
            value = constants.get(node.name, node.meta.get("val"))
            if not isinstance(value, torch.Tensor) or not all(isinstance(size, int) for size in value.shape):
                raise ValueError(f"{node.name} is not a tensor of a fixed shape")
            name = f"tensor_{len(graph.nodes)}"
            if node.name in constants:
                root.register_buffer(name, value.detach())
                source = graph.get_attr(name)
            else:
                at_border = torch.float32 if _castable(value) else value.dtype
                examples.append(torch.zeros(tuple(value.shape), dtype=at_border))
                source = graph.placeholder(name)
                if at_border != value.dtype:
                    source = graph.call_function(torch.ops.aten.to.dtype, (source, value.dtype))
            return graph.call_function(torch.ops.aten.clone.default, (source,)) if writes else source

        new = graph.call_function(call.target, fx.map_arg(call.args, argument), dict(fx.map_arg(call.kwargs, argument)))
        read = _read(call)
        outputs = [graph.call_function(operator.getitem, (new, index)) for index in read] if read else [new]
        values = [call.meta["val"][index] for index in read] if read else [call.meta["val"]]
        for output, value in zip(outputs, values):
            cast = isinstance(value, torch.Tensor) and _castable(value)
            results.append(graph.call_function(torch.ops.aten.to.dtype, (output, torch.float32)) if cast else output)
    graph.output(tuple(results))
    with torch.no_grad():
        return torch.export.export(fx.GraphModule(root, graph).eval(), tuple(examples))


def attempts(
    of: Sequence[Kind], program: ExportedProgram, lower: Lower, *, deadline: float, suspect: str = ""
) -> Iterator[tuple[list[Kind], Any]]:
    """Groups of kinds with what `lower` made of them side by side, single kinds with the exception that it raised.

    A group that is refused is halved, the first half first: one culprit among n kinds costs some 2 log2 n conversions
    of ever smaller programs. Ends when all are done, or with the first attempt after `deadline` (`time.monotonic`).
    Kinds that cannot stand by themselves are passed over. Calls of `suspect`, which the converter named when it refused
    the whole, come last and do not hold up the others.
    """
    able = [kind for kind in of if _stands_alone(kind, program)]
    suspects = [kind for kind in able if kind.operator == suspect]
    groups = [group for group in (suspects, [kind for kind in able if kind not in suspects]) if group]
    while groups and time.monotonic() < deadline:
        group = groups.pop()
        try:
            yield group, lower(side_by_side(group, program))
        except Exception as error:  # whatever a converter raises is a refusal
            half = len(group) // 2
            if half:
                groups += [group[half:], group[:half]]
            else:
                yield group, error


def refused(
    of: Sequence[Kind], program: ExportedProgram, lower: Lower, *, deadline: float
) -> Iterator[tuple[Kind, Exception]]:
    """Of `attempts`, those that failed."""
    for group, outcome in attempts(of, program, lower, deadline=deadline):
        if isinstance(outcome, Exception):
            yield group[0], outcome


def first_refused(program: ExportedProgram, lower: Lower, *, deadline: float) -> Node | None:
    """The call that `lower` refuses behind what comes before it: the last of the shortest beginning that it refuses.

    Takes some log2 n conversions. None when the whole is not refused, or when `deadline` passed first.
    """
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    taken, not_taken = 0, len(calls)
    while not_taken - taken > 1:
        if time.monotonic() >= deadline:
            return None
        middle = (taken + not_taken) // 2
        try:
            lower(_beginning(program, calls[middle - 1]))
            taken = middle
        except Exception:  # whatever a converter raises is a refusal
            not_taken = middle
    return calls[not_taken - 1] if calls else None


def _beginning(program: ExportedProgram, last: Node) -> ExportedProgram:
    """The program up to the node of that name; its outputs are the tensors that nothing in it reads."""
    import torch
    from torch import fx

    module = program.module(check_guards=False)
    nodes = list(module.graph.nodes)
    kept = nodes[: next(index for index, node in enumerate(nodes) if node.name == last.name) + 1]
    inside = set(kept)
    ends = [
        node
        for node in kept
        if node.op == "call_function"
        and isinstance(node.meta.get("val"), torch.Tensor)
        and not any(user in inside for user in node.users)
    ]
    graph = fx.Graph()
    copies: dict[Node, Node] = {}
    for node in kept:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in ends))
    examples = [node.meta["val"] for node in kept if node.op == "placeholder"]
    inputs = tuple(torch.zeros(tuple(value.shape), dtype=value.dtype) for value in examples)
    return torch.export.export(fx.GraphModule(module, graph).eval(), inputs)


def lowering(format: str) -> Lower:
    """The converter of a format in `formats.FORMATS`, inputs and outputs in the network's own layout.

    Raises:
        ImportError: its packages are not installed.
    """
    convert = importlib.import_module(FORMATS[format].module).convert
    return lambda program: convert(program, Request(format, channels_last=False), lambda phase: None)


def _stands_alone(kind: Kind, program: ExportedProgram) -> bool:
    try:
        side_by_side([kind], program)
    except Exception:  # torch.export has many ways to say no; none of them is the converter's
        return False
    return True


def _form(value: Any, constants: dict[str, Tensor]) -> tuple[Any, ...]:
    """What a converter may decide by, of the arguments of a call."""
    from torch import Tensor
    from torch.fx import Node

    if isinstance(value, Node):
        tensor = value.meta.get("val")
        if not isinstance(tensor, Tensor):
            return ("computed",)
        sizes = tuple(isinstance(size, int) and size == 1 for size in tensor.shape)
        return "tensor", str(tensor.dtype), sizes, value.name in constants
    if isinstance(value, (tuple, list)):
        return tuple(_form(item, constants) for item in value)
    if isinstance(value, dict):
        return tuple((key, _form(item, constants)) for key, item in sorted(value.items()))
    if isinstance(value, int) and not isinstance(value, bool) and LARGE < value < 2**31:
        return ("large",)
    return (repr(value),)


def _constants(program: ExportedProgram) -> dict[str, Tensor]:
    """Weights, buffers and constant tensors by the name of their placeholder."""
    signature = program.graph_signature
    named = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    values = {**program.constants, **program.state_dict}
    return {node: values[name] for node, name in named.items()}


def _read(node: Node) -> list[int]:
    """Of an operator with several results, those that the network reads; none for an operator with one."""
    if not isinstance(node.meta.get("val"), (tuple, list)):
        return []
    return sorted({user.args[1] for user in node.users if user.target is operator.getitem and user.users})


def _castable(value: Tensor) -> bool:
    """Whether a tensor is made of other real numbers than float32."""
    import torch

    return value.dtype != torch.float32 and not value.dtype.is_complex


def _computes(node: Node) -> bool:
    """Whether a node is an operator with a tensor among the results that are read."""
    from torch import Tensor

    value = node.meta.get("val")
    return isinstance(value, Tensor) or any(isinstance(value[index], Tensor) for index in _read(node))


def _writes(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable
