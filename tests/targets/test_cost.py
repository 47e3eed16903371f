"""Cost tables: the shipped ones are whole and sound, a new one is learned from times, probes are real artifacts."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets import cost, cost_model
from targets.cost import CostTable, Operator
from targets.errors import MissingEnvironmentError
from targets.operator import attention, convolution, linear, matmul, pointwise
from targets.probes import design, onnx, tflite, timing
from targets.probes.timing import Overheads
from targets.profile import load_profile
from targets.runners.artifact import Samples, open_artifact

SHIPPED = sorted(tuple(path.name.split(".")[:2]) for path in cost.COMMITTED.glob("*.json"))
TABLES = {(name, format): CostTable.load(load_profile(name), format) for name, format in SHIPPED}

tables = st.sampled_from(sorted(TABLES))
channels = st.integers(1, 512)
sizes = st.integers(4, 112)


@st.composite
def convolutions(draw):
    kernel, stride = draw(st.sampled_from([1, 3, 5, 7])), draw(st.sampled_from([1, 2]))
    inputs = draw(channels)
    if draw(st.booleans()):
        return convolution(inputs, inputs, kernel, stride, draw(sizes), groups=inputs)
    return convolution(inputs, draw(channels), kernel, stride, draw(sizes))


@pytest.mark.parametrize("key", sorted(TABLES))
def test_a_shipped_table_states_its_error_and_its_source(key):
    table = TABLES[key]
    assert (table.profile, table.format) == key
    assert 0 < table.error.median <= table.error.p90, "of operators the fit has not seen"
    assert table.error.median <= 0.05 and table.error.p90 <= 0.20
    assert f"planish targets cost {table.profile}" in table.source
    assert 0 < table.invoke_ms < 0.02
    assert all(weight >= 0 for model in table.classes.values() for weight in model.weights_ms)


@given(tables, convolutions())
def test_a_convolution_costs_something_and_always_the_same(key, operator):
    table = TABLES[key]
    ms = table.milliseconds(operator)
    assert math.isfinite(ms) and ms > 0
    assert table.milliseconds(replace(operator)) == ms


@given(tables, convolutions(), st.integers(1, 64))
def test_more_input_channels_never_cost_less(key, operator, more):
    if operator.is_depthwise:
        wider = convolution(
            operator.in_channels + more,
            operator.in_channels + more,
            operator.kernel[0],
            operator.stride[0],
            operator.in_size[0],
            groups=operator.in_channels + more,
        )
        if operator.in_channels == 1:
            return  # a single channel is no depthwise convolution
    else:
        wider = replace(operator, in_channels=operator.in_channels + more)
    assert TABLES[key].milliseconds(wider) >= TABLES[key].milliseconds(operator)


@given(tables, channels, st.integers(1, 32), st.integers(1, 32), st.sampled_from([1, 3, 5]), sizes)
def test_more_output_channels_never_cost_less_in_whole_tiles(key, inputs, few, more, kernel, size):
    narrow, wide = (convolution(inputs, 8 * count, kernel, 1, size) for count in (few, few + more))
    assert TABLES[key].milliseconds(wide) >= TABLES[key].milliseconds(narrow)


@given(tables, channels, channels, st.sampled_from([1, 3, 5, 7]), sizes, st.integers(1, 50))
def test_a_larger_image_never_costs_less(key, inputs, outputs, kernel, size, more):
    small, large = (convolution(inputs, outputs, kernel, 1, side) for side in (size, size + more))
    assert TABLES[key].milliseconds(large) >= TABLES[key].milliseconds(small)


def test_a_few_channels_beside_a_tile_cost_more_than_filling_it():
    """XNNPACK's rule for 1x1 convolutions: 70 channels run in the kernel that is two channels wide."""
    for table in (table for (_, format), table in TABLES.items() if format == "tflite"):
        ragged, full = (table.milliseconds(convolution(64, outputs, 1, 1, 28)) for outputs in (70, 72))
        assert ragged > 1.2 * full


def test_rows_of_weights_past_the_prefetchers_reach_are_cold():
    """Of four rows read side by side the second is cold when a row is longer than the reach, the third when two are."""
    memory = cost_model.Memory((), 40 * 64.0)
    cold = {inputs: cost_model.cold_rows(convolution(inputs, 6, 1, 1, 1), memory) for inputs in (213, 214, 321, 641)}
    assert cold == {213: 0, 214: 2, 321: 4, 641: 6}, "two groups of four rows"
    assert cost_model.cold_rows(convolution(641, 6, 1, 1, 1), replace(memory, reach=None)) == 0
    near, far = (TABLES["pixel-4-cpu", "onnx"].milliseconds(convolution(inputs, 256, 1, 1, 1)) for inputs in (213, 214))
    assert far > 1.1 * near, "the A76 runs 40 lines ahead"


@pytest.mark.parametrize("key", sorted(TABLES))
def test_every_class_of_the_design_has_a_price(key):
    for operator in DESIGNED:
        assert TABLES[key].milliseconds(operator) > 0


DESIGNED = tuple(dict.fromkeys(op for chains in design.artifacts() for chain in chains for op in chain[1:]))


def test_the_design_is_always_the_same_and_large():
    assert design.artifacts() == design.artifacts() and design.unseen_artifacts() == design.unseen_artifacts()
    assert len(DESIGNED) > 2000
    assert {op.kernel[0] for op in DESIGNED if op.kind == "conv"} >= {1, 2, 3, 5, 7, 9, 11}


def test_what_a_table_is_judged_on_was_not_learned():
    unseen = {op for chains in design.unseen_artifacts() for chain in chains for op in chain[1:]} - set(DESIGNED)
    assert len(unseen) >= design.UNSEEN


def test_every_operator_of_a_chain_fits_behind_its_predecessor():
    for chains in [*design.artifacts(), *design.unseen_artifacts()]:
        for chain in chains:
            for before, after in zip(chain, chain[1:]):
                # A head's tokens and the values of a concatenation are counted differently on either side.
                if {before.kind, after.kind} & {"transpose", "softmax", "matmul", "concat"}:
                    continue
                assert (before.out_channels, before.out_size) == (after.in_channels, after.in_size)


def law(operator):
    if operator.kind == "conv" and not operator.is_depthwise:
        columns = math.ceil(operator.out_channels // operator.groups / 8)
        blocks = operator.groups * math.ceil(operator.pixels / 6) * columns
        depth = operator.kernel[0] * operator.kernel[1] * operator.in_channels // operator.groups
        return 1e-5 * blocks * depth + 2e-5 * blocks + 1e-4
    return 1e-6 * operator.pixels * operator.out_channels + 1e-4


@pytest.fixture
def lawful(monkeypatch, tmp_path):
    """A core on which operators take what `law` says; tables are written to `tmp_path`."""

    def chains(artifacts, profile, format, beside, progress):
        return [[(op, law(op)) for chain in part for op in chain[1:]] for part in artifacts]

    monkeypatch.setattr(timing, "overheads", lambda *_: Overheads(0.0005, 0.0, "test 1", {}))
    monkeypatch.setattr(timing, "time_chains", chains)
    monkeypatch.setattr(timing, "time_singles", lambda operators, *_: [(op, law(op)) for op in operators])
    monkeypatch.setattr(design, "ARTIFACTS", 3)
    monkeypatch.setattr(cost, "COMMITTED", tmp_path)
    monkeypatch.setattr(cost_model, "ROWS", (4, 6))
    monkeypatch.setattr(cost_model, "COLUMNS", (4, 8))
    monkeypatch.setattr(cost_model, "DEPTH", (1, 2))


def test_a_table_is_learned_from_times(lawful):
    """Times that follow a tile law are learned and read back from the file, and so is the error on other operators."""
    profile = load_profile("pixel-4-cpu")
    built = cost.build(profile, formats=("onnx",))[0]
    assert built.invoke_ms == 0.0005
    assert built.classes["dense"].tile[:2] == (6, 8)
    unseen = convolution(37, 51, 3, 1, 19)
    assert built.milliseconds(unseen) == pytest.approx(law(unseen), rel=0.01)
    assert built.error.median < 0.01 and "error on 270 others" in built.source
    assert CostTable.load(profile, "onnx") == built
    with pytest.raises(MissingEnvironmentError) as caught:
        CostTable.load(replace(profile, version="0" * 12), "onnx")
    assert caught.value.code == "COST_TABLE_MISSING" and "planish targets cost pixel-4-cpu" in caught.value.fix


def test_planning_may_ask_a_hundred_thousand_times_a_second(lawful):
    table = cost.build(load_profile("pixel-4-cpu"), formats=("tflite",))[0]
    new = [convolution(inputs, outputs, 3, 1, 14) for inputs in range(1, 101) for outputs in range(1, 51)]
    start = time.perf_counter()
    for operator in new:
        table.milliseconds(operator)
    missed = (time.perf_counter() - start) / len(new)
    start = time.perf_counter()
    for operator in new:
        table.milliseconds(operator)
    hit = (time.perf_counter() - start) / len(new)
    assert hit < 10e-6 * 3 and missed < 10e-6 * 10, "three and ten times as slow, for a busy machine"


def test_the_hosts_table_is_built_once_and_kept_in_the_cache(lawful, tmp_path, monkeypatch):
    monkeypatch.setenv("PLANISH_CACHE", str(tmp_path / "cache"))
    first = CostTable.load(load_profile("host"), "tflite")
    monkeypatch.setattr(cost, "build", None)  # not again
    assert CostTable.load(load_profile("host"), "tflite") == first
    assert [path.parent.name for path in tmp_path.rglob("*.json")] == ["costs"]


OPERATORS = [
    convolution(3, 8, 3, 2, 15),
    convolution(8, 8, 5, 1, 9, groups=8),
    convolution(8, 12, 3, 1, 9, groups=2),
    convolution(6, 10, 1, 1, 9),
    convolution(6, 10, 2, 1, 9),
    linear(10, 6),
    linear(10, 6, tokens=7),
    matmul(2, 5, 4, 3),
    *(pointwise(kind, 6, (5, 5)) for kind in ("add", "mul", "scale", "clamp", "hardswish", "gelu", "silu", "sigmoid")),
    *(pointwise(kind, 6, (7, 1)) for kind in ("softmax", "norm")),
    pointwise("transpose", 6, (7, 1), 2),
    pointwise("concat", 6, (5, 5)),
    Operator("resize", 6, 6, (1, 1), (1, 1), 1, (5, 5), (10, 10)),
    Operator("pool", 6, 6, (2, 2), (2, 2), 1, (8, 8), (4, 4)),
    Operator("max_pool", 6, 6, (3, 3), (2, 2), 1, (9, 9), (4, 4)),
    Operator("pool", 6, 6, (8, 8), (1, 1), 1, (8, 8), (1, 1)),
]


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: cost_model.classify(operator, "onnx"))
def test_both_formats_build_the_operator_that_is_priced(operator, tmp_path):
    sizes = {}
    for format, builder in (("tflite", tflite), ("onnx", onnx)):
        probe = builder.build([(operator,)], numpy.random.default_rng(0))
        (tmp_path / f"op.{format}").write_bytes(probe.content)
        numpy.savez(tmp_path / "in.npz", **probe.samples)
        artifact = open_artifact(tmp_path / f"op.{format}", format)
        artifact.feed(Samples(tmp_path / "in.npz", artifact)[0])
        artifact.invoke()
        (output,) = artifact.outputs().values()
        assert numpy.isfinite(output).all() and len(probe.nodes) == 1
        sizes[format] = output.size
    heads = operator.groups if operator.kind == "matmul" else 1
    assert sizes["tflite"] == sizes["onnx"] == heads * operator.pixels * operator.out_channels


def test_attention_is_made_of_priced_operators():
    parts = attention(tokens=49, channels=64, heads=4)
    products = sum(op.macs for op in parts if op.kind in ("linear", "matmul"))
    assert products == 4 * 49 * 64 * 64 + 2 * 49 * 49 * 64
    designed = {cost_model.classify(op, "tflite") for op in DESIGNED}
    assert {cost_model.classify(op, "tflite") for op in parts} <= designed
