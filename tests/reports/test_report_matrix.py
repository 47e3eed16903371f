"""One run a target: what each artifact takes on each phone, as a record and as a page."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError
from report_runs import matrix
from test_report_html import Page

from reports.html.render import render_matrix
from reports.matrix import MatrixRecord, read_report
from reports.schema import SCHEMA_VERSION
from targets.errors import UsageError


@pytest.mark.parametrize("alone", [True, False])
def test_a_matrix_reads_back_equal(alone):
    record = matrix(alone=alone)
    assert MatrixRecord.model_validate_json(record.to_json()) == record


def test_a_report_is_of_a_run_or_of_several(met, tmp_path):
    path = tmp_path / "report.json"
    for record in (matrix(), met):
        path.write_text(record.to_json())
        assert read_report(path) == record
    changed = json.loads(matrix().to_json()) | {"schema_version": SCHEMA_VERSION + 1}
    for content, code in (
        ("[1]", "REPORT_UNREADABLE"),
        ('{"cells": 3}', "REPORT_UNREADABLE"),
        (json.dumps(changed), "REPORT_SCHEMA"),
    ):
        path.write_text(content)
        with pytest.raises(UsageError) as caught:
            read_report(path)
        assert caught.value.code == code
    with pytest.raises(UsageError):
        read_report(tmp_path / "none.json")


def test_a_cell_is_found_by_its_targets_and_a_row_knows_its_limit():
    record = matrix()
    assert [row.limit_ms for row in record.rows] == [8.5, 20.0]
    assert record.cell("raspberry-pi-4", "pixel-4-cpu").median_ms == 8.05
    assert record.cell("iphone", "pixel-4-cpu") is None


def test_an_artifact_is_compared_with_the_phones_own():
    record = matrix()
    assert record.against_own(record.cell("pixel-4-cpu", "raspberry-pi-4")) == "1.05× slower"
    assert record.against_own(record.cell("raspberry-pi-4", "pixel-4-cpu")) == "1.03× faster"
    assert record.against_own(record.cell("pixel-4-cpu", "pixel-4-cpu")) == ""
    across = record.model_copy(update={"cells": record.cells[1:]})
    assert across.against_own(across.cell("raspberry-pi-4", "pixel-4-cpu")) == "", "its own was not measured"


def test_an_artifact_serves_all_when_it_is_met_everywhere():
    assert [row.target.name for row in matrix(alone=True).serving_all] == ["raspberry-pi-4"]
    assert [row.target.name for row in matrix(alone=False).serving_all] == ["pixel-4-cpu"]
    record = matrix()
    assert not record.model_copy(update={"cells": record.cells[:3]}).serving_all, "one cell is not known"


def test_the_headline_counts_targets_and_files():
    record = matrix()
    first, second = record.rows
    same = second.model_copy(update={"sha256": first.sha256})
    missed = second.model_copy(update={"verdict": "not-met", "winner": None})
    assert record.headline == "2 of 2 targets met, by 2 artifacts."
    assert record.model_copy(update={"rows": (first, same)}).headline == "2 of 2 targets met, by one artifact."
    assert record.model_copy(update={"rows": (first, missed)}).headline == "1 of 2 targets met, by one artifact."
    assert record.model_copy(update={"rows": (missed,)}).headline == "0 of 1 targets met."


@pytest.mark.parametrize("change", ["a row twice", "a cell twice", "a cell of no row", "no row"])
def test_a_matrix_has_one_row_a_target_and_cells_of_its_rows_alone(change):
    data = matrix().model_dump()
    rows, cells = list(data["rows"]), list(data["cells"])
    if change == "a row twice":
        rows.append(rows[0])
    elif change == "a cell twice":
        cells.append(cells[0])
    elif change == "a cell of no row":
        cells[0] = {**cells[0], "target": "iphone"}
    else:
        rows = []
    with pytest.raises(ValidationError):
        MatrixRecord.model_validate({**data, "rows": rows, "cells": cells})


def test_the_page_says_which_artifact_is_for_which_phone_and_what_it_costs_elsewhere():
    page = Page(render_matrix(matrix()))
    for said in (
        "✓ Every target met 2 of 2 targets met, by 2 artifacts.",
        "Google Pixel 4, CPU 8.31 ms ≤ 8.50 ms ✓ Target met 8.31 ms on Google Pixel 4, CPU. top-1 91.35 % −0.35 pt",
        "pixel-4-cpu ● 8.31 ms [8.29, 8.33] ▲ 20.6 ms [20.5, 20.7] 1.05× slower",
        "raspberry-pi-4 ● 8.05 ms [8.03, 8.07] 1.03× faster ● 19.6 ms [19.5, 19.7]",
        "The artifact for raspberry-pi-4 meets the latency of every target",
        "--per-target",
        matrix().rows[1].sha256,
    ):
        assert said in page.words, said
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links == [
        f"{target}/{file}"
        for target in ("pixel-4-cpu", "raspberry-pi-4")
        for file in ("candidates/03/tflite/model.tflite", "report.html")
    ]
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "img", "iframe"} and "src" not in attributes
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    labels = {attributes["aria-labelledby"] for _, attributes in page.tags if "aria-labelledby" in attributes}
    assert len(identifiers) == len(set(identifiers)) and labels <= set(identifiers)


def test_a_target_that_was_missed_shows_its_closest_artifact_or_none():
    record = matrix()
    first, second = record.rows
    missed = {"verdict": "not-met", "exit_code": 3, "winner": None, "headline": "22 ms."}
    closest = record.model_copy(update={"rows": (first, second.model_copy(update=missed))})
    words = Page(render_matrix(closest)).words
    assert (
        "✗ Not every target met" in words and "tflite artifact (the closest)" in words and "✗ Target not met" in words
    )
    nothing = missed | {"verdict": "verification-failed"}
    nothing |= dict.fromkeys(("file", "bytes", "sha256", "quality"))
    without = {"rows": (first, second.model_copy(update=nothing)), "cells": record.cells[:1], "warnings": ("<b>",)}
    words = Page(render_matrix(record.model_copy(update=without))).words
    assert "Raspberry Pi 4 – ≤ 20.0 ms ! Verification failed 22 ms. report" in words
    assert "No one artifact is known to meet the latency of every target." in words and "Warning. <b>" in words
