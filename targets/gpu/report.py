"""What LiteRT's GPU accelerator says it takes of an artifact: lines of its log.

It says them only of an artifact that it does not take whole: a line for each kind of operator and reason, then how many
operators run where. It takes one run of operators that it knows, the longest; all others, known or not, stay on the
CPU (`partition.py`).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from targets.errors import PlanishError

HEAD = "not supported by GPU delegate:"
REFUSED = re.compile(r"([A-Z][A-Z0-9_]*(?: [A-Za-z0-9_.:]+)?): (.+)")
SHARES = re.compile(r"(No|\d+) operations will run on the GPU, and (?:the remaining|all) (\d+) operations will run on")


@dataclass(frozen=True)
class Report:
    """Operators of the artifact's main graph on each side, and (kind of operator, reason) of those it does not know.

    `named` are (kind of operator, tensor) where a reason ends with one.
    """

    gpu_operators: int
    cpu_operators: int
    refused: tuple[tuple[str, str], ...]
    named: tuple[tuple[str, str], ...] = ()

    @property
    def accelerated(self) -> bool:
        return self.cpu_operators == 0


def unreadable(artifact: Path, why: ValueError, fix: str) -> PlanishError:
    """The error where nobody can tell which of the artifact's operators the GPU takes: `GPU_REPORT_UNREADABLE`."""
    return PlanishError(
        "it is not known what the GPU takes of the artifact",
        where=artifact.name,
        why=str(why),
        fix=fix,
        code="GPU_REPORT_UNREADABLE",
    )


def read_report(log: str, *, operators: int, accelerated: bool, tensors: Collection[str] = ()) -> Report:
    """The report in the log of a process that opened one artifact.

    Args:
        operators: of the artifact's main graph.
        accelerated: whether LiteRT says that accelerators, of the CPU too, took all of them.
        tensors: names of the artifact's tensors; one at the end of a reason is left out, since it is no name of the
            user's.

    Raises:
        ValueError: it did not, and the log does not say what it took.
    """
    shares = SHARES.search(log)  # LiteRT also calls accelerated what XNNPACK runs beside the GPU
    if shares is None and accelerated:
        return Report(operators, 0, ())
    if shares is None:
        raise ValueError("LiteRT's GPU accelerator took not all of the artifact, and its log does not say why")
    on_gpu = 0 if shares[1] == "No" else int(shares[1])
    refused: list[tuple[str, str]] = []
    for line in log[: shares.start()].rpartition(HEAD)[2].strip().splitlines():
        if found := REFUSED.fullmatch(line.strip()):
            refused.append((found[1], found[2]))
        elif refused:  # a reason of several lines
            refused[-1] = (refused[-1][0], f"{refused[-1][1]} {line.strip()}")
    plain, named = [], []
    for kind, reason in refused:
        text, _, last = reason.rpartition(" ")
        plain.append((kind, text if last in tensors else reason))
        if last in tensors:
            named.append((kind, last))
    return Report(on_gpu, int(shares[2]), tuple(dict.fromkeys(plain)), tuple(named))


def tensors_of(path: Path) -> frozenset[str]:
    """The names of all tensors of a .tflite."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes()))
    return frozenset(tensor.name.decode() for graph in model.subgraphs for tensor in graph.tensors if tensor.name)
