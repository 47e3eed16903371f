"""An ExecuTorch program's interior values, those inside XNNPACK's partitions included.

A program calls kernels and delegates one after the other; XNNPACK's part of it is a graph of its own, kept as a
flatbuffer (backends/xnnpack/serialization/schema.fbs in ExecuTorch) whose values have numbers. In the copy each value
that XNNPACK computes is an external output of its partition and an output of the program, and nothing that is computed
gives its memory to another value. Weights and operators stay as they are. ExecuTorch's own tracer (ETDump) has nothing
of what happens inside a partition.

It runs in an interpreter of its own, because it needs ExecuTorch's exporter:
`python -m pipeline.verify.tapped_program MODEL.pte COPY.pte` prints the values as JSON.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_CODE_ROOT = Path(__file__).resolve().parents[2]
_OUTPUT = re.compile(r"output\d*(_value)?_id")
_INSIDE, _EXTERNAL_OUTPUT = 2**32 - 1, 2  # XNN_INVALID_VALUE_ID, XNN_VALUE_FLAG_EXTERNAL_OUTPUT
_ALIGNMENT = 16  # bytes, of planned memory and of what XNNPACK's data holds
_ARENA = 1  # the memory that values are planned in


def tap(path: Path, copy: Path) -> tuple[list[int], list[int], list[int]]:
    """Writes the copy. Returns the numbers of the values that are computed, in order of execution, of the copy's
    outputs and of the program's own outputs.

    Raises:
        RuntimeError: ExecuTorch cannot read the program.
    """
    run = subprocess.run(
        [sys.executable, "-P", "-m", "pipeline.verify.tapped_program", str(path), str(copy)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(_CODE_ROOT), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
    )
    if run.returncode:
        raise RuntimeError((run.stderr.strip().splitlines() or ["it ended without a word"])[-1])
    return tuple(json.loads(run.stdout.splitlines()[-1]))


def _tap(path: Path, copy: Path) -> tuple[list[int], list[int], list[int]]:
    from executorch.exir._serialize._program import deserialize_pte_binary, serialize_pte_binary
    from executorch.exir.schema import DelegateCall, KernelCall

    file = deserialize_pte_binary(path.read_bytes())
    plan = file.program.execution_plan[0]
    computed: list[int] = []
    for instruction in (instruction for chain in plan.chains for instruction in chain.instructions):
        call = instruction.instr_args
        if isinstance(call, KernelCall):
            computed += _written(plan, call.args[-1])
        elif isinstance(call, DelegateCall):
            delegate = plan.delegates[call.delegate_index]
            if delegate.id == "XnnpackBackend":
                inline = file.program.backend_delegate_data[delegate.processed.index]
                inline.data, values = _tap_partition(inline.data, plan, call)
                computed += values
    computed = [value for value in dict.fromkeys(computed) if _is_float(plan.values[value].val)]
    for value in computed:
        _own_memory(plan, plan.values[value].val)
    own = list(plan.outputs)
    plan.outputs = own + [value for value in computed if value not in own]
    copy.write_bytes(bytes(serialize_pte_binary(file, extract_delegate_segments=True)))
    return computed, plan.outputs, own


def _tap_partition(data: bytes, plan: Any, call: Any) -> tuple[bytes, list[int]]:
    """The partition with all its values external, which `call` passes on, and their numbers in the program."""
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader

    header = XNNHeader.from_bytes(bytes(data[: XNNHeader.EXPECTED_LENGTH]))
    graph = _read(bytes(data[header.flatbuffer_offset :][: header.flatbuffer_size]))
    constants = bytes(data[header.constant_data_offset :])
    tensors = {value["id_out"]: value for value in _tensors(graph)}
    computed = []
    for node in graph["xnodes"]:
        for number in (number for key, number in node["xnode_union"].items() if _OUTPUT.fullmatch(key)):
            tensor = tensors[number]
            if tensor["external_id"] == _INSIDE and tensor["datatype"] == "xnn_datatype_fp32":
                tensor["external_id"], tensor["flags"] = graph["num_externs"], tensor["flags"] | _EXTERNAL_OUTPUT
                graph["num_externs"] += 1
                graph["output_ids"].append(number)
                call.args.append(_new_value(plan, tensor["dims"]))
            if tensor["external_id"] != _INSIDE:
                computed.append(call.args[tensor["external_id"]])
    written = _padded(_write(graph))
    start = len(_padded(bytes(XNNHeader.EXPECTED_LENGTH)))
    header = XNNHeader(start, len(written), start + len(written), len(constants))
    return _padded(header.to_bytes()) + written + constants, computed


def _tensors(graph: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The values; a quantised one is a plain one with its scales beside it."""
    for value in graph["xvalues"]:
        yield value["xvalue_union"].get("tensor_value", value["xvalue_union"])


def _read(flatbuffer: bytes) -> dict[str, Any]:
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "graph.bin"
        binary.write_bytes(flatbuffer)
        _flatc_decompile(folder, _schema(folder), str(binary), ["--raw-binary"])
        text = (Path(folder) / "graph.json").read_text()
    return json.loads(re.sub(r": (-?)inf\b", r': "\1inf"', text))  # an open end of a clamp; JSON has no infinity


def _write(graph: dict[str, Any]) -> bytes:
    from executorch.exir._serialize._flatbuffer import _flatc_compile

    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "graph.json"
        text.write_text(json.dumps(graph))
        _flatc_compile(folder, _schema(folder), str(text))
        return (Path(folder) / "graph.bin").read_bytes()


def _schema(folder: str) -> str:
    from importlib.resources import files

    path = Path(folder) / "schema.fbs"
    path.write_bytes((files("executorch.backends.xnnpack.serialization") / "schema.fbs").read_bytes())
    return str(path)


def _written(plan: Any, argument: int) -> list[int]:
    """The values that a kernel writes, which is its last argument: a value or a list of them."""
    from executorch.exir.schema import Tensor, TensorList

    value = plan.values[argument].val
    return list(value.items) if isinstance(value, TensorList) else [argument] if isinstance(value, Tensor) else []


def _is_float(value: Any) -> bool:
    from executorch.exir.scalar_type import ScalarType

    return value.scalar_type == ScalarType.FLOAT


def _new_value(plan: Any, sizes: list[int]) -> int:
    from executorch.exir.scalar_type import ScalarType
    from executorch.exir.schema import EValue, Tensor, TensorShapeDynamism

    order = list(range(len(sizes)))
    tensor = Tensor(ScalarType.FLOAT, 0, list(sizes), order, False, 0, 0, None, TensorShapeDynamism.STATIC)
    plan.values.append(EValue(tensor))
    return len(plan.values) - 1


def _own_memory(plan: Any, tensor: Any) -> None:
    """Memory behind all that was planned."""
    from executorch.exir.schema import AllocationDetails

    start = _aligned(plan.non_const_buffer_sizes[_ARENA])
    size = 4
    for extent in tensor.sizes:
        size *= extent
    tensor.allocation_info = AllocationDetails(_ARENA, start % 2**32, start // 2**32)
    plan.non_const_buffer_sizes[_ARENA] = start + _aligned(size)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _padded(data: bytes) -> bytes:
    return data + bytes(_aligned(len(data)) - len(data))


if __name__ == "__main__":
    print(json.dumps(_tap(Path(sys.argv[1]), Path(sys.argv[2]))))
