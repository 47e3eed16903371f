"""What of a .tflite LiteRT's GPU accelerator takes, as it says itself on this machine.

Its report names kinds of operators and counts, not operators. So those of a kind it names are put before it one by one,
each in a file of its own; which of those it knows run on the GPU follows from its rule of one subset
(`gpu.partition`), and has to agree with the number it reports. Some it takes alone and not in their network: where the
numbers do not agree, it is taken to know no operator of the kinds it names.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from targets.delegation.placement import Placement
from targets.delegation.tflite import placed
from targets.gpu import process
from targets.gpu.gpus import GPUS
from targets.gpu.partition import taken
from targets.gpu.places import require
from targets.gpu.report import read_report, tensors_of
from targets.gpu.single import single_operators
from targets.graph import GraphOperator, read_graph

ASKED = re.compile(r"^planish: (\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class OnGpu:
    """The operators of a .tflite's main graph by where they run.

    Attributes:
        taken: places in the file of those that run on the GPU.
        refused: of those that the accelerator does not know, with its reason. Others run on the CPU since it takes one
            subset only.
        kinds: of all operators, in the order of the file.
    """

    taken: frozenset[int]
    refused: Mapping[int, str]
    kinds: tuple[str, ...]


def read_gpu(path: Path) -> Placement:
    """The operators of a .tflite, as LiteRT's GPU accelerator and its CPU kernels share them.

    Raises:
        MissingEnvironmentError: `GPU_DRIVER_MISSING`, `GPU_DRIVER_DAMAGED`.
        UsageError: `ARTIFACT_UNUSABLE`.
        ValueError: the accelerator's report does not fit what it says of single operators.
    """
    found = on_gpu(path)
    return placed(
        path,
        delegate="LiteRT GPU",
        learned="LiteRT's GPU accelerator took them when it opened the file on this machine",
        partitions=1 if found.taken else 0,
        partition=dict.fromkeys(found.taken, 0),
    )


def on_gpu(path: Path) -> OnGpu:
    """Which operators run on the GPU, and why others do not; raises as `read_gpu`."""
    graph = read_graph(path, "tflite")
    (accelerated,), log = _asked([path])
    report = read_report(log, operators=len(graph), accelerated=accelerated, tensors=tensors_of(path))
    kinds = tuple(operator.kind for operator in graph)
    if report.accelerated:
        return OnGpu(frozenset(range(len(graph))), {}, kinds)
    reads, writes = _tensors(path)
    for refused in (_refused_singly(path, graph, report.refused), _refused_by_kind(graph, report.refused)):
        known = {*range(len(graph))} - {*refused}
        mine = taken(reads, writes, known)
        if len(mine) == report.gpu_operators:
            return OnGpu(frozenset(mine), refused, kinds)
    raise ValueError(
        f"the GPU accelerator takes {report.gpu_operators} of {len(graph)} operators, and which ones cannot be told"
    )


def _refused_by_kind(graph: Sequence[GraphOperator], refused: Sequence[tuple[str, str]]) -> dict[int, str]:
    """As if it knew no operator of a kind that it names."""
    reasons = {kind.split()[0]: reason for kind, reason in reversed(refused)}
    return {index: reasons[operator.kind] for index, operator in enumerate(graph) if operator.kind in reasons}


def _refused_singly(path: Path, graph: Sequence[GraphOperator], refused: Sequence[tuple[str, str]]) -> dict[int, str]:
    """Of the kinds that it names, the operators that it does not take alone, with the reason it gives."""
    doubtful = [*_refused_by_kind(graph, refused)]
    with tempfile.TemporaryDirectory(prefix="planish-gpu-") as scratch:
        files = []
        for index, content in zip(doubtful, single_operators(path, doubtful)):
            files.append(Path(scratch) / f"{index}.tflite")
            files[-1].write_bytes(content)
        accelerated, log = _asked(files)
    said = dict(zip((int(number) for number in ASKED.findall(log)), ASKED.split(log)[2::2]))
    found = {}
    for number, (index, whole) in enumerate(zip(doubtful, accelerated)):
        if not whole:
            report = read_report(said[number], operators=1, accelerated=False, tensors=tensors_of(path))
            found[index] = report.refused[0][1]
    return found


def _asked(files: Sequence[Path]) -> tuple[list[bool], str]:
    """Whether the accelerator takes each of these files whole, and the log."""
    if not files:
        return [], ""
    plan = {"mode": "ask", "artifacts": [str(file.absolute()) for file in files], "precision": "fp16"}
    result, log = process.work(plan, GPUS["software"], require())
    return result["accelerated"], log


def _tensors(path: Path) -> tuple[list[Collection[int]], list[Collection[int]]]:
    """Of each operator of the main graph, the tensors it reads and those it writes."""
    from ai_edge_litert import schema_py_generated as schema

    main = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes())).subgraphs[0]
    reads = [{int(tensor) for tensor in operator.inputs} for operator in main.operators]
    return reads, [{int(tensor) for tensor in operator.outputs} for operator in main.operators]
