"""Where the time goes, in a table and in a sentence."""

from __future__ import annotations

import pytest
from report_runs import operators
from rich.console import Console

from reports.operators import dearest, kind_of, operator_table, why


def printed(rows, top: int, width: int) -> list[str]:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(operator_table(rows, top, width))
    return console.export_text().splitlines()


def test_the_sentence_says_what_bounds_the_time_and_which_operator_is_the_dearest():
    assert why(operators()) == (
        "60 % of the time is bound by memory (DRAM); the dearest is layer4.0.conv1 (60 %), 1×1 512→2048 at 7×7, "
        "1.9 of 16 FLOP/cycle; 15 % goes to operators that only move or adjust data, most of it to STRIDED_SLICE."
    )


def test_without_shapes_nothing_is_said_of_what_only_moves_data():
    untold = [each.model_copy(update={"macs": 0, "shape": "", "peak_flop_per_cycle": None}) for each in operators()]
    assert why(untold) == "60 % of the time is bound by memory (DRAM); the dearest is layer4.0.conv1 (60 %)."


def test_a_runtime_that_ran_no_operators_took_all_of_the_time():
    assert "runtime's own" in why(operators()[-1:])


def test_the_slowest_operators_come_first_and_the_others_are_summed_up():
    head, first, others, runtime, total = printed(operators(), top=1, width=160)
    assert "layer4.0.conv1" in first and "1×1 512→2048 at 7×7" in first and first.split()[-1] == "DRAM"
    assert "12 %" in first  # of the core's peak
    assert others.startswith("2 others") and "35.0 %" in others
    assert runtime.startswith("the runtime itself") and "5.0 %" in runtime
    assert total.startswith("total") and "100.0 %" in total and "2.00" in total


@pytest.mark.parametrize("width", [60, 80, 100, 130, 200])
def test_a_row_is_a_line_at_any_width(width):
    lines = printed(operators(), top=9, width=width)
    assert len(lines) == 1 + 3 + 2 and all(len(line) <= width for line in lines)
    assert any("layer" in line for line in lines)


@pytest.mark.parametrize(
    ("kind", "short"),
    [
        ("Convolution (NHWC, F32) IGEMM", "Convolution F32 IGEMM"),
        ("Fully Connected (NC, QS8, QC8W) GEMM", "Fully Connected QS8 GEMM"),
        ("Add (ND)", "Add"),
        ("FusedConv", "FusedConv"),
    ],
)
def test_a_kind_without_its_layout(kind, short):
    assert kind_of(operators()[0].model_copy(update={"kind": kind})) == short


def test_the_runtimes_own_work_is_no_operator():
    assert [each.milliseconds for each in dearest(operators())] == [1.2, 0.4, 0.3]
