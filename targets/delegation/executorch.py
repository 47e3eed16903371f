"""What of an ExecuTorch program is a delegate's: that was settled when it was lowered, and stands in the file.

Nothing is run, so this also tells of programs for delegates that this machine does not have.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from targets.delegation.flatc import decoded
from targets.delegation.payloads import PAYLOADS
from targets.delegation.placement import Placed, Placement
from targets.delegation.values import Values

PROGRAM = "exir/_serialize/program.fbs"
TITLES = {"XnnpackBackend": "XNNPACK", "VulkanBackend": "Vulkan", "CoreMLBackend": "Core ML"}


def read_pte(path: Path) -> Placement:
    """The operators of a program's first method, those inside XNNPACK's and Vulkan's partitions told singly.

    Raises:
        ValueError: the file is no ExecuTorch program.
    """
    content = path.read_bytes()
    if content[8:12] != b"eh00":
        raise ValueError("it is no ExecuTorch program with an extended header")
    program = decoded(content, PROGRAM)
    plan = program["execution_plan"][0]
    values = Values.of_program(plan["values"], plan["inputs"])
    operators: list[Placed] = []
    partitions, opaque = 0, False
    for instruction in plan["chains"][0]["instructions"]:
        call = instruction["instr_args"]
        if instruction["instr_args_type"] == "KernelCall":
            kernel = values.operator(plan["operators"][call["op_index"]]["name"], call["args"])
            operators.extend([kernel] if kernel else [])
        elif instruction["instr_args_type"] == "DelegateCall":
            delegate = plan["delegates"][call["delegate_index"]]
            read, written = map(values.activations, values.called(call["args"]))
            if open_payload := PAYLOADS.get(delegate["id"]):
                names = [values.name(index) for index in call["args"]]
                inside = open_payload(_payload(delegate, program, content), names, f"{partitions}:")
            else:
                inside, opaque = [Placed(delegate["id"], None, read, written)], True
            operators.extend(replace(each, partition=partitions) for each in inside)
            partitions += 1
    used = dict.fromkeys(TITLES.get(delegate["id"], delegate["id"]) for delegate in plan["delegates"])
    return Placement(
        delegate=", ".join(used) or "none",
        learned="the program was lowered so, and its file says it",
        partitions=partitions,
        operators=tuple(operators),
        inputs=values.activations(plan["inputs"]),
        outputs=values.activations(plan["outputs"]),
        bytes=values.bytes(),
        opaque=opaque,
    )


def _payload(delegate: Mapping[str, Any], program: Mapping[str, Any], content: bytes) -> bytes:
    where = delegate["processed"]
    if where["location"] == "INLINE":
        return bytes(program["backend_delegate_data"][where["index"]]["data"])
    (segments,) = struct.unpack_from("<Q", content, 24)  # of the extended header: where the first one starts
    segment = program["segments"][where["index"]]
    start = segments + segment["offset"]
    return content[start : start + segment["size"]]
