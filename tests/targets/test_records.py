"""Records of the plugin find the operator they belong to. What was recorded is in profiles.json: of small networks in
the emulated runtimes, the profiler's operators, the calls that cut the records, and the instructions of each record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from targets.arm.records import CLOCK_GETTIME, CLOSE, GETCPU, GETPID, owned

RECORDED = json.loads(Path(__file__).with_name("profiles.json").read_text())


def runs(name):
    recorded = RECORDED[name]
    for run in recorded["runs"]:
        found = owned(recorded["operators"], run["ends"], recorded["format"])
        yield [sum(run["instructions"][index] for index in mine) for mine in found], run


@pytest.mark.parametrize("name", RECORDED)
def test_every_operator_has_records_of_its_own_in_the_order_it_ran(name):
    recorded = RECORDED[name]
    for run in recorded["runs"]:
        found = owned(recorded["operators"], run["ends"], recorded["format"])
        everything = [index for mine in found for index in mine]
        assert len(found) == len(recorded["operators"]) and all(found)
        assert everything == sorted(set(everything))


def test_litert_operators_execute_all_but_the_runtimes_own_instructions():
    for spent, _ in runs("litert"):
        # The interpreter without a profiler executes 2,041,451 instructions for the same network.
        assert sum(spent) == 2_032_832
        assert spent[6] == 724_818  # 64 to 128 channels at 16 x 16


def test_an_operator_between_two_calls_of_xnnpack_is_told_from_what_prepares_the_second():
    operators = RECORDED["litert, two partitions left to the interpreter"]["operators"]
    assert [operator["first"] for operator in operators] == [True, False, True, True, False, True, True]
    for spent, _ in runs("litert, two partitions left to the interpreter"):
        assert dict(zip([operator["kind"] for operator in operators], spent))["L2_NORMALIZATION"] > 90_000
        assert sum(spent) < 1_750_150  # of the interpreter without a profiler, which also calls and prepares them


def test_a_pool_of_threads_reads_the_clock_more_often_and_not_always_equally_often():
    one, two = RECORDED["onnxruntime"], RECORDED["onnxruntime, two threads"]
    assert one["operators"][0]["kind"] == two["operators"][0]["kind"] == "FusedConv"
    assert all(len(run["ends"]) > len(one["runs"][0]["ends"]) for run in two["runs"])


def test_a_node_in_a_pool_begins_at_the_last_read_before_the_pool():
    node = [{"first": True}]
    tail = [CLOCK_GETTIME, GETPID, CLOCK_GETTIME, GETPID]  # of the executor and the run
    pooled = [CLOCK_GETTIME, CLOCK_GETTIME, GETCPU, CLOCK_GETTIME, CLOCK_GETTIME, CLOCK_GETTIME, GETPID]
    assert owned(node, pooled + tail, "onnx") == [[2, 3, 4, 5]]
    alone = [CLOCK_GETTIME, CLOCK_GETTIME, CLOCK_GETTIME, GETPID]
    assert owned(node, alone + tail, "onnx") == [[2]]


@pytest.mark.parametrize("name", RECORDED)
def test_a_call_too_few_is_refused(name):
    recorded = RECORDED[name]
    ends = recorded["runs"][0]["ends"]
    call = GETPID if recorded["format"] == "onnx" else CLOCK_GETTIME
    middle = [index for index, end in enumerate(ends) if end == call][len(recorded["operators"]) // 2 + 4]
    with pytest.raises(ValueError, match="operators|nodes|reads"):
        owned(recorded["operators"], ends[:middle] + ends[middle + 1 :], recorded["format"])


def test_a_runtime_that_does_not_read_the_clock_is_refused():
    with pytest.raises(ValueError, match="1 operators, but 0 reads"):
        owned([{"first": True}], [CLOSE], "tflite")
    with pytest.raises(ValueError, match="1 nodes, but 0 calls"):
        owned([{"first": True}], [CLOCK_GETTIME], "onnx")
    with pytest.raises(ValueError, match="node 0"):
        owned([{"first": True}], [CLOCK_GETTIME, GETPID, GETPID, GETPID], "onnx")


def test_executorch_runs_kernels_of_its_own_and_calls_of_xnnpack():
    operators = [{"first": True}, {"first": False}, {"first": True}]
    called = [GETPID, CLOCK_GETTIME, CLOCK_GETTIME, CLOCK_GETTIME, CLOCK_GETTIME, GETPID]
    assert owned(operators, [*called, GETPID, GETPID], "pte") == [[3], [4], [7]]
    with pytest.raises(ValueError, match="2 instructions, but 2 calls"):
        owned(operators, called, "pte")
    with pytest.raises(ValueError, match="2 operators, but 2 reads"):
        owned(operators, [GETPID, CLOCK_GETTIME, CLOCK_GETTIME, GETPID, GETPID, GETPID], "pte")
