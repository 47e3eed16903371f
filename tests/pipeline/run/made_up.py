"""Candidates and runs for tests of what is made of them: measured nowhere."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from pipeline.limits import Verdict
from pipeline.loop import Candidate, FitResult
from pipeline.stages import Made
from reports.records import LimitRecord, OutcomeRecord, QualityRecord
from targets.measure import Measurement

ROWS = {name: [] for name in ("edits", "rejected", "layers")}


def measurement(
    low: float, high: float, runner: str = "emulator", target: str = "pixel-4-cpu", format: str = "tflite"
) -> Measurement:
    middle = (low + high) / 2
    return Measurement(
        artifact_sha256="0" * 64,
        format=format,
        target=target,
        profile_version="v",
        runner=runner,
        runtime="r 1",
        n=30,
        median_ms=middle,
        p90_ms=high,
        mad_ms=0.1,
        low_ms=low,
        high_ms=high,
        samples_ms=(low, high),
        instructions=None,
        cycles=None,
        state={},
    )


def artifact(folder: Path = Path("run"), format: str = "tflite", bytes: int = 1000) -> SimpleNamespace:
    file = folder / f"model.{format}"
    return SimpleNamespace(format=format, path=file, sha256="0" * 64, bytes=bytes, seconds=1.0, peak_mib=1.0)


def limit(most: float = 10.0, quantity: str = "latency", target: str | None = "pixel-4-cpu") -> LimitRecord:
    unit = "ms" if quantity in ("latency", "p90") else "B"
    return LimitRecord(quantity=quantity, target=target, limit=most, unit=unit, asked=f"{most:g}{unit}")


def outcome(value: float, most: float = 10.0, verdict: Verdict | None = None, quantity: str = "latency"):
    target = "pixel-4-cpu" if quantity in ("latency", "p90") else None
    return OutcomeRecord(
        **limit(most, quantity, target).model_dump(exclude={"asked", "modelled"}),
        value=value,
        low=value,
        high=value,
        verdict=verdict or ("met" if value <= most else "above"),
    )


def quality(value: float, lost: float | None = None, evaluated_on: str = "artifact") -> QualityRecord:
    spread = {} if lost is None else {"lost": lost, "lost_low": lost - 0.5, "lost_high": lost + 0.5}
    return QualityRecord(
        metric="top-1", value=value, low=value - 1, high=value + 1, samples=2000, evaluated_on=evaluated_on, **spread
    )


def candidate(index: int, ms: float, most: float = 10.0, **fields: object) -> Candidate:
    made = {**ROWS, "budget_ms": None, "predicted_ms": ms, "parameters": 1, "smallest": False}
    return Candidate(
        index,
        Made(f"candidates/{index:02d}", made),
        **{
            "artifacts": [artifact()],
            "measurements": [measurement(ms, ms)],
            "outcomes": [outcome(ms, most)],
            **fields,
        },
    )


def result(
    original: Candidate, *probes: Candidate, allowed_drop: float | None = None, violations: tuple[str, ...] = ()
) -> FitResult:
    """Of a run whose last candidate is handed over."""
    limits = tuple(limit(one.limit, one.quantity, one.target) for one in original.outcomes)
    final = probes[-1] if probes else original
    return FitResult(limits, original, list(probes), [], final, allowed_drop, violations)
