"""What an ExecuTorch delegate took of a network, and what it left, in the user's modules.

Read from the lowered program itself (as executorch.devtools' delegation info is), before its operators are turned into
kernels: there each still knows the module it comes from.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

from pipeline.export.failure import place

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node


def facts(edge: ExportedProgram, emitted: ExportedProgram) -> dict[str, Any]:
    """Plain data about a lowered program.

    Args:
        edge: after partitioning; delegated parts are calls.
        emitted: after memory planning; what the file holds.

    Returns:
        partitions: number of delegate calls.
        delegates: one each, in the order of calls: `backend`, `operators` inside as they were before the delegate
            rewrote them, `input_bytes` and `output_bytes` that cross its border, `content_bytes` in the file.
        outside: operators left to ExecuTorch's own kernels, clones and changes of memory order included, in order:
            as an operator inside, with `position` (delegate calls before it), `kernel`
            (`aten::mean.out`, None for one that memory planning made do without), `input_bytes` and `output_bytes`.

        An operator is {`operator`: `aten.mean.dim`, `module`: the user's module path, empty for the network itself}.
    """
    from executorch.exir.lowered_backend_module import LoweredBackendModule

    module = edge.graph_module
    kernels = {node.name: node for node in emitted.graph_module.graph.nodes if node.op == "call_function"}
    delegates, outside = [], []
    for node in module.graph.nodes:
        if node.op != "call_function" or node.target is operator.getitem:
            continue
        called = node.args[0] if node.args and getattr(node.args[0], "op", "") == "get_attr" else None
        lowered = getattr(module, called.target) if called is not None else None
        if isinstance(lowered, LoweredBackendModule):
            delegates.append(
                {
                    "backend": lowered.backend_id,
                    "operators": [_named(one) for one in _calls(lowered.original_module)],
                    "content_bytes": len(lowered.processed_bytes),
                    **_crossing(node, node.args[1:]),
                }
            )
        else:
            outside.append(
                {
                    **_named(node),
                    "position": len(delegates),
                    "kernel": _kernel(kernels.get(node.name)),
                    **_crossing(node, node.args),
                }
            )
    return {"partitions": len(delegates), "delegates": delegates, "outside": outside}


def _calls(program: ExportedProgram) -> list[Node]:
    return [node for node in program.graph.nodes if node.op == "call_function" and node.target is not operator.getitem]


def _named(node: Node) -> dict[str, str]:
    return {"operator": _operator(node), "module": place(node).module}


def _operator(node: Node) -> str:
    """`aten.mean.dim`, `dim_order_ops._to_dim_order_copy.default`."""
    overload = getattr(node.target, "_op", node.target)  # ExecuTorch's edge operators wrap torch's
    return str(overload)


def _kernel(node: Node | None) -> str | None:
    """`aten::mean.out`; None for a view, which is no instruction."""
    schema = getattr(node.target, "_schema", None) if node is not None else None
    return None if schema is None else f"{schema.name}.{schema.overload_name}".rstrip(".")


def _crossing(node: Node, arguments: Any) -> dict[str, int]:
    """Bytes that go in and come out; weights that are arguments are not counted."""
    from torch.utils._pytree import tree_leaves

    taken = [leaf for leaf in tree_leaves(arguments) if getattr(leaf, "op", "") in ("call_function", "placeholder")]
    taken = [leaf for leaf in taken if not leaf.name.startswith(("p_", "b_", "c_"))]
    return {
        "input_bytes": sum(map(_bytes, taken)),
        "output_bytes": _bytes(node),
    }


def _bytes(node: Node) -> int:
    from torch import Tensor
    from torch.utils._pytree import tree_leaves

    tensors = [value for value in tree_leaves(node.meta.get("val")) if isinstance(value, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
