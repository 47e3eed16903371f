"""The page of the models of mobile GPUs."""

from __future__ import annotations

import json

from reports import gpu_validation as page
from targets.gpu.model import Error
from targets.gpu.published import Rule
from targets.gpu.validation import CarriedOver, LeftOut, Naive, Validation


def left_out(way: str, coverage: float | None) -> LeftOut:
    return LeftOut(
        gpu="Adreno 616",
        way=way,
        error=Error(2, 0.0133, 0.0352, 0.998),
        worst="resnet10",
        worst_error=-0.061,
        one_constant=Naive(0.36, 0.65, 0.985),
        affine=Naive(0.115, 0.23, 0.986),
        interval=1.25,
        coverage=coverage,
        predictions={"resnet10": (26.4, 27.5), "mobilenet_w1": (18.9, 18.76)},
    )


FOUND = Validation(
    rules=(Rule("Winograd", 10782, 0),),
    left_out=(left_out("one in seven", None), left_out("whole families", 0.94)),
    carried_over=(
        CarriedOver("Adreno 616", "Adreno 640", True, -0.02, 0.05, 0.17, 0.994),
        CarriedOver("Adreno 616", "Mali-G76 MP12", False, -0.09, 0.28, 0.46, 0.965),
    ),
    carried_interval=1.64,
)


def test_the_page_tells_errors_baselines_intervals_and_every_network():
    text = page.markdown(FOUND)
    assert "| Adreno 616 | 2 | **1.3%** | **3.5%** | **0.998** | resnet10 -6% | 36% | 65% | 0.985 | 12%" in text
    assert "Winograd: 10782 rows, 0 exceptions" in text
    assert "| Adreno 616 | 0.80 to 1.25 | 94% |" in text
    assert "within 1.64 times" in text and "| Adreno 616 | Adreno 640 | -2% | 5% | 17% | 0.994 |" in text
    assert text.index("Adreno 640 | -2%") < text.index("Across kinds") < text.index("Mali-G76 MP12 | -9%")
    assert "| mobilenet_w1 | 18.9 / 18.8 |" in text
    assert page.COMMAND in text and page.record(FOUND)["carried_interval"] == 1.64


def test_the_committed_page_is_of_the_committed_record():
    record = json.loads(page.PAGE.with_suffix(".json").read_text(encoding="utf-8"))
    text = page.PAGE.read_text(encoding="utf-8")
    for one in record["left_out"]:
        error = one["error"]
        row = f"| {one['gpu']} | {error['networks']} | **{error['median']:.1%}** | **{error['p90']:.1%}** |"
        assert row in text
        assert error["median"] <= 0.08 and error["p90"] <= 0.20 and error["spearman"] >= 0.98
