"""The accelerator's report as it stands in its log, and the subset of operators that it takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.errors import UsageError
from targets.gpu.gpus import GPUS, STAND_INS, driven, find_gpu
from targets.gpu.partition import subsets, taken
from targets.gpu.report import Report, read_report

LOG = """\
INFO: [gpu_environment.h:155] Created LiteRT GpuEnvironment.
ERROR: Following operations are not supported by GPU delegate:
ATAN2: No support of few identical inputs in the same operation.
GATHER: Only support 1D indices
  of a constant.
ATAN2: No support of few identical inputs in the same operation.
CUSTOM TopK: custom op is not supported.
4 operations will run on the GPU, and the remaining 12 operations will run on the CPU.
I0000 00:00:1795347029.503727   31576 delegate_kernel.cc:984] Initializing WebGPU-based API from graph.
"""


def test_a_report_has_the_shares_and_each_reason_once():
    report = read_report(LOG, operators=16, accelerated=False)
    assert (report.gpu_operators, report.cpu_operators, report.accelerated) == (4, 12, False)
    assert report.refused == (
        ("ATAN2", "No support of few identical inputs in the same operation."),
        ("GATHER", "Only support 1D indices of a constant."),
        ("CUSTOM TopK", "custom op is not supported."),
    )


def test_an_artifact_taken_whole_has_no_report():
    assert read_report("INFO: nothing to say", operators=7, accelerated=True) == Report(7, 0, ())


def test_a_reason_comes_without_the_name_of_a_tensor():
    lines = "RESHAPE: Tensor dimensions must be less than 5. t1\nRESHAPE: Tensor dimensions must be less than 5. t2"
    log = f"not supported by GPU delegate:\n{lines}\n1 operations will run on the GPU, and the remaining 2 operations"
    report = read_report(f"{log} will run on the CPU.", operators=3, accelerated=False, tensors={"t1", "t2"})
    assert report.refused == (("RESHAPE", "Tensor dimensions must be less than 5."),)


def test_none_on_the_gpu():
    line = "No operations will run on the GPU, and all 3 operations will run on the CPU."
    report = read_report(f"not supported by GPU delegate:\nSIGN: why\n{line}", operators=3, accelerated=False)
    assert report == Report(0, 3, (("SIGN", "why"),))


def test_a_log_without_a_report_is_not_made_up():
    with pytest.raises(ValueError, match="does not say"):
        read_report("ERROR: something else", operators=3, accelerated=False)


def chain(length: int) -> tuple[list[set[int]], list[set[int]]]:
    """Operators one behind the other."""
    return [{index} for index in range(length)], [{index + 1} for index in range(length)]


def test_an_unknown_operator_cuts_a_chain_and_the_longer_part_is_taken():
    reads, writes = chain(7)
    assert subsets(reads, writes, {0, 1, 3, 4, 5, 6}) == [[0, 1], [2], [3, 4, 5, 6]]
    assert taken(reads, writes, {0, 1, 3, 4, 5, 6}) == [3, 4, 5, 6]
    assert taken(reads, writes, {0, 1, 2, 4, 5, 6}) == [0, 1, 2], "of equals the first"
    assert taken(reads, writes, set()) == []


def test_a_branch_beside_an_unknown_operator_runs_with_what_comes_before():
    # 0 -> (1 unknown, 2) -> 3 reads both
    reads, writes = [{0}, {1}, {1}, {2, 3}], [{1}, {2}, {3}, {4}]
    assert subsets(reads, writes, {0, 2, 3}) == [[0, 2], [1], [3]]


@st.composite
def graphs(draw) -> tuple[list[set[int]], list[set[int]], set[int]]:
    """Operators that read what earlier ones, or the input 0, have written."""
    count = draw(st.integers(1, 12))
    reads = [draw(st.sets(st.integers(0, index), min_size=1, max_size=3)) for index in range(count)]
    return reads, [{index + 1} for index in range(count)], draw(st.sets(st.integers(0, count - 1)))


@given(graphs())
def test_subsets_hold_each_operator_once_of_one_kind_and_behind_its_operands(graph):
    reads, writes, known = graph
    found = subsets(reads, writes, known)
    assert sorted(index for subset in found for index in subset) == [*range(len(reads))]
    there = {0}
    for subset in found:
        assert len({index in known for index in subset}) == 1
        for index in subset:
            assert reads[index] <= there
            there |= writes[index]
    kinds = [subset[0] in known for subset in found]
    assert all(one != other for one, other in zip(kinds, kinds[1:])), "neighbours of a kind would be one subset"


def test_every_stand_in_is_a_gpu_that_mesa_drives():
    assert {*STAND_INS.values()} <= {*GPUS} and not {*STAND_INS} & {*GPUS}
    assert all(name.split("-")[0] == stand_in.split("-")[0] for name, stand_in in STAND_INS.items())
    assert find_gpu("adreno-640") == GPUS["adreno-630"]


@pytest.mark.parametrize(
    ("name", "gpu"),
    [
        ("Adreno 640", "adreno-630"),
        ("Adreno 740", "adreno-740"),
        ("Mali-G76 MP12", "mali-g76"),
        ("Mali-G610 MC4", "mali-g610"),
        ("Mali-G710 MP7", "mali-g610"),
        ("PowerVR GE8320", None),
        ("Apple G11P", None),
    ],
)
def test_the_gpu_of_a_profile_is_found_by_its_name(name, gpu):
    assert driven(name) == (GPUS[gpu] if gpu else None)


def test_an_unknown_gpu_is_refused_with_the_nearest():
    with pytest.raises(UsageError) as caught:
        find_gpu("adreno-741")
    assert caught.value.code == "GPU_UNKNOWN" and "adreno-7" in caught.value.fix
