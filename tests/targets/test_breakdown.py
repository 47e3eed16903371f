"""The breakdown of an inference: operators matched, modules named, shares that add up, causes told."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.arm.records import CLOCK_GETTIME, GETPID
from targets.graph import GraphOperator
from targets.operators import RUNTIME, Counters, OperatorTime, agreement, align, break_down, match, name_modules, parts

RECORDED = json.loads(Path(__file__).with_name("profiles.json").read_text())
# The network that was recorded: kind by the names of ONNX and of TFLite, and multiply-accumulates.
SMALL = [
    ("Conv", "CONV_2D", (16, 3, 3, 3), (1, 16, 32, 32)),
    ("Conv", "DEPTHWISE_CONV_2D", (16, 1, 3, 3), (1, 16, 32, 32)),
    ("Conv", "CONV_2D", (32, 16, 1, 1), (1, 32, 32, 32)),
    ("Conv", "DEPTHWISE_CONV_2D", (32, 1, 3, 3), (1, 32, 16, 16)),
    ("Conv", "CONV_2D", (64, 32, 1, 1), (1, 64, 16, 16)),
    ("Conv", "DEPTHWISE_CONV_2D", (64, 1, 5, 5), (1, 64, 16, 16)),
    ("Conv", "CONV_2D", (128, 64, 1, 1), (1, 128, 16, 16)),
    ("GlobalAveragePool", "MEAN", (), (1, 128, 1, 1)),
]
MODULES = ["stem", "blocks.0.dw", "blocks.0.pw", "blocks.1.dw", "blocks.1.pw", "blocks.2.dw", "blocks.2.pw", ""]


def graph_of(format, modules=None):
    found = []
    for module, (onnx, tflite, weights, out) in zip(modules or [""] * len(SMALL), SMALL):
        if format == "tflite" and weights:
            count, depth, *window = weights
            weights = (1, *window, count) if tflite.startswith("DEPTHWISE") else (count, *window, depth)
            out = (out[0], *out[2:], out[1])
        shapes = ((), weights) if weights else ((),)
        found.append(GraphOperator("", onnx if format == "onnx" else tflite, shapes, (out,), module))
        if weights and format == "onnx":
            found.append(GraphOperator("", "Relu", (out,), (out,)))
    return found


def runs_of(name, cycles_per_instruction=0.5):
    return [
        (
            [Counters(instructions=n, core_cycles=n * cycles_per_instruction) for n in run["instructions"]],
            run["ends"],
        )
        for run in RECORDED[name]["runs"]
    ]


def test_litert_operators_are_matched_in_order_and_named_by_the_layers_of_the_model():
    graph = graph_of("tflite")
    layers = [(module, operator.macs) for module, operator in zip(MODULES, graph) if operator.macs]
    named = name_modules(graph, layers)
    assert [operator.module for operator in named] == MODULES
    operators = RECORDED["litert"]["operators"]
    assert match(operators, named, "tflite") == {index: index for index in range(8)}


def test_layers_that_the_artifact_does_not_have_leave_the_others_their_names():
    graph = graph_of("tflite")
    layers = [(module, operator.macs) for module, operator in zip(MODULES, graph) if operator.macs]
    merged = [*layers[:2], ("gone", 12345), *layers[3:]]
    assert [operator.module for operator in name_modules(graph, merged)] == [*MODULES[:2], "", *MODULES[3:]]


def test_onnx_operators_are_matched_by_name_even_out_of_order():
    operators = [
        {"name": "node_b", "kind": "FusedConv"},
        {"name": "node_a_token_3", "kind": "Split"},
        {"name": "node_c/MatMulScaleFusion//MatmulTransposeFusion/", "kind": "FusedMatMul"},
        {"name": "HardSigmoid_71", "kind": "HardSigmoid"},
        {"name": "/features/0/Conv_nchwc", "kind": "Conv"},
    ]
    graph = [
        GraphOperator("node_a", "Gather", ((3, 4),), ((4,),)),
        GraphOperator("node_h", "HardSigmoid", ((4,),), ((4,),)),
        GraphOperator("node_b", "Conv", ((1, 3, 5, 5), (8, 3, 1, 1)), ((1, 8, 5, 5),)),
        GraphOperator("node_c", "MatMul", ((2, 3), (3, 4)), ((2, 4),)),
        GraphOperator("/features/0/Conv", "Conv", (), ()),
    ]
    assert match(operators, graph, "onnx") == {0: 2, 1: 0, 2: 3, 4: 4}


def test_onnx_nodes_without_a_name_are_matched_by_their_order():
    operators = RECORDED["onnxruntime"]["operators"]
    found = match(operators, graph_of("onnx"), "onnx")
    assert found == {index: 2 * index for index in range(7)}  # a Relu, fused, follows each convolution


@pytest.mark.parametrize(
    ("kind", "its", "fits"),
    [
        ("Convolution (NHWC, QC8) IGEMM", "CONV_2D", True),
        ("Fully Connected (NC, F32) GEMM", "CONV_2D", True),
        ("Fully Connected (NC, F32) GEMM", "DEPTHWISE_CONV_2D", False),
        ("Multiply (ND)", "MUL", True),
        ("Static Reshape (NC)", "RESHAPE", True),
        ("Copy (NC, X32)", "CONCATENATION", True),
        ("Copy (NC, X8)", "SPLIT", True),
        ("Copy (NC, X32)", "RESHAPE", False),
        ("HardSwish (NC)", "HARD_SWISH", True),
        ("Clamp (NC)", "RELU6", True),
        ("Add (ND)", "MUL", False),
        ("QLinearConv", "Conv", True),
        ("FusedMatMul", "MatMul", True),
        ("QGemm", "Gemm", True),
        ("Conv", "Gemm", False),
    ],
)
def test_what_a_runtime_calls_an_operator(kind, its, fits):
    assert bool(agreement(kind, GraphOperator("", its, (), ()))) == fits


def joining(tensors):
    return GraphOperator("", "CONCATENATION", ((1, 4, 4, 8),) * tensors, ((1, 4, 4, 8 * tensors),))


def splitting(tensors):
    return GraphOperator("", "SPLIT", ((), (1, 4, 4, 8 * tensors)), ((1, 4, 4, 8),) * tensors)


RESHAPE = GraphOperator("", "RESHAPE", ((1, 4, 4, 16), (3,)), ((1, 16, 16),))


def test_a_copy_has_a_part_for_each_tensor_it_joins_or_splits_off():
    kinds = ["Copy (NC, X32)", "Static Reshape (NC)", "Copy (NC, X32)", "Copy (NC, X32)", "CONCATENATION"]
    operators = [{"name": kind, "kind": kind} for kind in kinds]
    graph = [joining(2), RESHAPE, splitting(3), joining(4), joining(6)]  # the last is the interpreter's own
    assert parts(operators, graph, match(operators, graph, "tflite")) == [2, 1, 3, 4, 1]
    assert parts(operators, [], {}) == [1] * 5


def test_copies_are_matched_even_if_the_runtime_reordered_what_is_around_them():
    kinds = ["Copy (NC, X32)", "Clamp (NC)", "Clamp (NC)", "Clamp (NC)"]
    clamp = GraphOperator("", "RELU6", ((1, 4),), ((1, 4),))
    graph = [clamp, clamp, clamp, joining(2)]
    assert match([{"name": kind, "kind": kind} for kind in kinds], graph, "tflite") == {0: 3}


@given(st.lists(st.integers(0, 3), max_size=6), st.lists(st.integers(0, 3), max_size=6))
def test_an_alignment_rises_and_scores_the_most(left, right):
    def score(a, b):
        return a if a == b else 0

    pairs = align(left, right, score)
    assert pairs == sorted(pairs) and all(score(left[i], right[j]) for i, j in pairs)
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in zip(pairs, pairs[1:]))
    most = max(
        sum(score(left[i], right[j]) for i, j in zip(rows, columns))
        for size in range(min(len(left), len(right)) + 1)
        for rows in combinations(range(len(left)), size)
        for columns in combinations(range(len(right)), size)
    )
    assert sum(score(left[i], right[j]) for i, j in pairs) == most


@pytest.mark.parametrize(
    ("name", "format", "unprofiled"), [("litert", "tflite", 2_041_451), ("onnxruntime", "onnx", 4_790_672)]
)
def test_the_shares_of_operators_and_runtime_add_up_to_the_unprofiled_inference(name, format, unprofiled):
    whole = Counters(instructions=unprofiled, core_cycles=unprofiled * 0.5)
    rows = break_down(
        runs_of(name),
        RECORDED[name]["operators"],
        graph_of(format, MODULES),
        whole,
        format=format,
        clock_ghz=2.0,
    )
    assert len(rows) == 9 and rows[-1].kind == RUNTIME and rows[-1].share < 0.01
    assert sum(row.share for row in rows) == pytest.approx(1, abs=1e-3)
    assert sum(row.milliseconds for row in rows) == pytest.approx(unprofiled * 0.5 / 2e6, rel=1e-3)
    pointwise = rows[6]
    assert pointwise.module == "blocks.2.pw" and pointwise.macs == 128 * 64 * 256
    assert pointwise.flop_per_cycle == pytest.approx(2 * pointwise.macs / pointwise.cycles)
    assert OperatorTime.from_json(json.loads(json.dumps(pointwise.to_json()))) == pointwise


def test_what_the_profiler_of_onnx_runtime_writes_is_no_operators():
    whole = Counters(instructions=4_790_672, core_cycles=4_790_672)
    rows = break_down(
        runs_of("onnxruntime", 1.0),
        RECORDED["onnxruntime"]["operators"],
        graph_of("onnx"),
        whole,
        format="onnx",
        clock_ghz=2.0,
    )
    recorded = min(ns[25] for ns in (run["instructions"] for run in RECORDED["onnxruntime"]["runs"]))
    assert recorded > 73_000 and rows[7].kind == "GlobalAveragePool"
    assert 40_000 < rows[7].instructions < 50_000  # it reads 32,768 values


def test_operators_never_add_up_to_more_than_the_inference():
    operators = [{"name": "a", "kind": "Add", "first": True}, {"name": "b", "kind": "Add", "first": True}]
    ends = [CLOCK_GETTIME, CLOCK_GETTIME, GETPID] * 2 + [CLOCK_GETTIME, GETPID] * 2
    records = [Counters(core_cycles=cycles) for cycles in (5, 10, 0, 0, 100, 0, 0, 0, 0, 0, 0)]
    rows = break_down([(records, ends)], operators, [], Counters(core_cycles=55), format="onnx", clock_ghz=1.0)
    assert [row.cycles for row in rows] == [0, 50, 5]  # of 110, 60 too many: 10 and 50
    assert sum(row.share for row in rows) == pytest.approx(1)


def test_the_fastest_run_of_an_operator_counts():
    operators = [{"name": "a", "kind": "Add (ND)", "first": True}, {"name": "b", "kind": "Add (ND)", "first": False}]
    took = ([1, 10, 40], [1, 30, 20])
    runs = [([Counters(core_cycles=cycles) for cycles in run], [CLOCK_GETTIME] * 3) for run in took]
    rows = break_down(runs, operators, [], Counters(core_cycles=35), format="tflite", clock_ghz=1.0)
    assert [row.cycles for row in rows] == [10, 20, 5]


def test_the_parts_of_a_copy_add_up_to_one_row():
    kinds = ["Copy (NC, X32)", "Static Reshape (NC)", "Copy (NC, X32)"]
    operators = [{"name": kind, "kind": kind, "first": index == 0} for index, kind in enumerate(kinds)]
    graph = [joining(4), RESHAPE, joining(2)]
    run = ([Counters(core_cycles=2**n) for n in range(8)], [CLOCK_GETTIME] * 8)
    whole = Counters(core_cycles=2**8 - 1)
    rows = break_down([run], operators, graph, whole, format="tflite", clock_ghz=1.0)
    assert [row.cycles for row in rows] == [2 + 4 + 8 + 16, 32, 64 + 128, 1]
    assert [row.out_shape for row in rows] == [(1, 4, 4, 32), (1, 16, 16), (1, 4, 4, 16), ()]
    assert sum(row.share for row in rows) == pytest.approx(1)


def test_operators_without_weights_take_the_module_that_holds_their_neighbours():
    operators = [
        {"name": kind, "kind": kind, "first": index == 0}
        for index, kind in enumerate(["Convolution (NHWC, F32) GEMM", "HardSwish (NC)", "Convolution (NHWC, F32) GEMM"])
    ]
    shapes = ((1, 4, 4, 8), (8, 1, 1, 8)), ((1, 4, 4, 8),)
    graph = [
        GraphOperator("", "CONV_2D", *shapes, "blocks.3.expand"),
        GraphOperator("", "HARD_SWISH", *shapes),
        GraphOperator("", "CONV_2D", *shapes, "blocks.3.project"),
    ]
    run = ([Counters(core_cycles=1)] * 4, [CLOCK_GETTIME] * 4)
    rows = break_down([run], operators, graph, Counters(core_cycles=4), format="tflite", clock_ghz=1.0)
    assert [row.module for row in rows] == ["blocks.3.expand", "blocks.3", "blocks.3.project", ""]


@pytest.mark.parametrize(
    ("counters", "bound"),
    [
        (Counters(instructions=100, accesses=20, core_cycles=50, dram_cycles=40), "compute"),
        (Counters(instructions=100, accesses=60, core_cycles=50, dram_cycles=40), "L1"),
        (Counters(instructions=100, accesses=60, core_cycles=50, dram_cycles=60), "DRAM"),
        (Counters(instructions=100, core_cycles=5, l2_cycles=9, l3_cycles=3), "L2"),
        (Counters(instructions=100, core_cycles=5, branch_cycles=7), "branches"),
        (Counters(instructions=100, core_cycles=5, thread_cycles=7), "threads"),
        (Counters(), "compute"),
    ],
)
def test_the_largest_cause_of_cycles_is_the_bound(counters, bound):
    assert counters.bound == bound


def test_counters_add_up_and_never_fall_below_zero():
    one = Counters(instructions=3, core_cycles=2, dram_cycles=1)
    assert (one + one).cycles == 6 and (one + one).instructions == 6
    assert one.less(one + one) == Counters()
