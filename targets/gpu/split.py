"""What of an artifact a phone's CPU has to do where the GPU's delegate does not take it whole, and what that takes.

The operators that stay are priced by the cost table of the phone's fastest cores. Planish has tables of few phones; for
the others the fastest core that has one stands in, and is named. What a table cannot price is held to take as long as
memory needs to move its activations. So is every activation that crosses: read on one side, written on the other, at
the bandwidth of the memory's interface, which is its least.

Both sides wait for each other at each crossing. No figure of that is published for any phone, and none is made up: the
price of a split is a lower bound.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from targets.cost import CostTable, table_path
from targets.delegation.gpu import placement
from targets.gpu.graph import Graph, Node, Shape
from targets.operator import Kind, Operator, linear, matmul, pointwise
from targets.profile import Profile, list_profiles

FLOAT = 4  # bytes, of the CPU's values
PASSES = 2  # of a crossing: read and written
ALIKE: dict[str, Kind] = {
    **dict.fromkeys(("RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1"), "clamp"),
    "HARD_SWISH": "hardswish",
    "GELU": "gelu",
    "LOGISTIC": "sigmoid",
    "SOFTMAX": "softmax",
    "CONCATENATION": "concat",
}
BINARY: dict[str, Kind] = {"ADD": "add", "SUB": "add", "MUL": "mul"}


@dataclass(frozen=True)
class Split:
    """The part of an inference that is not the GPU's.

    Attributes:
        left: kinds of the operators that the CPU runs, in the order of the file.
        priced_by_bytes: of these, kinds that the table does not know.
        left_ms: what they take; `low_ms`..`high_ms` by the error of nine in ten of the table's operators.
        crossing_bytes: of activations that one side writes and the other reads.
        crossing_ms: what copying them takes at least.
        cpu: profile whose table priced them.
        stands_in: it is another phone's.
    """

    left: tuple[str, ...]
    priced_by_bytes: tuple[str, ...]
    left_ms: float
    low_ms: float
    high_ms: float
    crossing_bytes: int
    crossing_ms: float
    cpu: str
    stands_in: bool

    @property
    def milliseconds(self) -> float:
        return self.left_ms + self.crossing_ms


def split(artifact: Path, graph: Graph, taken: Collection[int], profile: Profile) -> Split | None:
    """What is left when the operators at places `taken` of the file run on the GPU; None where nothing is.

    Raises:
        MissingEnvironmentError: `COST_TABLE_MISSING`, where the shipped table is of another version.
    """
    left = [node for node in graph.nodes if node.place not in taken]
    if not left:
        return None
    cpu, stands_in = cpu_of(profile)
    table = CostTable.load(cpu)
    operators = [(node, operator_of(graph, node)) for node in left]
    tabled = sum(table.milliseconds(operator) for _, operator in operators if operator is not None)
    others = [node for node, operator in operators if operator is None]
    moving = sum(_bytes(graph, node) for node in others) / (1e6 * cpu.dram.bandwidth_gb_s)
    crossing, _ = placement(artifact, taken).crossing()
    return Split(
        left=tuple(node.kind for node in left),
        priced_by_bytes=tuple(sorted({node.kind for node in others})),
        left_ms=tabled + moving,
        low_ms=tabled / (1 + table.error.p90) + moving,
        high_ms=tabled * (1 + table.error.p90) + moving,
        crossing_bytes=crossing,
        crossing_ms=PASSES * crossing / (1e6 * profile.gpu.bandwidth_gb_s),
        cpu=cpu.name,
        stands_in=stands_in,
    )


def cpu_of(profile: Profile) -> tuple[Profile, bool]:
    """The fastest cores of the same phone that have a cost table, or of any; whether they are another phone's."""
    tabled = [each for each in list_profiles() if each.kind == "emulator" and table_path(each, "tflite").exists()]
    own = [each for each in tabled if each.device == profile.device]
    return max(own or tabled, key=lambda each: each.clock_ghz), not own


def operator_of(graph: Graph, node: Node) -> Operator | None:
    """A TFLite operator as the cost tables know it; None where they do not."""
    first, out = graph.shapes[node.runtime[0]], graph.shapes[node.outputs[0]]
    before, after = _pixels(first), _pixels(out)
    if node.kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        weights = graph.shapes[node.inputs[1]]  # [out, height, width, in / groups], or [1, height, width, out]
        groups = first[3] // weights[3] if node.kind == "CONV_2D" else first[3]
        return Operator("conv", first[3], out[3], weights[1:3], node.stride, groups, before, after)
    if node.kind == "FULLY_CONNECTED":
        return linear(first[-1], out[-1], math.prod(out[:-1]))
    if node.kind == "BATCH_MATMUL":
        return matmul(math.prod(out[:-2]), out[-2], math.prod(first) // math.prod(out[:-1]), out[-1])
    if node.kind in ("AVERAGE_POOL_2D", "MAX_POOL_2D"):
        kind: Kind = "pool" if node.kind == "AVERAGE_POOL_2D" else "max_pool"
        return Operator(kind, first[3], out[3], node.window, node.stride, 1, before, after)
    if node.kind == "MEAN" and len(first) == 4 and math.prod(out) == first[3] > 1:
        return Operator("pool", first[3], first[3], before, (1, 1), 1, before, (1, 1))
    if node.kind == "RESIZE_BILINEAR":
        return Operator("resize", first[3], out[3], (1, 1), (1, 1), 1, before, after)
    if node.kind in BINARY:
        whole = all(math.prod(graph.shapes[tensor]) == math.prod(out) for tensor in node.inputs)
        return pointwise(BINARY[node.kind] if whole else "scale", out[-1] if out else 1, after)
    return pointwise(ALIKE[node.kind], out[-1], after) if node.kind in ALIKE else None


def _pixels(shape: Shape) -> tuple[int, int]:
    """(height, width) of an image, (rows, 1) of anything else."""
    return (shape[1], shape[2]) if len(shape) == 4 else (math.prod(shape[:-1]), 1)


def _bytes(graph: Graph, node: Node) -> int:
    return FLOAT * sum(math.prod(graph.shapes[tensor]) for tensor in {*node.runtime, *node.outputs})
