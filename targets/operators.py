"""Why an artifact is slow: the time of one inference, operator by operator, with what bounds each of them.

The counters of a profiled inference are told apart by `targets/arm/records.py`, the runtime's operators are matched to
the artifact's, and through these to the user's modules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import takewhile
from typing import Any, Literal, TypeVar

from targets.arm.records import COPY, owned
from targets.graph import GraphOperator

Bound = Literal["compute", "branches", "L1", "L2", "L3", "DRAM", "threads"]
RUNTIME = "runtime"  # kind of the last entry: what an inference takes beside its operators
WEIGHTED = 1000  # of an alignment: a pair of operators with weights, or of copies, outweighs any number of others

A, B = TypeVar("A"), TypeVar("B")


@dataclass(frozen=True)
class Counters:
    """What the core did in a stretch of the run. Cycles are told apart by what they were spent on; they add up."""

    instructions: float = 0
    accesses: float = 0  # loads and stores among them
    core_cycles: float = 0  # executing, with all data in the first cache
    branch_cycles: float = 0  # refilling after mispredicted branches
    l2_cycles: float = 0  # waiting for lines that L2 had
    l3_cycles: float = 0  # ... that L3 had
    dram_cycles: float = 0  # ... that memory had, its bandwidth included
    thread_cycles: float = 0  # waiting for other threads

    @property
    def cycles(self) -> float:
        return sum(self._causes.values())

    @property
    def _causes(self) -> dict[Bound, float]:
        return {
            "compute": self.core_cycles,
            "branches": self.branch_cycles,
            "L2": self.l2_cycles,
            "L3": self.l3_cycles,
            "DRAM": self.dram_cycles,
            "threads": self.thread_cycles,
        }

    @property
    def bound(self) -> Bound:
        """The largest cause of its cycles. "L1": the core is busy, but mostly with loads and stores."""
        causes = self._causes
        largest = max(causes, key=causes.__getitem__)
        return "L1" if largest == "compute" and 2 * self.accesses >= self.instructions > 0 else largest

    def __add__(self, other: Counters) -> Counters:
        return self.combined(other, lambda mine, others: mine + others)

    def less(self, other: Counters) -> Counters:
        """What is left without the other's counts; nothing falls below zero."""
        return self.combined(other, lambda mine, others: max(0.0, mine - others))

    def combined(self, other: Counters, operation: Callable[[float, float], float]) -> Counters:
        return Counters(*(operation(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)))


@dataclass(frozen=True)
class OperatorTime:
    """One operator of an inference. Module, shape and `macs` are of the artifact's operator it was matched to."""

    name: str  # of the node; LiteRT has none and repeats the kind
    kind: str  # as the runtime calls it: "FusedConv", "Convolution (NHWC, F32) DWConv"
    module: str  # path in the user's model, "" where unknown
    shape: str  # the layer in figures: "1×1 512→2048 at 7×7"
    out_shape: tuple[int, ...]
    share: float  # of the inference's time
    milliseconds: float
    cycles: float
    instructions: int
    macs: int
    flop_per_cycle: float  # 2 * macs / cycles
    bound: Bound
    peak_flop_per_cycle: float | None = None  # of the cores it ran on, in its precision; None where unknown

    def to_json(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> OperatorTime:
        return cls(**{**data, "out_shape": tuple(data["out_shape"])})


def break_down(
    runs: Sequence[tuple[Sequence[Counters], Sequence[int]]],
    operators: Sequence[dict[str, Any]],
    graph: Sequence[GraphOperator],
    whole: Counters,
    *,
    format: str,
    clock_ghz: float,
) -> tuple[OperatorTime, ...]:
    """The operators of an inference in the order they ran; the last entry is the runtime's own work.

    Args:
        runs: (records, ends) of each of some equal profiled inferences: what the main thread counted, cut at the system
            calls `ends` from the start of the inference to its end. Of an operator the fastest run counts: a profiler
            only ever adds.
        operators: of the last inference, from `runners/profiled.py`.
        graph: of the artifact, from `targets.graph.read_graph`, with all modules that are known.
        whole: of the same inference without a profiler. Shares are of its cycles.

    Raises:
        ValueError: the records are not those of the operators.
    """
    matched = match(operators, graph, format)
    copied = parts(operators, graph, matched)
    owners = [owned(operators, ends, format, copied) for _, ends in runs]
    by_run = [
        [sum((records[index] for index in mine), Counters()) for mine in owner]
        for (records, _), owner in zip(runs, owners)
    ]
    spent = [min(counters, key=lambda one: one.cycles) for counters in zip(*by_run)]
    before = Counters()  # ONNX Runtime prepares the nodes, profiled or not; LiteRT's profiler writes a text there
    if format == "onnx" and spent:
        before = sum(runs[-1][0][: owners[-1][0][0]], Counters())
    spent = _without_profiler(spent, whole.less(before))
    rows = [
        _row(operator, graph[matched[index]] if index in matched else None, counters)
        for index, (operator, counters) in enumerate(zip(operators, spent))
    ]
    rows = [replace(row, module=module) for row, module in zip(rows, _modules(rows))]
    rows.append(_row({"name": RUNTIME, "kind": RUNTIME}, None, whole.less(sum(spent, Counters()))))
    total = whole.cycles or 1.0
    return tuple(replace(row, share=row.cycles / total, milliseconds=row.cycles / (clock_ghz * 1e6)) for row in rows)


def _row(operator: Mapping[str, Any], source: GraphOperator | None, counters: Counters) -> OperatorTime:
    macs = source.macs if source else 0
    return OperatorTime(
        name=operator["name"],
        kind=operator["kind"],
        module=source.module if source else "",
        shape=source.description if source else "",
        out_shape=source.out_shapes[0] if source and source.out_shapes else (),
        share=0.0,
        milliseconds=0.0,
        cycles=counters.cycles,
        instructions=round(counters.instructions),
        macs=macs,
        flop_per_cycle=2 * macs / counters.cycles if counters.cycles else 0.0,
        bound=counters.bound,
    )


def _without_profiler(spent: Sequence[Counters], unprofiled: Counters) -> list[Counters]:
    """The operators without what the profiler took in them, so that they add up to no more than `unprofiled`.

    ONNX Runtime composes a text about each node before it reads the clock again. That takes about as long for every
    node, so what all took more than unprofiled is shared evenly; none falls below zero.
    """
    columns = [
        _levelled([getattr(one, field.name) for one in spent], getattr(unprofiled, field.name))
        for field in fields(Counters)
    ]
    return [Counters(*row) for row in zip(*columns)]


def _levelled(values: Sequence[float], most: float) -> list[float]:
    """The values, each less the same amount but not below zero, so that their sum is at most `most`."""
    excess, levelled = max(0.0, sum(values) - most), list(values)
    ascending = sorted(range(len(values)), key=values.__getitem__)
    for done, index in enumerate(ascending):
        cut = min(values[index], excess / (len(values) - done))
        levelled[index] -= cut
        excess -= cut
    return levelled


def match(operators: Sequence[dict[str, Any]], graph: Sequence[GraphOperator], format: str) -> dict[int, int]:
    """Which operator of the artifact each operator of the runtime is: {index: index in `graph`}.

    ONNX Runtime keeps the name of the node that a fused one starts with, and only operators with weights are matched
    otherwise: by order, among those whose kinds agree. LiteRT has no names, so all are matched by order. What the
    runtime added has no match; what it fused into another is nobody's.
    """
    found: dict[int, int] = {}
    if format == "onnx":
        nodes = {operator.name: index for index, operator in enumerate(graph) if operator.name}
        for index, operator in enumerate(operators):
            if (name := _original(operator["name"], nodes)) in nodes:
                found[index] = nodes.pop(name)
    left = [index for index in range(len(operators)) if index not in found]
    taken = set(found.values())
    right = [index for index, its in enumerate(graph) if index not in taken and (its.macs or format != "onnx")]
    pairs = align(left, right, lambda mine, its: agreement(operators[mine]["kind"], graph[its]))
    return found | {left[mine]: right[its] for mine, its in pairs}


def parts(operators: Sequence[dict[str, Any]], graph: Sequence[GraphOperator], matched: Mapping[int, int]) -> list[int]:
    """How many of XNNPACK's own operators each operator of the runtime is: a copy is one for each tensor copied.

    Args:
        matched: as `match` gives it. A copy without a match counts as one.
    """
    return [
        _copied(graph[matched[index]]) if index in matched and operator["kind"].startswith(COPY) else 1
        for index, operator in enumerate(operators)
    ]


def _copied(operator: GraphOperator) -> int:
    return len(operator.out_shapes if operator.kind == "SPLIT" else operator.in_shapes)


def _original(name: str, nodes: Mapping[str, int]) -> str:
    """A node's name without what ONNX Runtime's optimisers append; names may have slashes of their own."""
    while name and name not in nodes:
        shorter = re.sub(r"(_nchwc|_token_\d+)$", "", name)
        name = shorter if shorter != name else name.rpartition("/")[0]
    return name


# Runtime's names that do not begin or end with the artifact's: pattern of the one, kinds of the other.
ALSO = [
    (re.compile(r"Convolution \(.*DWConv"), {"DEPTHWISE_CONV_2D", "CONV_2D"}),
    (re.compile(r"Convolution "), {"CONV_2D", "DEPTHWISE_CONV_2D"}),
    (re.compile(r"Fully Connected "), {"FULLY_CONNECTED", "CONV_2D", "BATCH_MATMUL"}),
    (re.compile(r"Batch Matrix Multiply "), {"BATCH_MATMUL", "FULLY_CONNECTED"}),
    (re.compile(r"Deconvolution "), {"TRANSPOSE_CONV"}),
    (re.compile(r"Global Average Pooling "), {"MEAN", "AVERAGE_POOL_2D"}),
    (re.compile(r"Average Pooling "), {"AVERAGE_POOL_2D"}),
    (re.compile(r"Max Pooling "), {"MAX_POOL_2D"}),
    (re.compile(r"Clamp "), {"RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1"}),
    (re.compile(r"Sigmoid "), {"LOGISTIC"}),
    (re.compile(r"Reciprocal Square Root "), {"RSQRT"}),
    (re.compile(r"Constant Pad "), {"PAD", "PADV2"}),
    (re.compile(re.escape(COPY)), {"CONCATENATION", "SPLIT"}),
    (re.compile(r"Convert "), {"QUANTIZE", "DEQUANTIZE", "CAST"}),
    (re.compile(r"(Fused|Nhwc|QLinear)+Conv"), {"Conv", "ConvInteger", "QLinearConv"}),
    (re.compile(r"FusedGemm|QGemm|FusedMatMul|MatMul.*|DynamicQuantizeMatMul"), {"Gemm", "MatMul", "MatMulInteger"}),
]


def agreement(kind: str, operator: GraphOperator) -> int:
    """How strongly a runtime's kind of operator may be one of the artifact's; 0: it is not."""
    plain, its = (re.sub("[^A-Z0-9]", "", text.upper()) for text in (kind.split(" (")[0], operator.kind))
    pattern = next((kinds for pattern, kinds in ALSO if pattern.match(kind)), set())
    if operator.kind not in pattern and not (its and (plain.startswith(its) or plain.endswith(its))):
        return 0
    return WEIGHTED if operator.macs or kind.startswith(COPY) else 1


def name_modules(graph: Sequence[GraphOperator], layers: Sequence[tuple[str, int]]) -> list[GraphOperator]:
    """The graph with the user's modules at those operators with weights which the artifact does not name (TFLite).

    Args:
        layers: (module, multiply-accumulates) in the order of execution, as `targets.graph.layers` gives them of an
            ONNX artifact of the same model. They are matched by order where the second are equal.
    """
    weighted = [index for index, operator in enumerate(graph) if operator.macs]
    pairs = align(weighted, layers, lambda index, layer: int(graph[index].macs == layer[1]))
    names = {weighted[mine]: layers[its][0] for mine, its in pairs}
    return [replace(operator, module=operator.module or names.get(index, "")) for index, operator in enumerate(graph)]


def _modules(rows: Sequence[OperatorTime]) -> list[str]:
    """The rows' modules; where unknown, the innermost that holds the nearest known ones on either side."""
    found = []
    for index, row in enumerate(rows):
        before = next((other.module for other in reversed(rows[:index]) if other.module), "")
        after = next((other.module for other in rows[index + 1 :] if other.module), "")
        pairs = zip(before.split(".")[:-1], after.split(".")[:-1])
        found.append(row.module or ".".join(part for part, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)))
    return found


def align(left: Sequence[A], right: Sequence[B], score: Callable[[A, B], int]) -> list[tuple[int, int]]:
    """The pairs (index, index) in rising order whose scores add up to the most (Needleman and Wunsch, 1970)."""
    best = [[0] * (len(right) + 1)]  # best[i][j]: of the first i and the first j
    for mine in left:
        above, row = best[-1], [0]
        for column, its in enumerate(right):
            value = max(above[column + 1], row[column])
            if (paired := score(mine, its)) and above[column] + paired > value:
                value = above[column] + paired
            row.append(value)
        best.append(row)
    pairs, i, j = [], len(left), len(right)
    while i and j:
        if best[i][j] == best[i - 1][j]:
            i -= 1
        elif best[i][j] == best[i][j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((i, j))
    return pairs[::-1]
