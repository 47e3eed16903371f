"""The records: their JSON reads back, and what is not a record is refused."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from report_runs import all_runs, measurements, run_of

from reports.records import (
    ArtifactRecord,
    ManifestRecord,
    QualityRecord,
    RunRecord,
    TensorRecord,
    read_run,
)
from reports.schema import SCHEMA_VERSION
from reports.verification import ParityGroupRecord
from targets.errors import UsageError


@pytest.mark.parametrize("name", all_runs())
def test_a_run_reads_back_equal(runs, name, tmp_path):
    path = tmp_path / "report.json"
    path.write_text(runs[name].to_json(), encoding="utf-8")
    assert read_run(path) == runs[name]


def test_json_has_no_number_that_json_lacks(runs):
    for run in runs.values():
        json.loads(run.to_json(), parse_constant=lambda constant: pytest.fail(f"{constant} in the JSON"))


def test_a_deviation_that_is_not_finite_is_recorded_as_absent():
    group = ParityGroupRecord(name="zeros", verdict="failed", samples=1, relative_rmse=math.nan, max_abs=math.inf)
    assert (group.relative_rmse, group.max_abs) == (None, None)


def test_another_schema_version_is_one_four_line_error(met, tmp_path):
    data = json.loads(met.to_json()) | {"schema_version": SCHEMA_VERSION + 1, "field_of_the_future": 1}
    path = tmp_path / "report.json"
    path.write_text(json.dumps(data))
    with pytest.raises(UsageError) as caught:
        read_run(path)
    assert caught.value.code == "REPORT_SCHEMA" and len(str(caught.value).splitlines()) == 4


@pytest.mark.parametrize("content", [None, "", "{}", "[1]", "not json", '{"name": 3}'])
def test_what_is_not_a_run_record_is_a_usage_error(content, tmp_path):
    path = tmp_path / "report.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError) as caught:
        read_run(path)
    assert caught.value.code == "REPORT_UNREADABLE" and str(path) in caught.value.where


def test_records_are_frozen_and_refuse_unknown_fields(met):
    with pytest.raises(ValidationError):
        met.base.index = 3
    with pytest.raises(ValidationError):
        RunRecord.model_validate({**met.model_dump(), "extra": 1})


@pytest.mark.parametrize("changes", [{"winner": 9}, {"winner": None}, {"verdict": "not-met"}, {"best": 17}])
def test_winner_best_and_verdict_must_agree(met, changes):
    with pytest.raises(ValidationError):
        RunRecord.model_validate({**met.model_dump(), **changes})


def test_candidates_have_their_own_indices(met):
    with pytest.raises(ValidationError):
        run_of((met.candidate(1), met.candidate(1)), "not-met")
    with pytest.raises(ValidationError):
        run_of((met.base,), "not-met")
    with pytest.raises(KeyError):
        met.candidate(99)


def test_chosen_is_the_winner_else_the_closest(runs):
    assert runs["met"].chosen.index == 4
    assert runs["not met"].chosen.index == 3
    assert runs["failed"].chosen is None
    assert runs["base meets"].chosen is runs["base meets"].base


def test_what_was_lost_tells_the_original_the_change_and_the_floor(runs):
    top1 = runs["met"].candidate(4).quality
    assert (top1.lost, top1.change, top1.original) == pytest.approx((0.35, -0.35, 91.7))
    assert top1.change_interval == pytest.approx((-0.95, 0.25))
    assert runs["met"].floor == pytest.approx(90.7) and runs["no labels"].floor == pytest.approx(99.0)
    assert runs["failed"].floor == pytest.approx(90.7), "of the base alone"
    error = runs["own metric"].candidate(2).quality
    assert (error.lost, error.change, error.original) == pytest.approx((0.00252, 0.00252, 0.08214))
    assert runs["own metric"].floor == pytest.approx(0.08514), "less is better: the floor is the most allowed"


@given(st.floats(-5, 5), st.floats(0, 3), st.floats(0, 5), st.booleans())
def test_a_loss_straddles_the_floor_exactly_when_its_interval_holds_it(lost, half, allowed, higher):
    quality = QualityRecord(
        metric="m",
        value=50.0,
        low=49.0,
        high=51.0,
        higher_is_better=higher,
        samples=100,
        evaluated_on="artifact",
        lost=lost,
        lost_low=lost - half,
        lost_high=lost + half,
    )
    assert quality.exceeds(allowed) == (lost > allowed + 1e-9)
    assert quality.straddles(allowed) == (lost - half <= allowed < lost + half)
    assert (
        (quality.value < quality.least_allowed(allowed)) == (lost > allowed) or not higher or abs(lost - allowed) < 1e-9
    )


def test_a_candidate_knows_what_was_measured_against_each_limit(runs):
    run = runs["two targets"]
    values = [run.candidate(4).against(limit).value for limit in run.goal.limits]
    assert values == pytest.approx([8.24, 2.4 * 8.24, 1_080_000])
    assert runs["failed"].candidate(1).against(run.goal.limits[0]) is None
    assert run.primary(run.base).target == run.target.name and run.goal.latency_ms == 8.5
    second = run.model_copy(update={"goal": run.goal.model_copy(update={"limits": run.goal.limits[1:]})})
    assert second.primary(run.base).median_ms == pytest.approx(2.4 * 14.2), "the first target with a latency decides"
    assert runs["small"].goal.latency is None and runs["small"].primary(run.base).median_ms == 14.2


def test_wilson_interval_against_a_published_example():
    """81 of 263: Newcombe 1998 (Statistics in Medicine 17, table I) gives 0.2553 to 0.3662."""
    quality = QualityRecord.of_counts("top-1", 81, 263, "network")
    assert quality.low == pytest.approx(25.53, abs=0.005)
    assert quality.high == pytest.approx(36.62, abs=0.005)


@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_value_and_stays_in_range(counts):
    quality = QualityRecord.of_counts("top-1", *counts, "artifact")
    assert 0 <= quality.low <= quality.value <= quality.high <= 100


def manifest(met, file: str) -> ManifestRecord:
    tensor = TensorRecord(
        name="image", shape=(-1, 28, 28, 1), dtype="float32", layout="NHWC", minimum=-1.0, maximum=1.0
    )
    artifact = ArtifactRecord(
        file=file,
        format="tflite",
        sha256="0" * 64,
        bytes=1_024_000,
        runtime="LiteRT",
        minimum_runtime_version="2.0",
        inputs=(tensor,),
        outputs=(),
        quality=None,
        measurements=measurements(8.31, 1_024_000)[:1],
    )
    return ManifestRecord(
        planish_version="0.1.0",
        name="fashion",
        source_run=met.name,
        targets=met.targets,
        edits=("one merge",),
        tools={"litert-torch": "0.10.0"},
        artifacts=(artifact,),
    )


def test_a_manifest_reads_back_equal(met):
    record = manifest(met, "android/model.tflite")
    assert ManifestRecord.model_validate_json(record.to_json()) == record


@pytest.mark.parametrize("file", ["/model.tflite", "../model.tflite", "a/../../b", "a\\b", "", "."])
def test_a_manifest_names_only_files_inside_the_bundle(met, file):
    with pytest.raises(ValidationError):
        manifest(met, file)


def test_a_record_written_before_operators_were_told_is_read(met, runs, tmp_path):
    plain = json.loads(met.to_json())
    for candidate in (plain["base"], *plain["candidates"]):
        assert candidate.pop("operators") == []
    (tmp_path / "report.json").write_text(json.dumps(plain))
    assert read_run(tmp_path / "report.json") == met
    (tmp_path / "report.json").write_text(runs["broken down"].to_json())
    assert read_run(tmp_path / "report.json") == runs["broken down"]
