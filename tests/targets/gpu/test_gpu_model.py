"""The model of a mobile GPU: published kernels and networks, what may not happen to a price, GPUs carried over."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from targets.cost import CostTable, build
from targets.errors import UsageError
from targets.gpu import published
from targets.gpu.carried import carried_interval, factors, is_measured, model_of
from targets.gpu.correction import MOST
from targets.gpu.cost_table import LEAST_MS, GpuCostTable
from targets.gpu.dispatch import Unit, convolution_work
from targets.gpu.kernel import Kernel, convolution, parts
from targets.gpu.lowering import lower
from targets.gpu.model import load
from targets.gpu.terms import TERMS, terms
from targets.operator import Operator, linear, matmul, pointwise
from targets.operator import convolution as layer
from targets.profile import CONSTANTS, list_profiles, load_profile

GPUS = [profile for profile in list_profiles() if profile.gpu]
MEASURED = [profile for profile in GPUS if is_measured(profile.gpu)]
SAMPLE = Path(__file__).with_name("published_sample.csv")  # rows of qed-usc/mobile-ml-benchmark@40ba833
MOBILENET_V1 = {  # milliseconds of a whole inference of mobilenet_w1, from the same source
    "pixel-4-gpu": 6.0038,
    "mi-8-se-gpu": 18.76,
    "galaxy-s10-exynos-gpu": 10.8721,
    "galaxy-a03s-gpu": 52.0,
    "iphone-7-gpu": 7.0,
    "iphone-xs-gpu": 3.19,
}
CHANNELS = st.sampled_from([4, 8, 12, 16, 24, 32, 40, 48, 64, 80, 96, 112, 128, 160, 192, 256, 320, 384, 512])
SIZES = st.sampled_from([7, 14, 28, 56, 112])


def sample(gpu: str) -> Iterator[tuple[Kernel, float]]:
    with SAMPLE.open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["gpu"] == gpu]
    for row in rows:
        (first, *_) = published.kernels(published.MEASURED[gpu], [row])
        yield first.kernel, first.microseconds


def mobilenet_v1(architecture: str) -> list[Kernel]:
    made = [convolution(architecture, (224, 224), (112, 112), 3, 32, (3, 3), 2)]
    side, channels = 112, 32
    stages = [(1, 64), (2, 128), (1, 128), (2, 256), (1, 256), (2, 512), *[(1, 512)] * 5, (2, 1024), (1, 1024)]
    for stride, wider in stages:
        out = side // stride
        made += [
            Kernel("depthwise", (side, side), (out, out), channels, channels, (3, 3), stride, channels),
            convolution(architecture, (out, out), (out, out), channels, wider, (1, 1), 1),
        ]
        side, channels = out, wider
    return [*made, Kernel("mean", (7, 7), (1, 1), 1024, 1024, (7, 7)), Kernel("dense", (1, 1), (1, 1), 1024, 1000)]


@pytest.mark.parametrize("gpu", ["Adreno 640", "Mali-G76 MP12"])
def test_published_kernels_are_within_what_is_stated(gpu):
    model = load(gpu.lower().replace(" ", "-"))
    errors = [abs(model.microseconds(kernel) / measured - 1) for kernel, measured in sample(gpu)]
    assert len(errors) > 20 and median(errors) < 0.05
    assert sorted(errors)[int(0.9 * len(errors))] < 0.25


@pytest.mark.parametrize("name", MOBILENET_V1)
def test_mobilenet_is_within_the_stated_interval(name):
    model = model_of(load_profile(name))
    ratio = model.milliseconds(mobilenet_v1(model.unit.architecture)) / MOBILENET_V1[name]
    assert 1 / model.interval < ratio < model.interval


@pytest.mark.parametrize("profile", MEASURED, ids=lambda profile: profile.name)
def test_the_stated_errors_meet_the_aim(profile):
    error = model_of(profile).error
    assert error.networks == 49
    assert error.median <= 0.08 and error.p90 <= 0.20 and error.spearman >= 0.98


@pytest.mark.parametrize("profile", GPUS, ids=lambda profile: profile.name)
@settings(deadline=None)
@given(inputs=CHANNELS, outputs=CHANNELS, size=SIZES, kernel=st.sampled_from([1, 3, 5]), stride=st.sampled_from([1, 2]))
def test_twice_the_work_of_one_kernel_is_not_cheaper(profile, inputs, outputs, size, kernel, stride):
    """But for what a work group wastes, a fifth at most of all these; another kernel may well be cheaper."""
    table = CostTable.load(profile)
    single = layer(inputs, outputs, kernel, stride, size)
    price = table.milliseconds(single)
    assert price > 0
    for twice in (
        layer(2 * inputs, outputs, kernel, stride, size),
        layer(inputs, 2 * outputs, kernel, stride, size),
        layer(inputs, outputs, kernel, stride, 2 * size),
    ):
        chosen = [lower(op, profile.gpu.architecture)[0][0].choice for op in (single, twice)]
        assert chosen[0] != chosen[1] or table.milliseconds(twice) > 0.75 * price


@settings(deadline=None)
@given(channels=CHANNELS, size=SIZES, times=st.integers(2, 4))
def test_every_kind_of_operator_has_a_price_that_grows(channels, size, times):
    table = CostTable.load(load_profile("pixel-4-gpu"))

    def operators(factor: int) -> list[Operator]:
        wide, side = factor * channels, (size, size)
        kinds = ("clamp", "hardswish", "gelu", "silu", "sigmoid", "softmax", "norm", "add", "mul", "scale")
        return [
            *(pointwise(kind, wide, side) for kind in (*kinds, "resize", "transpose", "concat")),
            Operator("pool", wide, wide, side, side, 1, side, (1, 1)),
            Operator("max_pool", wide, wide, (3, 3), (2, 2), 1, side, (size // 2, size // 2)),
            linear(channels, wide),
            linear(channels, wide, size),
            matmul(3, size, wide, size),
        ]

    for small, large in zip(operators(1), operators(times), strict=True):
        assert table.milliseconds(small) >= LEAST_MS
        assert table.milliseconds(large) >= 0.8 * table.milliseconds(small)


def test_the_table_is_the_planners_and_repeats_itself():
    profile = load_profile("pixel-4-gpu")
    first, second = CostTable.load(profile), GpuCostTable.load(profile)
    assert isinstance(first, GpuCostTable) and (first.profile, first.format) == ("pixel-4-gpu", "tflite")
    assert first.invoke_ms > 0 and 0 < first.error.median < first.error.p90 and "modelled" in first.source
    assert repr((first.classes, first.invoke_ms)) == repr((second.classes, second.invoke_ms))
    ops = [layer(16 * n, 24 * n, 3, 1, 14) for n in range(1, 9)]
    assert [first.milliseconds(op) for op in ops] == [second.milliseconds(op) for op in reversed(ops)][::-1]


def test_what_is_asked_again_is_told_a_hundred_thousand_times_a_second():
    table = CostTable.load(load_profile("pixel-4-gpu"))
    ops = [layer(channels, channels, 3, 1, size) for channels in range(8, 136, 8) for size in (7, 14, 28)]

    def ask(times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            for op in ops:
                table.milliseconds(op)
        return times * len(ops) / (time.perf_counter() - start)

    ask(1)
    assert max(ask(100) for _ in range(5)) > 100_000


def test_a_sum_behind_a_layer_takes_no_dispatch_and_a_scaling_does():
    table = CostTable.load(load_profile("mi-8-se-gpu"))
    add, scale = (table.milliseconds(pointwise(kind, 64, (56, 56))) for kind in ("add", "scale"))
    assert LEAST_MS < add < scale / 2
    assert table.milliseconds(pointwise("clamp", 64, (56, 56))) == LEAST_MS


def test_a_width_that_leaves_a_work_group_half_empty_costs_more():
    """38 layers of blocks leave room for 6 of the 7 threads of a row; 36 leave room for all."""
    unit = Unit("adreno-6xx", 1)
    narrow, wide = (convolution("adreno-6xx", (14, 14), (14, 14), 48, 4 * depth, (1, 1), 1) for depth in (72, 76))
    assert (convolution_work(unit, narrow).groups, convolution_work(unit, wide).groups) == (7, 14)
    assert convolution_work(unit, narrow).threads == convolution_work(unit, wide).threads == 256
    model = load("adreno-616")
    assert model.microseconds(wide) > 1.4 * model.microseconds(narrow)


@pytest.mark.parametrize(
    ("architecture", "size", "channels", "choice"),
    [
        ("mali-bifrost", 56, 64, "winograd"),
        ("mali-bifrost", 56, 60, "conv"),
        ("mali-bifrost", 14, 256, "conv"),  # 16 tiles
        ("adreno-6xx", 56, 64, "conv"),
        ("adreno-6xx", 56, 128, "winograd"),
        ("adreno-6xx", 28, 128, "conv"),  # 49 tiles, of 128
        ("adreno-7xx", 32, 128, "winograd"),  # 64 tiles
        ("apple-a11", 28, 64, "winograd"),
    ],
)
def test_winograd_is_taken_where_the_delegate_takes_it(architecture, size, channels, choice):
    assert convolution(architecture, (size, size), (size, size), channels, channels, (3, 3), 1).choice == choice


def test_a_kernel_nobody_measured_is_its_parts():
    winograd = convolution("adreno-6xx", (56, 56), (56, 56), 128, 128, (3, 3), 1)
    model = load("adreno-640")
    assert winograd.choice not in model.weights and winograd.dispatches == 3
    assert [part.choice for part in parts(winograd)] == ["depthwise", "pointwise", "depthwise"]
    assert model.microseconds(winograd) == sum(model.microseconds(part) for part in parts(winograd))
    assert model.microseconds(winograd) < model.microseconds(replace(winograd, choice="conv"))


@pytest.mark.parametrize("profile", GPUS, ids=lambda profile: profile.name)
@settings(deadline=None)
@given(inputs=CHANNELS, outputs=CHANNELS, size=SIZES, kernel=st.sampled_from([1, 3, 5, 7]))
def test_no_convolution_is_faster_than_the_hardware(profile, inputs, outputs, size, kernel):
    """Two operations a multiply-add, twice as many in half precision, of which Winograd needs a quarter."""
    made = convolution(profile.gpu.architecture, (size, size), (size, size), inputs, outputs, (kernel, kernel), 1)
    peak = 4 * profile.gpu.lanes * profile.gpu.clock_mhz  # operations a microsecond
    saved = 4 if made.choice == "winograd" else 1
    assert made.flops / model_of(profile).microseconds(made) < saved * peak


@pytest.mark.parametrize("profile", GPUS, ids=lambda profile: profile.name)
@settings(deadline=None)
@given(channels=CHANNELS, size=SIZES)
def test_the_correction_is_bounded_and_absent_far_from_what_was_measured(profile, channels, size):
    model = model_of(profile)
    kernel = convolution(profile.gpu.architecture, (size, size), (size, size), channels, channels, (3, 3), 2)
    assume(kernel.choice == "conv" and model.uncorrected(kernel) > 2)
    assert 0.99 * 2.718**-MOST < model.microseconds(kernel) / model.uncorrected(kernel) < 1.01 * 2.718**MOST
    far = replace(kernel, in_size=(1, 1 << 20), out_size=(1, 1 << 20), in_channels=1 << 14, out_channels=1 << 14)
    assert model.microseconds(far) == pytest.approx(model.uncorrected(far), rel=0.05)


def test_a_gpu_carried_over_has_a_wider_interval_and_its_own_speed():
    slow, fast = load_profile("pixel-4-gpu"), load_profile("galaxy-s23-gpu")
    assert is_measured(slow.gpu) and not is_measured(fast.gpu)
    assert model_of(fast).interval >= carried_interval() > model_of(slow).interval
    times = factors(slow.gpu, fast.gpu)
    assert times["fixed"] == 1.0
    assert times["compute"] == pytest.approx(585 * 768 / (719 * 2304)) and times["latency"] == pytest.approx(585 / 719)
    assert times["memory"] == pytest.approx(34.1 / 67.2)
    heavy = [convolution("adreno-6xx", (28, 28), (28, 28), 256, 256, (3, 3), 1)]
    assert model_of(fast).milliseconds(heavy) < model_of(slow).milliseconds(heavy) / 2


def test_single_precision_is_a_rule_with_a_wide_interval():
    profile = load_profile("pixel-4-gpu")
    half, single = model_of(profile), model_of(profile, "fp32")
    heavy = [convolution("adreno-6xx", (28, 28), (28, 28), 256, 256, (3, 3), 1)]
    assert half.milliseconds(heavy) < single.milliseconds(heavy) < 2.5 * half.milliseconds(heavy)
    assert single.interval >= carried_interval() > half.interval
    op = layer(256, 256, 3, 1, 28)
    assert GpuCostTable.load(profile, precision="fp32").milliseconds(op) > CostTable.load(profile).milliseconds(op)


def test_the_costs_of_a_gpu_are_not_timed():
    with pytest.raises(UsageError) as caught:
        build(load_profile("pixel-4-gpu"))
    assert caught.value.code == "COSTS_NOT_TIMED" and "--refit" in caught.value.fix


@pytest.mark.parametrize("path", sorted(CONSTANTS.glob("*-*.json")), ids=lambda path: path.stem)
def test_constants_are_whole(path):
    model = load(path.stem)
    assert model.source.startswith("qed-usc/mobile-ml-benchmark@40ba833")
    for choice, weights in model.weights.items():
        assert len(weights) == len(TERMS[choice]) and min(weights) >= 0 and max(weights) > 0
    kernel = convolution(model.unit.architecture, (28, 28), (28, 28), 64, 64, (1, 1), 1)
    assert len(terms(model.unit, kernel)) == len(TERMS["pointwise"])
