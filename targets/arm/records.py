"""Which operator of a profiled invocation ran between which system calls.

A runtime's profiler reads the clock before and after an operator. The emulated program has no vDSO, so every read is a
system call, which the QEMU plugin sees: it closes a record of what it counts whenever the main thread makes one of the
`MARKS`. From the calls that closed the records of one invocation and the profiler's own list of operators follows whose
each record is.

ONNX Runtime: a node is [clock] work [clock] getpid. With a thread pool there are more reads of the clock inside, behind
a getcpu. Part of the node's profile is written before the closing read: its records hold some of the profiler's work.
LiteRT: XNNPACK reads the clock once before its first operator and once after each; one that joins or splits tensors is
a copy for each of them, and the clock is read after each copy. An operator outside of XNNPACK is [clock] work [clock].
The runtime's own steps around them read memory statistics, too: [clock, close] and so on.
ExecuTorch: an instruction is [getpid] work [getpid] by the tracer of executorch.cpp; one that calls XNNPACK reads the
clock in between, as above, after a read of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

# ARM64 Linux's numbers of the system calls at whose entry a record of the main thread ends.
CLOSE, CLOCK_GETTIME, GETCPU, GETPID = MARKS = (57, 113, 168, 172)
COPY = "Copy ("  # XNNPACK's kind of a concatenation and of an even split: "Copy (NC, X32)"


def owned(
    operators: Sequence[dict[str, Any]], ends: Sequence[int], format: str, parts: Sequence[int] = ()
) -> list[list[int]]:
    """Indices of the records that belong to each operator; the others are the runtime's and its profiler's.

    Args:
        operators: of the invocation, as `runners/profiled.py` gives them.
        ends: system call that closed each record between the start of the invocation and its end.
        parts: of LiteRT's operators, as `targets.operators.parts` gives them: how often the clock is read after the
            start of each. One where left out. Those of ExecuTorch, whose file is not read, follow from the reads.

    Raises:
        ValueError: the runtime did not call as its profiler is known to.
    """
    if format == "tflite":
        return _of_litert(operators, ends, parts or [1] * len(operators))
    return {"onnx": _of_onnxruntime, "pte": _of_executorch}[format](operators, ends)


def _of_onnxruntime(operators: Sequence[dict[str, Any]], ends: Sequence[int]) -> list[list[int]]:
    """Segments between calls of getpid: one a node, and after them one for the executor and one for the whole run."""
    segments, start = [], 0
    for index, call in enumerate(ends):
        if call == GETPID:
            segments.append(range(start, index))
            start = index + 1
    if len(segments) != len(operators) + 2:
        raise ValueError(f"{len(operators)} nodes, but {len(segments)} calls of getpid")
    found = []
    for segment in segments[: len(operators)]:
        reads = [index for index in segment if ends[index] == CLOCK_GETTIME]
        pooled = next((index for index in segment if ends[index] == GETCPU), None)
        opening = [index for index in reads if index < pooled] if pooled is not None else reads[:-1]
        if not opening:
            raise ValueError(f"node {len(found)} is not between two reads of the clock")
        found.append(list(range(opening[-1] + 1, reads[-1] + 1)))
    return found


def _of_litert(operators: Sequence[dict[str, Any]], ends: Sequence[int], parts: Sequence[int]) -> list[list[int]]:
    """Reads of the clock are the operators', but for those that a close follows: these are the runtime's steps'."""
    calls = [index for index, call in enumerate(ends) if call in (CLOCK_GETTIME, CLOSE)]
    followed = [ends[after] == CLOSE for after in calls[1:]] + [False]
    reads = [index for index, step in zip(calls, followed) if ends[index] == CLOCK_GETTIME and not step]
    if len(reads) != sum(parts) + sum(operator["first"] for operator in operators):
        raise ValueError(f"{len(operators)} operators, but {len(reads)} reads of the clock")
    found, before = [], -1
    for operator, count in zip(operators, parts):
        before += operator["first"]  # it has a read of its own before it
        found.append(list(range(reads[before] + 1, reads[before + count] + 1)))
        before += count
    return found


def _of_executorch(operators: Sequence[dict[str, Any]], ends: Sequence[int]) -> list[list[int]]:
    """An instruction runs one operator of ExecuTorch's own, or those of XNNPACK up to the next `first`."""
    calls = [index for index, call in enumerate(ends) if call == GETPID]
    starts = [index for index, operator in enumerate(operators) if operator["first"]]
    if len(calls) != 2 * len(starts):
        raise ValueError(f"{len(starts)} instructions, but {len(calls)} calls of getpid")
    found = []
    for opening, closing, start, end in zip(calls[::2], calls[1::2], starts, [*starts[1:], len(operators)]):
        reads = [index for index in range(opening + 1, closing) if ends[index] == CLOCK_GETTIME]
        if not reads and end - start == 1:
            found.append(list(range(opening + 1, closing + 1)))
            continue
        parts = _shared(operators[start:end], len(reads) - 2)
        bounds = [reads[1 + done] for done in accumulate(parts, initial=0)]
        found += [list(range(before + 1, after + 1)) for before, after in zip(bounds, bounds[1:])]
    return found


def _shared(operators: Sequence[dict[str, Any]], reads: int) -> list[int]:
    """How many of the reads each operator of a call has: one, and what is left over is the copies', evenly.

    That they all join or split equally many tensors is an assumption: the runtime does not say.
    """
    copies = [operator["kind"].startswith(COPY) for operator in operators]
    each, rest = divmod(reads - len(operators), max(1, sum(copies)))
    if each < 0 or rest or (each and not any(copies)):
        raise ValueError(f"{len(operators)} operators, but {reads + 2} reads of the clock")
    return [1 + each * copy for copy in copies]
