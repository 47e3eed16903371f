"""What stands in a partition of an ExecuTorch program: the graphs of XNNPACK and Vulkan, each a FlatBuffer.

Both put it behind a header of the same fields. Core ML's payload is a compiled model and stays closed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from targets.delegation.flatc import decoded
from targets.delegation.placement import Placed, moves_data
from targets.delegation.values import Values

XNNPACK = "backends/xnnpack/serialization/schema.fbs"
VULKAN = "backends/vulkan/serialization/schema.fbs"
XNNPACK_VIEWS = {"XNNStaticReshape", "XNNConvert", "XNNCopy"}


def xnnpack(payload: bytes, arguments: Sequence[str], prefix: str) -> list[Placed]:
    """XNNPACK's nodes. `arguments` are the tensors of the call, `prefix` marks those that stay inside."""
    graph = decoded(_flatbuffer(payload), XNNPACK)
    tensors = {}
    for each in graph["xvalues"]:
        value = each["xvalue_union"]
        value = value.get("tensor_value", value)  # a quantised one wraps it
        tensors[value["id_out"]] = value

    def names(indices: Sequence[int]) -> tuple[str, ...]:
        outside = [(index, tensors[index]["external_id"]) for index in indices]
        return tuple(arguments[at] if at < len(arguments) else f"{prefix}{index}" for index, at in outside)

    operators = []
    for node in graph["xnodes"]:
        kind, fields = node["xnode_union_type"], node["xnode_union"]
        ids = {key: value for key, value in fields.items() if key.endswith("_id") and value in tensors}
        outs = [value for key, value in ids.items() if key.startswith("output")]
        ins = [value for key, value in ids.items() if not key.startswith("output")]
        in_shapes = tuple(tuple(tensors[index]["dims"]) for index in ins)
        moves = kind == "XNNStaticTranspose" and moves_data(in_shapes[0], fields["perm"])
        operators.append(
            Placed(
                kind=kind,
                partition=None,
                inputs=names([index for index in ins if not tensors[index]["constant_buffer_idx"]]),
                outputs=names(outs),
                in_shapes=in_shapes,
                out_shapes=tuple(tuple(tensors[index]["dims"]) for index in outs),
                moves=moves,
                views=kind in XNNPACK_VIEWS or (kind == "XNNStaticTranspose" and not moves),
            )
        )
    return operators


def vulkan(payload: bytes, arguments: Sequence[str], prefix: str) -> list[Placed]:
    """Vulkan's operators, without those that lay out constants."""
    graph = decoded(_flatbuffer(payload), VULKAN)
    border = dict(zip((*graph["input_ids"], *graph["output_ids"]), arguments))
    values = Values.of_vulkan(graph["values"], graph["input_ids"], lambda index: border.get(index, f"{prefix}{index}"))
    return [placed for call in graph["chain"] if (placed := values.operator(call["name"], call["args"]))]


def _flatbuffer(payload: bytes) -> bytes:
    start, size = struct.unpack_from("<II", payload, 10)
    return payload[start : start + size]


PAYLOADS: dict[str, Callable[[bytes, Sequence[str], str], list[Placed]]] = {
    "XnnpackBackend": xnnpack,
    "VulkanBackend": vulkan,
}
