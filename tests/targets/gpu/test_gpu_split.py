"""What a phone's CPU takes over from its GPU, and its price."""

from __future__ import annotations

import numpy
import pytest

from targets.cost import CostTable
from targets.delegation.gpu import on_gpu, read_gpu
from targets.errors import MissingEnvironmentError
from targets.gpu import modelled as modelled_module
from targets.gpu import process
from targets.gpu.graph import read
from targets.gpu.modelled import measure, modelled
from targets.gpu.split import PASSES, cpu_of, operator_of
from targets.operator import Operator, convolution, linear, matmul, pointwise
from targets.probes import tflite
from targets.profile import load_profile

PROFILE = load_profile("pixel-4-gpu")
TAKEN = frozenset({2, 3, 4, 5})  # of the artifact `split`
BYTES = 4 * 12 * 12 * 8  # of each of its activations
OPERATORS = [
    convolution(8, 16, 3, 2, 12),
    convolution(8, 16, 1, 1, 12),
    convolution(8, 8, 5, 1, 12, groups=8),
    convolution(16, 8, 3, 1, 12, groups=2),
    linear(8, 5),
    linear(8, 24, 16),
    matmul(2, 16, 8, 24),
    Operator("pool", 8, 8, (2, 2), (2, 2), 1, (12, 12), (6, 6)),
    Operator("max_pool", 8, 8, (3, 3), (3, 3), 1, (12, 12), (4, 4)),
    Operator("pool", 8, 8, (12, 12), (1, 1), 1, (12, 12), (1, 1)),
    Operator("resize", 8, 8, (1, 1), (1, 1), 1, (12, 12), (24, 24)),
    *(pointwise(kind, 8, (12, 12)) for kind in ("clamp", "hardswish", "gelu", "sigmoid", "softmax", "concat")),
    *(pointwise(kind, 8, (12, 12)) for kind in ("add", "mul", "scale")),
]


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: f"{operator.kind}-{operator.out_channels}")
def test_an_operator_of_a_file_is_priced_as_the_one_it_was_made_of(operator, tmp_path):
    path = tmp_path / "one.tflite"
    path.write_bytes(tflite.build([[operator]], numpy.random.default_rng(0)).content)
    graph = read(path)
    assert operator_of(graph, graph.nodes[-1]) == operator


def test_what_is_left_is_priced_by_the_phones_own_processor(split):
    found, whole = modelled(split, "tflite", PROFILE, taken=TAKEN), modelled(split, "tflite", PROFILE)
    left = found.split
    assert left.left == ("CONV_2D", "ATAN2") and left.priced_by_bytes == ("ATAN2",)
    assert (left.cpu, left.stands_in) == ("pixel-4-cpu", False)
    cpu = load_profile(left.cpu)
    moved = 2 * BYTES / (1e6 * cpu.dram.bandwidth_gb_s)  # read and written; of a tensor and itself one is read
    first = CostTable.load(cpu).milliseconds(convolution(3, 8, 3, 1, 12))
    assert left.left_ms == pytest.approx(first + moved)
    assert left.crossing_bytes == BYTES
    assert left.crossing_ms == pytest.approx(PASSES * BYTES / (1e6 * PROFILE.gpu.bandwidth_gb_s))
    kernels = sum(part.milliseconds for part in found.parts)
    assert found.milliseconds == pytest.approx(found.fixed_ms + kernels + left.milliseconds)
    assert found.low_ms < found.milliseconds < found.high_ms
    assert whole.split is None and len(found.parts) < len(whole.parts)


def test_what_the_cpu_reads_is_not_linked_to(split):
    """The convolution 3 writes what the CPU would read if it ran operator 4: nothing may be computed on its way out."""
    graph = read(split).part({2, 3})
    assert [node.place for node in graph.nodes] == [2, 3]
    assert {graph.nodes[0].outputs[0], graph.nodes[1].outputs[0]} <= graph.outputs


def test_with_nothing_on_the_gpu_nothing_of_it_is_paid(unknown):
    found = modelled(unknown, "tflite", PROFILE, taken=())
    assert found.fixed_ms == 0 and not found.parts and found.split.crossing_bytes == 0
    assert found.milliseconds == found.split.left_ms > 0


def test_where_a_phone_has_no_table_another_stands_in_and_is_named():
    assert cpu_of(load_profile("mi-11-gpu")) == (load_profile("pixel-4-cpu"), True)
    assert cpu_of(PROFILE) == (load_profile("pixel-4-cpu"), False)


def test_without_the_driver_all_is_priced_as_taken_and_that_is_said(split, monkeypatch):
    def missing(path):
        raise MissingEnvironmentError("the driver is not set up", where="here", why="test", fix="set it up", code="X")

    monkeypatch.setattr(modelled_module, "on_gpu", missing)
    found = measure(split, format="tflite", profile=PROFILE)
    assert found.state["placed"] is False and found.state["split"] is None


@pytest.mark.gpu
def test_a_measurement_tells_the_split_and_asks_once(driver, split, monkeypatch):
    first = measure(split, format="tflite", profile=PROFILE)
    told = first.state["split"]
    assert first.state["placed"] and told["partitions"] == 1 and told["left"] == {"CONV_2D": 1, "ATAN2": 1}
    assert told["crossing_bytes"] == read_gpu(split).crossing()[0] == BYTES
    assert told["split_ms"] == pytest.approx(told["left_ms"] + told["crossing_ms"])
    assert told["whole_ms"] == modelled(split, "tflite", PROFILE).milliseconds
    monkeypatch.setattr(process, "work", lambda *words, **settings: pytest.fail("asked again"))
    assert measure(split, format="tflite", profile=PROFILE) == first
    assert on_gpu(split).taken == TAKEN
