"""What an ExecuTorch delegate took of a network, and what it left, in the user's modules.

Read from the lowered program itself, as executorch.devtools' delegation info is. Planning memory turns the operators of
that very program into kernels, so what they were is noted before, and what they became after.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

from pipeline.export.failure import place

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node


def facts(lowered: ExportedProgram) -> dict[str, Any]:
    """Plain data about a lowered program, in which delegated parts are calls.

    Returns:
        partitions: number of delegate calls.
        delegates: one each, in the order of calls: `backend`, `operators` inside as they were before the delegate
            rewrote them, `input_bytes` and `output_bytes` that cross its border, `content_bytes` in the file.
        outside: operators left to ExecuTorch's own kernels, clones and changes of memory order included, in order:
            as an operator inside, with `position` (delegate calls before it), `input_bytes` and `output_bytes`.

        An operator is {`operator`: `aten.mean.dim`, `module`: the user's module path, empty for the network itself}.
    """
    from executorch.exir.lowered_backend_module import LoweredBackendModule

    module = lowered.graph_module
    inputs = lowered.graph_signature.user_inputs
    weights = {node.name for node in module.graph.nodes if node.op == "placeholder"} - set(inputs)
    delegates, outside = [], []
    for node in module.graph.nodes:
        if node.op != "call_function" or node.target is operator.getitem:
            continue
        called = node.args[0] if node.args and getattr(node.args[0], "op", "") == "get_attr" else None
        part = getattr(module, called.target) if called is not None else None
        if isinstance(part, LoweredBackendModule):
            delegates.append(
                {
                    "backend": part.backend_id,
                    "operators": [_named(one) for one in _calls(part.original_module)],
                    "content_bytes": len(part.processed_bytes),
                    **_crossing(node, node.args[1:], weights),
                }
            )
        else:
            outside.append(
                {
                    **_named(node),
                    "position": len(delegates),
                    **_crossing(node, node.args, weights),
                }
            )
    return {"partitions": len(delegates), "delegates": delegates, "outside": outside}


def with_kernels(delegation: dict[str, Any], emitted: ExportedProgram) -> dict[str, Any]:
    """`facts` with the `kernel` of each operator left outside: `aten::mean.out`, None for one that became no call.

    Args:
        emitted: the same program after its memory was planned; what the file holds.
    """
    kernels = [kernel for node in _calls(emitted) if (kernel := _kernel(node)) is not None]
    outside = []
    for one in delegation["outside"]:  # in the same order, while names of nodes may have changed
        kind = "::".join(one["operator"].split(".")[:2])
        found = next((index for index, kernel in enumerate(kernels) if kernel.split(".")[0] == kind), None)
        outside.append({**one, "kernel": None if found is None else kernels[found]})
        kernels = kernels if found is None else kernels[found + 1 :]
    return {**delegation, "outside": outside}


def _calls(program: ExportedProgram) -> list[Node]:
    return [node for node in program.graph.nodes if node.op == "call_function" and node.target is not operator.getitem]


def _named(node: Node) -> dict[str, str]:
    return {"operator": _operator(node), "module": place(node).module}


def _operator(node: Node) -> str:
    """`aten.mean.dim`, `dim_order_ops._to_dim_order_copy.default`."""
    overload = getattr(node.target, "_op", node.target)  # ExecuTorch's edge operators wrap torch's
    return str(overload)


def _kernel(node: Node) -> str | None:
    """`aten::mean.out`; None for a view, which is no instruction."""
    schema = getattr(node.target, "_schema", None)
    return None if schema is None else f"{schema.name}.{schema.overload_name}".rstrip(".")


def _crossing(node: Node, arguments: Any, weights: set[str]) -> dict[str, int]:
    """Bytes that go in and come out; weights that are arguments are not counted."""
    from torch.utils._pytree import tree_leaves

    taken = [leaf for leaf in tree_leaves(arguments) if getattr(leaf, "op", "") in ("call_function", "placeholder")]
    return {
        "input_bytes": sum(_bytes(leaf) for leaf in taken if leaf.name not in weights),
        "output_bytes": _bytes(node),
    }


def _bytes(node: Node) -> int:
    from torch import Tensor
    from torch.utils._pytree import tree_leaves

    tensors = [value for value in tree_leaves(node.meta.get("val")) if isinstance(value, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
