"""Cost tables: the shipped ones are whole and sound, a new one is learned from times, probes are real artifacts."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets import cost, cost_model
from targets.cost import CostTable, Operator
from targets.errors import MissingEnvironmentError
from targets.probes import onnx, tflite
from targets.probes.design import convolution, probes
from targets.profile import load_profile
from targets.runners import Timing
from targets.runners.artifact import Samples, open_artifact

SHIPPED = sorted({path.name.partition(".")[0] for path in cost.COMMITTED.glob("*.json")})
TABLES = {(name, format): CostTable.load(load_profile(name), format) for name in SHIPPED for format in cost.FORMATS}

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
    assert 0 < table.error.median <= table.error.p90 < 0.10, "of probes the fit has not seen"
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
    for name in SHIPPED:
        table = TABLES[name, "tflite"]
        ragged, full = (table.milliseconds(convolution(64, outputs, 1, 1, 28)) for outputs in (70, 72))
        assert ragged > 1.2 * full


@pytest.mark.parametrize("key", sorted(TABLES))
def test_every_class_of_the_design_has_a_price(key):
    for operator in probes():
        assert TABLES[key].milliseconds(operator) > 0


def test_the_design_is_always_the_same():
    assert probes() == probes() and len(set(probes())) == len(probes()) > 400


def test_a_table_is_learned_from_times(tmp_path, monkeypatch):
    """Times that follow a tile law are learned, without the call's own cost, and read back from the file."""
    call_ms = 0.0005

    def law(operator):
        if operator.kind == "conv" and not operator.is_depthwise:
            columns = math.ceil(operator.out_channels // operator.groups / 8)
            blocks = operator.groups * math.ceil(operator.pixels / 6) * columns
            depth = operator.kernel[0] * operator.kernel[1] * operator.in_channels // operator.groups
            return 1e-5 * blocks * depth + 2e-5 * blocks + 1e-4
        return 1e-6 * operator.macs + 1e-4

    def times(models, profile, format, progress):
        return [Timing((call_ms + sum(map(law, model)),), "test 1", None, None, {}) for model in models]

    monkeypatch.setattr(cost, "_time", times)
    monkeypatch.setattr(cost, "COMMITTED", tmp_path)
    profile = load_profile("pixel-4-cpu")
    built = cost.build(profile, formats=("onnx",))[0]
    assert built.invoke_ms == pytest.approx(call_ms, rel=1e-6)
    assert built.classes["dense"].median_error < 1e-3
    unseen = convolution(37, 51, 3, 1, 19)
    assert built.milliseconds(unseen) == pytest.approx(law(unseen), rel=0.01)
    assert CostTable.load(profile, "onnx") == built
    with pytest.raises(MissingEnvironmentError) as caught:
        CostTable.load(replace(profile, version="0" * 12), "onnx")
    assert caught.value.code == "COST_TABLE_MISSING" and "planish targets cost pixel-4-cpu" in caught.value.fix


def test_the_hosts_table_is_built_once_and_kept_in_the_cache(tmp_path, monkeypatch):
    calls = []

    def times(models, profile, format, progress):
        calls.append(format)
        return [
            Timing((0.001 + 1e-6 * sum(operator.macs for operator in model),), "test 1", None, None, {})
            for model in models
        ]

    monkeypatch.setenv("PLANISH_CACHE", str(tmp_path))
    monkeypatch.setattr(cost, "_time", times)
    first, second = (CostTable.load(load_profile("host"), "tflite") for _ in range(2))
    assert first == second and calls == ["tflite"]
    assert [path.parent.name for path in tmp_path.rglob("*.json")] == ["costs"]


OPERATORS = [
    convolution(3, 8, 3, 2, 15),
    convolution(8, 8, 5, 1, 9, groups=8),
    convolution(8, 12, 3, 1, 9, groups=2),
    convolution(6, 10, 1, 1, 9),
    Operator("linear", 10, 6, (1, 1), (1, 1), 1, (1, 1), (1, 1)),
    Operator("linear", 10, 6, (1, 1), (1, 1), 1, (7, 1), (7, 1)),
    Operator("elementwise", 6, 6, (1, 1), (1, 1), 1, (5, 5), (5, 5)),
    Operator("pool", 6, 6, (2, 2), (2, 2), 1, (8, 8), (4, 4)),
    Operator("pool", 6, 6, (8, 8), (1, 1), 1, (8, 8), (1, 1)),
]


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: cost_model.classify(operator, "onnx"))
def test_both_formats_build_the_operator_that_is_priced(operator, tmp_path):
    sizes = {}
    for format, builder in (("tflite", tflite), ("onnx", onnx)):
        content, samples = builder.build([operator], numpy.random.default_rng(0))
        (tmp_path / f"op.{format}").write_bytes(content)
        numpy.savez(tmp_path / "in.npz", **samples)
        artifact = open_artifact(tmp_path / f"op.{format}", format)
        artifact.feed(Samples(tmp_path / "in.npz", artifact)[0])
        artifact.invoke()
        (output,) = artifact.outputs().values()
        assert numpy.isfinite(output).all()
        sizes[format] = output.size
    assert sizes["tflite"] == sizes["onnx"] == operator.pixels * operator.out_channels
