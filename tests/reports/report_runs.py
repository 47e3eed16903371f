"""Runs built by hand for the tests of the reports: test data, measured nowhere."""

from __future__ import annotations

import hashlib
import math
from datetime import UTC, datetime

from reports.matrix import MatrixCellRecord, MatrixRecord, MatrixRowRecord
from reports.records import (
    AdviceRecord,
    CandidateRecord,
    EditRecord,
    FailureRecord,
    GoalRecord,
    LayerRecord,
    LimitRecord,
    MeasurementRecord,
    OperatorRecord,
    OutcomeRecord,
    QualityRecord,
    RejectedRecord,
    RunRecord,
    TargetRecord,
)
from reports.verification import (
    DelegationRecord,
    ExportRecord,
    FallbackRecord,
    ParityGroupRecord,
    ParityRecord,
    TaskRecord,
    TransposesRecord,
)

TARGET_MS = 8.5
PIXEL = TargetRecord(
    name="pixel-4-cpu",
    title="Google Pixel 4, CPU",
    core="Cortex-A76",
    clock_ghz=2.84,
    kind="emulator",
    profile_version="1",
)
PI = TargetRecord(
    name="raspberry-pi-4",
    title="Raspberry Pi 4",
    core="Cortex-A72",
    clock_ghz=1.5,
    kind="emulator",
    profile_version="1",
)
MEDIAN = LimitRecord(quantity="latency", target=PIXEL.name, limit=TARGET_MS, unit="ms", asked="8.5ms")
ORIGINAL_CORRECT, SAMPLES = 1834, 2000


def layers(blocks: int, prefix: str = "layer", kept: int | None = None) -> tuple[LayerRecord, ...]:
    """A chain of convolutions; blocks from `kept` on have lost their middle layer."""
    found = [
        LayerRecord(
            name="stem.conv",
            kind="conv",
            description="conv 3×3, 1→24, stride 1",
            parameters=240,
            macs=169_344,
            predicted_ms=0.11,
        )
    ]
    for block in range(blocks):
        names = ("conv1", "conv2", "conv3") if kept is None or block < kept else ("conv1", "conv3")
        for name in names:
            wide = kept is not None and block >= kept and name == "conv1"
            found.append(
                LayerRecord(
                    name=f"{prefix}{block // 4 + 1}.{block % 4}.{name}",
                    kind="conv",
                    description=f"conv {'5×5' if wide else '3×3'}, 24→{96 if name == 'conv1' else 24}, stride 1",
                    parameters=20_736,
                    macs=4_064_256,
                    predicted_ms=0.08 + 0.05 * (block % 5),
                )
            )
    return (
        *found,
        LayerRecord(
            name="head", kind="linear", description="linear 96→10", parameters=970, macs=960, predicted_ms=None
        ),
    )


def measurements(median_ms: float, size_bytes: int, formats: tuple[str, ...] = ("tflite", "onnx")):
    return tuple(
        MeasurementRecord(
            format=name,
            target="pixel-4-cpu",
            runner="emulator",
            runtime="LiteRT 2.3.0" if name == "tflite" else "ONNX Runtime 1.22.0",
            n=12,
            median_ms=median_ms * factor,
            p90_ms=median_ms * factor * 1.004,
            low_ms=median_ms * factor * 0.997,
            high_ms=median_ms * factor * 1.003,
            instructions=int(9.1e6 * median_ms),
            cycles=2.84e6 * median_ms,
            artifact_sha256=hashlib.sha256(f"{name}{median_ms}".encode()).hexdigest(),
            bytes=size_bytes,
            file=f"candidates/{name}/model.{name}",
            confidence_percent=95.0,
        )
        for name, factor in (("tflite", 1.0), ("onnx", 1.09))
        if name in formats
    )


def operators() -> tuple[OperatorRecord, ...]:
    """Of an inference of 2 ms: two convolutions, a slice, and the runtime's own."""

    def one(kind: str, module: str, shape: str, ms: float, macs: int, per_cycle: float, bound: str) -> OperatorRecord:
        return OperatorRecord(
            name=kind,
            kind=kind,
            module=module,
            shape=shape,
            out_shape=(),
            share=ms / 2.0,
            milliseconds=ms,
            cycles=2.84e6 * ms,
            instructions=int(4e6 * ms),
            macs=macs,
            flop_per_cycle=per_cycle,
            peak_flop_per_cycle=16.0 if macs else None,
            bound=bound,
        )

    return (
        one("Convolution (NHWC, F32) IGEMM", "layer1.0.conv1", "3×3 64→64 at 28×28", 0.4, 7_000_000, 12.3, "compute"),
        one("STRIDED_SLICE", "layer4.0", "7×7×512", 0.3, 0, 0.0, "L1"),
        one("Convolution (NHWC, F32) GEMM", "layer4.0.conv1", "1×1 512→2048 at 7×7", 1.2, 3_237_600, 1.9, "DRAM"),
        one("runtime", "", "", 0.1, 0, 0.0, "compute"),
    )


def parity(passed: bool = True):
    def one(format: str, level: str, verdict: str, error: float, top1: float | None) -> ParityRecord:
        own = ParityGroupRecord(
            name="your samples",
            verdict=verdict,
            samples=64,
            relative_rmse=error,
            max_abs=10 * error,
            sqnr_db=120.0,
            cosine=1.0,
            top1_agreement=top1,
        )
        edges = tuple(
            own.model_copy(update={"name": name, "verdict": "passed", "samples": 4}) for name in ("zeros", "noise")
        )
        task = TaskRecord(artifact_percent=90.6, network_percent=92.2, low_points=-4.1, high_points=1.0, samples=64)
        return ParityRecord(
            format=format, level=level, runner="runtime 1.0", verdict=verdict, groups=(own, *edges), task=task
        )

    absent = ParityRecord(
        format="coreml",
        level="host",
        runner="",
        verdict="not run here",
        reasons=("Core ML runs on Apple's systems alone",),
    )
    first = one("tflite", "host", "passed", 3.2e-7, 1.0) if passed else one("tflite", "host", "failed", math.nan, 0.11)
    return one("pt2", "program", "passed", 0.0, 1.0), first, one("onnx", "emulator", "passed", 1e-7, None), absent


def delegation():
    torn = DelegationRecord(
        format="tflite",
        target="pixel-4-cpu",
        runtime="ai-edge-litert 2.3.0",
        delegate="XNNPACK",
        learned="from the interpreter's plan",
        partitions=2,
        nodes=74,
        delegated_nodes=73,
        time_share=0.981,
        fallbacks=(FallbackRecord(kind="ATAN2", module="layer2.1.angle", count=1),),
        transposes=(
            TransposesRecord(kind="TRANSPOSE", module="", count=2, where="border", asked=False, shape=(1, 32, 32, 3)),
        ),
        crossing_bytes=131_072,
        border_bytes=12_328,
        violations=("XNNPACK leaves ATAN2 in layer2.1.angle to the runtime.",),
    )
    whole = torn.model_copy(
        update={
            "format": "onnx",
            "delegate": "CPU",
            "partitions": 1,
            "delegated_nodes": 74,
            "fallbacks": (),
            "transposes": (),
            "violations": (),
            "crossing_bytes": 0,
            "time_share": None,
        }
    )
    unknown = DelegationRecord(
        format="coreml",
        target="",
        runtime="coreml",
        delegate="Core ML",
        learned="not run here: Apple alone has it",
    )
    return torn, whole, unknown


def exports():
    return tuple(
        ExportRecord(
            format=name,
            file=f"candidates/03/{name}/{file}",
            sha256="ab" * 32,
            bytes=1_205_432,
            seconds=14.2,
            peak_mib=1432.0,
        )
        for name, file in (("tflite", "model.tflite"), ("onnx", "model.onnx"), ("coreml", "model.mlpackage"))
    )


def outcome(limit: LimitRecord, value: float, spread: float = 0.003) -> OutcomeRecord:
    low, high = value * (1 - spread), value * (1 + spread)
    verdict = "met" if high <= limit.limit else "above" if low > limit.limit else "undecided"
    return OutcomeRecord(
        quantity=limit.quantity,
        target=limit.target,
        limit=limit.limit,
        unit=limit.unit,
        value=value,
        low=low,
        high=high,
        confidence_percent=95.0 if spread else None,
        verdict=verdict,
        reason="the interval straddles the limit" if verdict == "undecided" else "",
    )


def quality(correct: int, labelled: bool = True) -> QualityRecord:
    """Of a candidate; without labels the original agrees with itself on every sample."""
    lost = 100 * ((ORIGINAL_CORRECT if labelled else SAMPLES) - correct) / SAMPLES
    metric = "top-1" if labelled else "agreement with the original"
    return QualityRecord.of_counts(metric, correct, SAMPLES, "artifact").model_copy(
        update=dict(lost=lost, lost_low=lost - 0.6, lost_high=lost + 0.6)
    )


def base(blocks: int = 6, labelled: bool = True, prefix: str = "layer", measured: bool = True) -> CandidateRecord:
    return CandidateRecord(
        index=0,
        budget_ms=None,
        predicted_ms=14.0,
        layers=layers(blocks, prefix),
        parameters=462_874,
        macs=40_100_000,
        parity=parity(),
        measurements=measurements(14.2, 1_853_120) if measured else (),
        quality=QualityRecord.of_counts("top-1", ORIGINAL_CORRECT, SAMPLES, "artifact") if labelled else None,
        outcomes=(outcome(MEDIAN, 14.2),) if measured else (),
        verdict="base",
        margin_percent=100 * (14.2 / TARGET_MS - 1) if measured else None,
        seconds={"export": 8.4, "measure": 21.0},
    )


def probe(
    index: int,
    median_ms: float,
    verdict: str,
    correct: int,
    *,
    budget_ms: float,
    labelled: bool = True,
    blocks: int = 6,
    prefix: str = "layer",
    reasons: tuple[str, ...] = (),
) -> CandidateRecord:
    merged = f"{prefix}{blocks // 8 + 1}.{blocks // 2 % 4}"
    return CandidateRecord(
        index=index,
        budget_ms=budget_ms,
        predicted_ms=budget_ms * 0.991,
        edits=(
            EditRecord(
                kind="linearize",
                site=f"{merged}.relu1",
                summary="The activation is off or on for nearly every sample, so it became the identity.",
                predicted_saving_ms=0.021,
                damage=0.0031,
                entropy_bits=0.082,
            ),
            EditRecord(
                kind="merge",
                site=f"{merged}.conv1+{merged}.conv2",
                summary="Two 3×3 convolutions became one 5×5.",
                predicted_saving_ms=0.62,
                damage=0.0,
                entropy_bits=None,
            ),
            EditRecord(
                kind="truncate",
                site="head",
                summary="Rank 96 → 14.",
                predicted_saving_ms=None,
                damage=0.0112,
                entropy_bits=None,
            ),
        ),
        rejected=(
            RejectedRecord(
                kind="merge",
                site=f"{prefix}2.1.conv1+{prefix}2.1.conv2",
                reason="the merged 5×5 would take 0.91 ms, the pair takes 0.74 ms",
            ),
            RejectedRecord(kind="truncate", site="stem.conv", reason="rank 8 of 9 saves nothing"),
        ),
        layers=layers(blocks, prefix, kept=blocks // 2),
        parameters=231_002,
        macs=21_700_000,
        parity=parity(),
        delegation=delegation(),
        exports=exports(),
        measurements=measurements(median_ms, 1_024_000),
        quality=quality(correct, labelled),
        outcomes=(outcome(MEDIAN, median_ms),),
        verdict=verdict,
        margin_percent=100 * (median_ms / TARGET_MS - 1),
        reasons=reasons,
        seconds={"plan": 0.4, "recover": 61.2, "export": 9.1, "verify": 2.2, "measure": 20.5},
    )


def failed(index: int, budget_ms: float) -> CandidateRecord:
    return CandidateRecord(
        index=index,
        budget_ms=budget_ms,
        predicted_ms=budget_ms,
        parameters=200_000,
        macs=19_000_000,
        parity=parity(passed=False),
        verdict="undecided",
        seconds={"export": 3.3},
        failure=FailureRecord(
            code="EXPORT_PARITY",
            exit_code=4,
            stage="verify",
            what="The TFLite artifact answers differently from the network.",
            where="layer2.1.conv1",
            why="the largest deviation is not finite",
            fix="planish export --format onnx",
        ),
    )


def run_of(
    candidates: tuple[CandidateRecord, ...],
    verdict: str,
    *,
    winner: int | None = None,
    best: int | None = None,
    original: CandidateRecord | None = None,
    headline: str = "",
    **changes,
) -> RunRecord:
    fields = dict(
        planish_version="0.1.0",
        name="fashion-8.5ms",
        model="examples/fashion/model.py:trained",
        data="examples/fashion/data.py:samples",
        targets=(PIXEL,),
        goal=GoalRecord(limits=(MEDIAN,), max_drop=1.0, formats=("tflite", "onnx"), primary_format="tflite"),
        verdict=verdict,
        exit_code={"met": 0, "not-met": 3, "undecided": 5, "verification-failed": 4}[verdict],
        headline=headline,
        base=original or base(),
        candidates=candidates,
        winner=winner,
        best=best,
        environment={
            "python": "3.11.2",
            "torch": "2.13.0",
            "litert-torch": "0.10.0",
            "qemu": "7.2.13",
            "platform": "Linux-6.1-x86_64",
            "llvm-mca": "14.0.6",
        },
        started=datetime(2026, 3, 4, 9, 30, 0, tzinfo=UTC),
        finished=datetime(2026, 3, 4, 9, 41, 17, tzinfo=UTC),
        seconds=677.0,
        command="planish fit examples/fashion/model.py:trained --data examples/fashion/data.py:samples "
        "--target pixel-4-cpu --latency 8.5ms --max-drop 1pt --format tflite --format onnx",
        reproduce=("planish fit runs/fashion-8.5ms/recipe.toml --resume",),
        next_command="planish measure runs/fashion-8.5ms/bundle --target raspberry-pi-4",
    )
    return RunRecord(**{**fields, **changes})


ON_PI = LimitRecord(quantity="latency", target=PI.name, limit=20.0, unit="ms", asked="20ms")
SIZE = LimitRecord(quantity="size", target=None, limit=1_111_872.0, unit="B", asked="60%")


def on_two(candidate: CandidateRecord, size_bytes: int) -> CandidateRecord:
    """The candidate measured on both targets, the second one 2.4 times slower, and judged by three limits."""
    first = candidate.measurement("tflite").model_copy(update=dict(bytes=size_bytes))
    second = first.model_copy(
        update=dict(
            target=PI.name,
            median_ms=2.4 * first.median_ms,
            low_ms=2.4 * first.low_ms,
            high_ms=2.4 * first.high_ms,
            p90_ms=2.4 * first.p90_ms,
        )
    )
    outcomes = (*candidate.outcomes, outcome(ON_PI, second.median_ms), outcome(SIZE, size_bytes, spread=0))
    verdicts = {each.verdict for each in outcomes}
    verdict = next(each for each in ("above", "undecided", "met") if each in verdicts)
    return candidate.model_copy(
        update=dict(
            measurements=(first, *candidate.measurements[1:], second),
            outcomes=outcomes,
            verdict="base" if candidate.index == 0 else verdict,
            margin_percent=max(each.margin_percent for each in outcomes),
        )
    )


def two_targets() -> RunRecord:
    return run_of(
        (
            on_two(probe(1, 8.42, "met", 1829, budget_ms=8.5), 1_140_000),
            on_two(probe(2, 7.22, "met", 1815, budget_ms=7.2), 1_001_000),
            on_two(probe(3, 8.34, "met", 1826, budget_ms=8.2), 1_090_000),
            on_two(probe(4, 8.24, "met", 1827, budget_ms=8.05), 1_080_000),
        ),
        "met",
        winner=4,
        best=4,
        original=on_two(base(), 1_853_120),
        targets=(PIXEL, PI),
        goal=GoalRecord(
            limits=(MEDIAN, ON_PI, SIZE), max_drop=1.0, formats=("tflite", "onnx"), primary_format="tflite"
        ),
        floor_kept=True,
        front=(2, 4, 1, 0),
        headline="Candidate 4 meets all three limits; the tightest is raspberry-pi-4, 1.1 % under.",
        advice=(
            AdviceRecord(
                knob="size",
                option="--size 1.2MB",
                text="Candidate 1 keeps 0.10 points more and is 2.5 % too large.",
                candidate=1,
            ),
        ),
    )


def floor_broken() -> RunRecord:
    return run_of(
        (probe(1, 9.31, "above", 1829, budget_ms=8.5), probe(2, 8.3, "met", 1806, budget_ms=8.05)),
        "not-met",
        best=2,
        floor_kept=False,
        front=(2, 1, 0),
        headline="8.30 ms on Google Pixel 4, CPU, but 1.40 points of top-1 were lost and 1.00 were allowed.",
        advice=(
            AdviceRecord(
                knob="latency",
                option="--latency 9.4ms",
                text="Candidate 1 takes 9.31 ms and loses 0.25 points.",
                candidate=1,
            ),
            AdviceRecord(
                knob="floor",
                option="--max-drop 1.4pt",
                text="Candidate 2 is handed over as it is.",
                candidate=2,
            ),
            AdviceRecord(
                knob="recovery",
                option="--recover 20min",
                text="Recovery had not stopped gaining: its last quarter won 0.12 points.",
                candidate=None,
            ),
        ),
    )


def own_metric() -> RunRecord:
    """Judged by a metric of the user's that has no unit and falls as the network gets better."""

    def error(value: float, lost: float | None) -> QualityRecord:
        return QualityRecord(
            metric="pose error",
            value=value,
            low=value - 0.0031,
            high=value + 0.0033,
            unit="",
            higher_is_better=False,
            samples=1500,
            evaluated_on="artifact",
            lost=lost,
            lost_low=None if lost is None else lost - 0.0012,
            lost_high=None if lost is None else lost + 0.0012,
        )

    def judged(candidate: CandidateRecord, value: float) -> CandidateRecord:
        lost = value - 0.08214 if candidate.index else None
        return candidate.model_copy(update=dict(quality=error(value, lost)))

    return run_of(
        (
            judged(probe(1, 9.31, "above", 0, budget_ms=8.5), 0.08391),
            judged(probe(2, 8.3, "met", 0, budget_ms=8.05), 0.08466),
        ),
        "met",
        winner=2,
        best=2,
        original=judged(base(), 0.08214),
        goal=GoalRecord(
            limits=(MEDIAN,), max_drop=0.003, quality_unit="", formats=("tflite", "onnx"), primary_format="tflite"
        ),
        floor_kept=True,
        front=(2, 1, 0),
        headline="8.30 ms on Google Pixel 4, CPU, 1.71 times faster than the original.",
    )


def small() -> RunRecord:
    """Nothing was asked of the latency, all of the file's size."""
    goal = GoalRecord(limits=(SIZE,), max_drop=None, formats=("tflite", "onnx"), primary_format="tflite")

    def judged(candidate: CandidateRecord, size_bytes: int) -> CandidateRecord:
        one = outcome(SIZE, size_bytes, spread=0)
        return candidate.model_copy(update=dict(outcomes=(one,), margin_percent=one.margin_percent))

    return run_of(
        (judged(probe(1, 9.31, "met", 1829, budget_ms=8.5), 1_024_000),),
        "met",
        winner=1,
        best=1,
        original=judged(base(), 1_853_120),
        goal=goal,
        headline="The artifact has 1.02 MB.",
    )


def all_runs() -> dict[str, RunRecord]:
    long = "backbone.features.inverted_residual_bottleneck_with_a_very_long_module_name_"
    return {
        "met": run_of(
            (
                probe(1, 9.31, "above", 1829, budget_ms=8.5),
                probe(2, 7.22, "met", 1815, budget_ms=7.2),
                probe(
                    3,
                    8.52,
                    "undecided",
                    1826,
                    budget_ms=8.2,
                    reasons=("the interval [8.49, 8.55] straddles 8.50 ms after 48 samples",),
                ),
                probe(4, 8.31, "met", 1827, budget_ms=8.05),
            ),
            "met",
            winner=4,
            best=4,
            floor_kept=True,
            front=(2, 4, 3, 0),
            headline="Candidate 4 runs in 8.31 ms on Google Pixel 4, CPU, 2.2 % "
            "under the 8.50 ms asked, and loses 0.35 points of top-1.",
        ),
        "broken down": run_of(
            (probe(1, 8.3, "met", 1827, budget_ms=8.05).model_copy(update=dict(operators=operators())),),
            "met",
            winner=1,
            best=1,
            original=base().model_copy(update=dict(operators=operators())),
            headline="Candidate 1 runs in 8.30 ms.",
        ),
        "base meets": run_of(
            (),
            "met",
            winner=0,
            best=0,
            original=base().model_copy(
                update=dict(
                    measurements=measurements(8.2, 1_853_120),
                    outcomes=(outcome(MEDIAN, 8.2),),
                    margin_percent=100 * (8.2 / TARGET_MS - 1),
                )
            ),
            headline="The original already runs in 8.20 ms.",
        ),
        "not met": run_of(
            (
                probe(1, 9.9, "above", 1801, budget_ms=8.5),
                probe(2, 9.1, "above", 1764, budget_ms=7.7),
                probe(3, 9.1, "above", 1764, budget_ms=6.9),
            ),
            "not-met",
            best=3,
            headline="No candidate reaches 8.50 ms; the closest, candidate 3, runs in 9.10 ms.",
            warnings=("The data has 12 samples of class 7; 50 are needed for a stable estimate.",),
        ),
        "undecided": run_of(
            (probe(1, 8.51, "undecided", 1830, budget_ms=8.5),),
            "undecided",
            best=1,
            headline="The interval of candidate 1 straddles 8.50 ms.",
        ),
        "failed": run_of(
            (failed(1, 8.5), failed(2, 8.2)),
            "verification-failed",
            original=base(measured=False),
            headline="Every artifact failed its parity check.",
        ),
        "no labels": run_of(
            (probe(1, 8.4, "met", 1985, budget_ms=8.4, labelled=False),),
            "met",
            winner=1,
            best=1,
            original=base(labelled=False),
            headline="Candidate 1 runs in 8.40 ms and agrees with the original on 99.25 % of the samples.",
        ),
        "long names": run_of(
            (probe(1, 8.4, "met", 1825, budget_ms=8.4, blocks=20, prefix=long),),
            "met",
            winner=1,
            best=1,
            original=base(blocks=20, prefix=long),
            headline="Candidate 1 runs in 8.40 ms.",
        ),
        "two targets": two_targets(),
        "floor broken": floor_broken(),
        "own metric": own_metric(),
        "small": small(),
        "hostile text": run_of(
            (),
            "not-met",
            name="<script>alert(1)</script>",
            model='"><img src=http://x onerror=1>',
            headline="</title><b>& 'quoted' \x1b[31mred",
            environment={"<i>": "{{ 7*7 }}"},
            warnings=("javascript:alert(1)",),
        ),
    }


def matrix(*, alone: bool = True) -> MatrixRecord:
    """An artifact for each of two targets; that of the second one is too slow for the first, unless it serves both."""
    across_ms = 8.05 if alone else 9.7

    def row(target: TargetRecord, limit: LimitRecord, took: str, correct: int, size_bytes: int) -> MatrixRowRecord:
        return MatrixRowRecord(
            target=target,
            limits=(limit,),
            directory=target.name,
            verdict="met",
            exit_code=0,
            headline=f"{took} on {target.title}.",
            winner=3,
            format="tflite",
            file="candidates/03/tflite/model.tflite",
            bytes=size_bytes,
            sha256=hashlib.sha256(target.name.encode()).hexdigest(),
            quality=quality(correct),
        )

    def cell(artifact: TargetRecord, target: TargetRecord, took_ms: float, limit: LimitRecord) -> MatrixCellRecord:
        judged = outcome(limit, took_ms)
        return MatrixCellRecord(
            artifact=artifact.name,
            target=target.name,
            median_ms=took_ms,
            low_ms=judged.low,
            high_ms=judged.high,
            verdict=judged.verdict,
        )

    return MatrixRecord(
        planish_version="0.1.0",
        name="fashion-two",
        model="examples/fashion/model.py:trained",
        rows=(
            row(PIXEL, MEDIAN, "8.31 ms", 1827, 1_024_000),
            row(PI, ON_PI, "19.6 ms", 1820 if alone else 1831, 1_201_000),
        ),
        cells=(
            cell(PIXEL, PIXEL, 8.31, MEDIAN),
            cell(PIXEL, PI, 20.6 if alone else 16.9, ON_PI),
            cell(PI, PIXEL, across_ms, MEDIAN),
            cell(PI, PI, 19.6, ON_PI),
        ),
        command="planish fit model.py:trained --target pixel-4-cpu --latency 8.5ms --target raspberry-pi-4 "
        "--latency 20ms --per-target",
    )
