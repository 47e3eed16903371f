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


def xnnpack(*kinds):
    """The operators of one call."""
    return [{"kind": kind, "first": index == 0} for index, kind in enumerate(kinds)]


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


def test_an_operator_of_several_parts_has_the_records_of_all_of_them():
    operators = [{"first": True}, {"first": False}, {"first": True}, {"first": False}]
    found = owned(operators, [CLOCK_GETTIME] * 10, "tflite", [1, 4, 1, 2])
    assert found == [[1], [2, 3, 4, 5], [7], [8, 9]]
    with pytest.raises(ValueError, match="4 operators, but 10 reads"):
        owned(operators, [CLOCK_GETTIME] * 10, "tflite", [1, 3, 1, 2])


def test_a_runtime_that_does_not_read_the_clock_is_refused():
    with pytest.raises(ValueError, match="1 operators, but 0 reads"):
        owned([{"first": True}], [CLOSE], "tflite")
    with pytest.raises(ValueError, match="1 nodes, but 0 calls"):
        owned([{"first": True}], [CLOCK_GETTIME], "onnx")
    with pytest.raises(ValueError, match="node 0"):
        owned([{"first": True}], [CLOCK_GETTIME, GETPID, GETPID, GETPID], "onnx")


def test_executorch_runs_kernels_of_its_own_and_calls_of_xnnpack():
    operators = xnnpack("Clamp (NC)", "Add (ND)") + xnnpack("alias_copy")
    called = [GETPID, CLOCK_GETTIME, CLOCK_GETTIME, CLOCK_GETTIME, CLOCK_GETTIME, GETPID]
    assert owned(operators, [*called, GETPID, GETPID], "pte") == [[3], [4], [7]]
    with pytest.raises(ValueError, match="2 instructions, but 2 calls"):
        owned(operators, called, "pte")
    with pytest.raises(ValueError, match="2 operators, but 2 reads"):
        owned(operators, [GETPID, CLOCK_GETTIME, CLOCK_GETTIME, GETPID, GETPID, GETPID], "pte")


def test_copies_in_a_call_of_executorch_share_the_reads_left_over():
    def of_call(reads, *kinds):
        return owned(xnnpack(*kinds), [GETPID, *[CLOCK_GETTIME] * reads, GETPID], "pte")

    copy = "Copy (NC, X32)"
    assert of_call(6, "Clamp (NC)", copy, "Clamp (NC)") == [[3], [4, 5], [6]]
    assert of_call(9, copy, "Static Reshape (NC)", copy) == [[3, 4, 5], [6], [7, 8, 9]]
    with pytest.raises(ValueError, match="3 operators, but 8 reads"):
        of_call(8, copy, "Clamp (NC)", copy)
    with pytest.raises(ValueError, match="2 operators, but 5 reads"):
        of_call(5, "Clamp (NC)", "Add (ND)")


def test_each_call_of_executorch_has_its_own_number_of_tensors_a_copy():
    operators = xnnpack("Copy (NC, X32)") + xnnpack("Copy (NC, X32)", "Clamp (NC)")
    ends = [GETPID, *[CLOCK_GETTIME] * 4, GETPID, GETPID, *[CLOCK_GETTIME] * 7, GETPID]
    assert owned(operators, ends, "pte") == [[3, 4], [9, 10, 11, 12], [13]]
