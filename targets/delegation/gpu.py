"""What of a .tflite LiteRT's GPU accelerator takes, as it says itself on this machine.

Its report names kinds of operators, sometimes a tensor, and counts, not operators. Which operators it means is guessed
in turn: those at a tensor that it names or of more axes than a GPU's tensor has; those that it refuses alone, each in a
file of its own; all of a kind that it names. Which of the others run on the GPU follows from its rule of one subset
(`gpu.partition`), and the first guess counts whose number agrees with the one that it reports.

What it says of a file is kept in the cache by everything it depends on.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from targets.cache import cache_root, write_atomic
from targets.delegation.placement import Placement
from targets.delegation.tflite import placed
from targets.gpu import partition, process, report, single
from targets.gpu.gpus import GPUS
from targets.gpu.places import require
from targets.gpu.report import Report, read_report, tensors_of
from targets.graph import GraphOperator, read_graph
from targets.runners.artifact import runtime_version

DELEGATE = "LiteRT GPU"
MOST_AXES = 4  # of a tensor on the GPU
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
    return placement(path, on_gpu(path).taken)


def placement(path: Path, taken: Collection[int]) -> Placement:
    """The operators of a .tflite, once it is known which of them, by their places in the file, run on the GPU."""
    return placed(
        path,
        delegate=DELEGATE,
        learned="LiteRT's GPU accelerator took them when it opened the file on this machine",
        partitions=1 if taken else 0,
        partition=dict.fromkeys(taken, 0),
    )


def on_gpu(path: Path) -> OnGpu:
    """Which operators run on the GPU, and why others do not; raises as `read_gpu`.

    A file that is taken whole is opened once, in a child process of some seconds; of any other the doubtful operators
    are then put to another child.
    """
    kept = _remembered(path)
    try:
        said = json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = _learned(path)
        said = {"taken": sorted(found.taken), "refused": list(found.refused.items()), "kinds": found.kinds}
        write_atomic(kept, json.dumps(said))
    return OnGpu(frozenset(said["taken"]), dict(map(tuple, said["refused"])), tuple(said["kinds"]))


def _remembered(path: Path) -> Path:
    """Where the answer is kept: named by everything it depends on."""
    sources = [path, process.WORKER, *map(Path, (__file__, partition.__file__, report.__file__, single.__file__))]
    made_of = [
        *(hashlib.sha256(source.read_bytes()).hexdigest() for source in sources),
        *(place.name for place in require().of(mali=False)),
        runtime_version("tflite"),
    ]
    name = hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:24]
    return cache_root() / "gpu" / "taken" / name[:2] / f"{name}.json"


def _learned(path: Path) -> OnGpu:
    graph = read_graph(path, "tflite")
    (accelerated,), log = _asked([path])
    told = read_report(log, operators=len(graph), accelerated=accelerated, tensors=tensors_of(path))
    kinds = tuple(operator.kind for operator in graph)
    if told.accelerated:
        return OnGpu(frozenset(range(len(graph))), {}, kinds)
    reads, writes, tensors = _tensors(path)
    touched = [{*read, *written} for read, written in zip(reads, writes)]
    guesses = (
        lambda: _refused_by_tensor(graph, told, touched, tensors),
        lambda: _refused_singly(path, graph, told.refused),
        lambda: _refused_by_kind(graph, told.refused),
    )
    for guess in guesses:
        refused = guess()
        known = {*range(len(graph))} - {*refused}
        mine = partition.taken(reads, writes, known)
        if len(mine) == told.gpu_operators:
            return OnGpu(frozenset(mine), refused, kinds)
    raise ValueError(
        f"the GPU accelerator takes {told.gpu_operators} of {len(graph)} operators, and which ones cannot be told"
    )


def refusals(files: Sequence[Path]) -> list[str | None]:
    """Why the accelerator does not take each of these files, of one operator each; None where it does.

    All are put to one child process.

    Raises:
        MissingEnvironmentError: `GPU_DRIVER_MISSING`, `GPU_DRIVER_DAMAGED`.
        UsageError: `ARTIFACT_UNUSABLE`.
        ValueError: it does not say why.
    """
    accelerated, log = _asked(files)
    said = dict(zip((int(number) for number in ASKED.findall(log)), ASKED.split(log)[2::2]))
    reasons: list[str | None] = []
    for number, (file, whole) in enumerate(zip(files, accelerated)):
        told = read_report(said[number], operators=1, accelerated=whole, tensors=tensors_of(file))
        reasons.append(None if whole else told.refused[0][1])
    return reasons


def _refused_by_kind(graph: Sequence[GraphOperator], refused: Sequence[tuple[str, str]]) -> dict[int, str]:
    """As if it knew no operator of a kind that it names."""
    reasons = {kind.split()[0]: reason for kind, reason in reversed(refused)}
    return {index: reasons[operator.kind] for index, operator in enumerate(graph) if operator.kind in reasons}


def _refused_by_tensor(
    graph: Sequence[GraphOperator],
    told: Report,
    touched: Sequence[Collection[int]],
    tensors: Sequence[tuple[str, int]],
) -> dict[int, str]:
    """Of the kinds that it names, the operators at a tensor that it names as well, and those of more axes than four.

    Args:
        touched: tensors that each operator reads or writes.
        tensors: name and number of axes of each.
    """
    named = {kind: {name for of, name in told.named if of == kind} for kind, _ in told.named}
    found = {}
    for index, reason in _refused_by_kind(graph, told.refused).items():
        here = [tensors[tensor] for tensor in touched[index] if tensor >= 0]
        at_one = any(name in named.get(graph[index].kind, ()) for name, _ in here)
        if at_one or any(axes > MOST_AXES for _, axes in here):
            found[index] = reason
    return found


def _refused_singly(path: Path, graph: Sequence[GraphOperator], refused: Sequence[tuple[str, str]]) -> dict[int, str]:
    """Of the kinds that it names, the operators that it does not take alone, with the reason it gives."""
    doubtful = [*_refused_by_kind(graph, refused)]
    with tempfile.TemporaryDirectory(prefix="planish-gpu-") as scratch:
        files = []
        for index, content in zip(doubtful, single.single_operators(path, doubtful)):
            files.append(Path(scratch) / f"{index}.tflite")
            files[-1].write_bytes(content)
        reasons = refusals(files)
    return {index: reason for index, reason in zip(doubtful, reasons) if reason is not None}


def _asked(files: Sequence[Path]) -> tuple[list[bool], str]:
    """Whether the accelerator takes each of these files whole, and the log."""
    if not files:
        return [], ""
    plan = {"mode": "ask", "artifacts": [str(file.absolute()) for file in files], "precision": "fp16"}
    result, log = process.work(plan, GPUS["software"], require())
    return result["accelerated"], log


def _tensors(path: Path) -> tuple[list[Collection[int]], list[Collection[int]], list[tuple[str, int]]]:
    """Of each operator of the main graph the tensors it reads and those it writes; name and axes of each tensor."""
    from ai_edge_litert import schema_py_generated as schema

    main = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes())).subgraphs[0]
    reads = [{int(tensor) for tensor in operator.inputs} for operator in main.operators]
    writes = [{int(tensor) for tensor in operator.outputs} for operator in main.operators]
    names = [(tensor.name.decode(), 0 if tensor.shape is None else len(tensor.shape)) for tensor in main.tensors]
    return reads, writes, names
