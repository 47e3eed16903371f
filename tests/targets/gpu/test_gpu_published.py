"""What is learned from the published tables: how rows become kernels; with the tables, that all is as told."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from targets.errors import UsageError
from targets.gpu import validation
from targets.gpu.dispatch import Unit
from targets.gpu.fit import fit
from targets.gpu.model import known_kernels, load
from targets.gpu.published import MEASURED, Network, Timed, kernels, rules
from targets.gpu.published import load as tables

TABLES = os.environ.get("PLANISH_GPU_TABLES")
needs_tables = pytest.mark.skipif(
    TABLES is None, reason="PLANISH_GPU_TABLES does not name the published tables' folder"
)
PAGE = Path(__file__).parents[3] / "reports" / "gpu-validation.json"


def row(index: int, operator: str, name: str, **cells: object) -> dict[str, str]:
    blank = {"in_hw": "28", "in_c": "64", "out_hw": "28", "stride": "1", "kernel": "1", "filters": "64", "group": "1"}
    made = blank | {"op": operator, "op_index": index, "gpu_kernel": name, "latency_us": 10.0} | cells
    return {key: str(value) for key, value in made.items()}


def test_kernels_between_the_rows_are_found_with_their_sizes():
    rows = [
        row(0, "CONV_2D", "convolution_2d_0_linked_:_relu_1"),
        row(1, "MEAN", "mean_2", out_hw=64, kernel=0),
        row(2, "CONV_2D", "fully_connected_3_linked_:_sigmoid_4", in_hw=1, out_hw=1),
        row(3, "CONV_2D", "convolution_2d_6_linked_:_add_7"),  # 5 scales what 2 averaged
        row(4, "CONV_2D", "convolution_2d_9", kernel=5, in_hw=32),  # 8 pads
    ]
    found = list(kernels(Unit("powervr", 1), rows))
    assert [one.microseconds for one in found] == [10.0] * 5 + [None]
    assert [one.kernel.choice for one in found] == ["pointwise", "mean", "dense", "pointwise", "conv", "depthwise"]
    assert found[-1].kernel.moves and found[-1].kernel.out_size == (28, 28) and found[-1].kernel.out_channels == 64
    assert (found[2].kernel.curves, found[3].kernel.adds) == (1, 1)


def test_a_kernel_of_two_rows_counts_once():
    name = "depthwise_conv_plus_1x1_conv_3_4_5_linked_:_relu_6"
    rows = [
        row(0, "CONV_2D", "convolution_2d_0", in_c=3, filters=8),
        row(1, "DEPTHWISE_CONV_2D", name, in_c=8, filters=1, kernel=3, in_hw=30),
        row(2, "CONV_2D", name, in_c=8, filters=16),
    ]
    found = list(kernels(Unit("apple-a9", 6), rows))
    assert [one.kernel.choice for one in found][:2] == ["pointwise", "separable"]
    assert sum(one.microseconds is not None for one in found) == 2
    assert found[1].kernel.out_channels == 16


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("sepreresnet10", "resnet"),
        ("resnetbc14b", "resnet"),
        ("mobilenetb_wd2", "mobilenet"),
        ("mobilenetv2b_w1", "mobilenetv2"),
        ("mobilenetv3_small_w5d4", "mobilenetv3"),
        ("regnety008", "regnet"),
        ("densenet169", "densenet"),
    ],
)
def test_relatives_are_of_one_family(name, family):
    assert Network(name, (), 1.0).family == family


def test_a_folder_without_the_tables_says_so(tmp_path):
    with pytest.raises(UsageError) as caught:
        tables(tmp_path, "Adreno 640")
    assert caught.value.code == "TABLES_MISSING"


def test_a_fit_finds_the_overhead_and_the_times_it_was_made_of():
    unit, shipped = MEASURED["Adreno 616"], load("adreno-616")
    every = [kernel for rows in known_kernels().values() for kernel in rows if kernel.choice in shipped.weights]
    timed = [Timed(kernel, shipped.microseconds(kernel)) for kernel in every]
    networks = [
        Network(str(n), tuple(timed[n::7]), 2.0 + 0.001 * sum(one.microseconds for one in timed[n::7]))
        for n in range(7)
    ]
    found = fit("Adreno 616", unit, networks)
    assert found.overhead.fixed_ms + 200 * found.overhead.dispatch_ms == pytest.approx(2.0, rel=0.2)
    assert found.overhead.scale == pytest.approx(1.0, rel=0.05)
    errors = sorted(abs(found.microseconds(one.kernel) / one.microseconds - 1) for one in timed)
    assert errors[len(errors) // 2] < 0.03


def test_the_committed_page_is_of_the_shipped_constants():
    record = json.loads(PAGE.read_text(encoding="utf-8"))
    stated = {one["gpu"]: one["error"] for one in record["left_out"] if one["way"] == "whole families"}
    assert stated.keys() == MEASURED.keys()
    for gpu, error in stated.items():
        assert vars(load(validation.slug(gpu)).error) == error


@needs_tables
def test_the_delegates_rules_have_no_exception_among_the_published_rows():
    for rule in rules(Path(TABLES)):
        assert rule.rows > 1000 and rule.exceptions == 0


@needs_tables
@pytest.mark.slow
def test_the_validation_repeats_itself_and_the_constants_are_those_that_ship():
    found = validation.run(Path(TABLES), lambda message: None)
    recorded = json.loads(PAGE.read_text(encoding="utf-8"))["left_out"]
    for one, stated in zip(found.left_out, recorded, strict=True):
        assert (one.gpu, one.way) == (stated["gpu"], stated["way"])
        assert one.error.median == pytest.approx(stated["error"]["median"], rel=1e-6)
        assert one.error.p90 == pytest.approx(stated["error"]["p90"], rel=1e-6)
