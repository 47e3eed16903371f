"""Turns a finished fit into what a person and a pipeline read: the run record, the report, the bundle."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from pipeline.advice import advice, front
from pipeline.environment import environment
from pipeline.limits import worst
from pipeline.loop import Candidate, FitResult
from pipeline.package.manifest import write_bundle
from pipeline.recipe import Recipe
from pipeline.search import unordered
from pipeline.stages import Stages
from pipeline.verify.records import delegation_record, parity_record
from reports import quantities
from reports.html.render import render
from reports.measured import SplitRecord
from reports.records import (
    CandidateRecord,
    EditRecord,
    GoalRecord,
    LayerRecord,
    LimitRecord,
    MeasurementRecord,
    OutcomeRecord,
    QualityRecord,
    RejectedRecord,
    RunRecord,
    TargetRecord,
)
from reports.verification import ExportRecord
from targets.cache import write_atomic
from targets.measure import Measurement
from targets.profile import Profile


def candidate_record(stages: Stages, candidate: Candidate) -> CandidateRecord:
    """One probe as the report shows it."""
    made, original = candidate.made.result, candidate.index == 0
    reasons = list(candidate.violations) if stages.recipe.strict else []
    if candidate.recovered_from is not None:
        reasons.append(f"candidate {candidate.recovered_from} after recovery")
    names = [name for name in stages.run.root.glob(f"{candidate.made.folder}/*") if name.is_dir()]
    return CandidateRecord(
        index=candidate.index,
        budget_ms=made["budget_ms"],
        predicted_ms=made["predicted_ms"],
        edits=tuple(EditRecord(**row) for row in made["edits"]),
        rejected=tuple(RejectedRecord(**row) for row in made["rejected"]),
        layers=tuple(LayerRecord(**row) for row in made["layers"]),
        parameters=made["parameters"],
        macs=sum(row["macs"] for row in made["layers"]),
        exports=tuple(
            ExportRecord(
                format=artifact.format,
                file=artifact.path.relative_to(stages.run.root).as_posix(),
                sha256=artifact.sha256,
                bytes=artifact.bytes,
                seconds=artifact.seconds,
                peak_mib=artifact.peak_mib,
            )
            for artifact in candidate.artifacts
        ),
        parity=tuple(map(parity_record, candidate.parity)),
        delegation=tuple(map(delegation_record, candidate.delegation)),
        measurements=tuple(
            MeasurementRecord(
                format=m.format,
                target=m.target,
                runner=m.runner,
                runtime=m.runtime,
                n=m.n,
                median_ms=m.median_ms,
                p90_ms=m.p90_ms,
                low_ms=m.low_ms,
                high_ms=m.high_ms,
                instructions=m.instructions,
                cycles=m.cycles,
                artifact_sha256=m.artifact_sha256,
                bytes=artifact.bytes,
                file=artifact.path.relative_to(stages.run.root).as_posix(),
                confidence_percent=95.0 if m.runner == "host" else None,
                threads=m.threads,
                split=split_record(m),
            )
            for m in candidate.measurements
            for artifact in candidate.artifacts
            if artifact.format == m.format
        ),
        operators=candidate.operators,
        gpu_work=candidate.gpu_work,
        quality=candidate.quality,
        outcomes=tuple(candidate.outcomes),
        verdict="base" if original else candidate.verdict,
        margin_percent=worst(candidate.outcomes).margin_percent,
        reasons=tuple(reasons),
        seconds={name.name: stages.run.seconds(f"{candidate.made.folder}/{name.name}") for name in sorted(names)},
    )


def split_record(measured: Measurement) -> SplitRecord | None:
    split = measured.state.get("split")
    return SplitRecord(**split) if split else None


def goal_record(
    recipe: Recipe, limits: Sequence[LimitRecord], allowed_drop: float | None, original: QualityRecord | None
) -> GoalRecord:
    return GoalRecord(
        limits=tuple(limits),
        max_drop=allowed_drop,
        quality_unit=original.unit if original else "%",
        formats=tuple(recipe.formats),
        primary_format=recipe.formats[0],
    )


def target_record(profile: Profile) -> TargetRecord:
    design = profile.core or profile.gpu
    return TargetRecord(
        name=profile.name,
        title=profile.title,
        core=design.name if design else platform.machine(),
        clock_ghz=profile.gpu.clock_mhz / 1000 if profile.gpu else profile.clock_ghz,
        kind=profile.kind,
        profile_version=profile.version,
    )


def run_record(stages: Stages, result: FitResult, *, command: str, started: datetime, finished: datetime) -> RunRecord:
    """The whole run, with the verdict, the exit code and one sentence that says it."""
    recipe, final = stages.recipe, result.final
    met = final.verdict == "met" and result.floor_kept is not False
    verdict = "met" if met else "undecided" if final.verdict == "undecided" else "not-met"
    if met and result.violations:
        verdict = "verification-failed"
    directory = stages.run.root
    return RunRecord(
        planish_version=importlib.metadata.version("planish"),
        name=directory.name,
        model=recipe.model,
        data=recipe.data,
        targets=tuple(map(target_record, stages.profiles)),
        goal=goal_record(recipe, result.limits, result.allowed_drop, result.original.quality),
        verdict=verdict,
        floor_kept=result.floor_kept,
        exit_code={"met": 0, "undecided": 5, "not-met": 3, "verification-failed": 4}[verdict],
        headline=_headline(stages, result),
        base=candidate_record(stages, result.original),
        candidates=tuple(candidate_record(stages, candidate) for candidate in result.probes),
        winner=final.index if verdict == "met" else None,
        best=None if verdict == "met" else final.index,
        front=front(result),
        advice=advice(recipe, result),
        environment=environment(),
        started=started,
        finished=finished,
        seconds=(finished - started).total_seconds(),
        command=command,
        reproduce=(f"planish fit {directory}/recipe.toml -o {directory}-again", f"planish fit --resume {directory}"),
        warnings=_warnings(stages, result),
        next_command=_next_command(recipe, final.artifacts[0].path),
    )


def write(stages: Stages, result: FitResult, record: RunRecord) -> None:
    """`bundle/`, `report.json` and `report.html`, each whole or not at all."""
    root = stages.run.root
    write_bundle(root, record, result.final.artifacts)
    write_atomic(root / "report.json", record.to_json())
    write_atomic(root / "report.html", render(record))


def _headline(stages: Stages, result: FitResult) -> str:
    final, original = result.final, result.original
    took = _took(stages, final)
    if result.violations and final.verdict == "met":
        return f"{took}, but not delegated as a whole: {result.violations[0]}"
    if final.verdict == "undecided":
        open_ones = [outcome for outcome in final.outcomes if outcome.verdict == "undecided"]
        why = open_ones[0].reason or "the limit lies inside the measurement's interval"
        return f"{took}; {_named(stages, open_ones[0])} cannot be told from its limit of {_limit(open_ones[0])}: {why}."
    if final.verdict == "above":
        return _missed(stages, result, took)
    if result.floor_kept is False:
        lost, unit = final.quality.lost, " points" if final.quality.unit == "%" else ""
        return (
            f"Every limit is met with {took}, but {lost:.4g}{unit} of quality were lost and "
            f"{result.allowed_drop:.4g} were allowed."
        )
    if final is original:
        return f"The original takes {took} as it is; nothing was changed."
    faster = f", {original.milliseconds / final.milliseconds:.2f} times faster than the original"
    return f"{took}{faster if len(stages.profiles) == 1 else ''}."


def _missed(stages: Stages, result: FitResult, took: str) -> str:
    """What is missing, limit by limit."""
    final = result.final
    if final is result.original:
        method = stages.recipe.method
        return f"The original takes {took} and {method} may do nothing that makes it smaller: the report says why."
    missed = [outcome for outcome in final.outcomes if outcome.verdict == "above"]
    gaps = [
        f"{_named(stages, outcome)} is {outcome.value / outcome.limit:.3g} times the {_limit(outcome)} asked for"
        for outcome in missed
    ]
    smallest = "; nothing smaller can be planned" if final.made.result["smallest"] else ""
    return f"The closest candidate takes {took}: {', '.join(gaps)}{smallest}."


def _took(stages: Stages, candidate: Candidate) -> str:
    """What a candidate measured against each of its limits."""
    words = []
    for outcome in candidate.outcomes:
        value = f"{outcome.value:.3g} ms" if outcome.unit == "ms" else quantities.size(outcome.value)
        match outcome.quantity:
            case "latency":
                how = "modelled " if _profile(stages, outcome.target).kind == "gpu" else ""
                words.append(f"{value} {how}on {_title(stages, outcome.target)}")
            case "p90":
                words.append(f"{value} at the 90th percentile on {_title(stages, outcome.target)}")
            case "size":
                words.append(f"{value} of {candidate.artifacts[0].format}")
            case "memory":
                words.append(f"{value} of memory")
    return ", ".join(words)


def _named(stages: Stages, outcome: OutcomeRecord) -> str:
    names = {"latency": "the latency", "p90": "the 90th percentile", "size": "the size", "memory": "the peak memory"}
    several = outcome.target is not None and len(stages.profiles) > 1
    return names[outcome.quantity] + (f" on {_title(stages, outcome.target)}" if several else "")


def _profile(stages: Stages, target: str) -> Profile:
    return next(profile for profile in stages.profiles if profile.name == target)


def _title(stages: Stages, target: str) -> str:
    profile = _profile(stages, target)
    return "this machine" if profile.kind == "host" else profile.title


def _limit(outcome: OutcomeRecord) -> str:
    return f"{outcome.limit:.3g} ms" if outcome.unit == "ms" else quantities.size(outcome.limit)


def _warnings(stages: Stages, result: FitResult) -> tuple[str, ...]:
    found = []
    if stages.recipe.test is None:
        found.append("No test data was given: quality is judged on a fifth of the calibration data that was held out.")
    if not stages.samples.test.has_labels and stages.recipe.metric is None:
        found.append("The test data has no labels: quality is agreement with the original.")
    found += [
        f"Latencies on {profile.title} are modelled, not measured: nine of ten networks nobody fitted on are within "
        f"{measured.high_ms / measured.median_ms:.2f} times the figure."
        for profile in stages.profiles
        for measured in result.final.measurements
        if measured.runner == "model" and measured.target == profile.name
    ]
    found += [
        f"On {measured.target} the {measured.format} artifact is split, {split.sentence}."
        for measured in result.final.measurements
        if (split := split_record(measured))
    ]
    if unexplained := result.final.unexplained or result.original.unexplained:
        found.append(f"Where the time goes is not known: {unexplained}.")
    found += [
        f"The plan predicted at {less.predicted:.4g} ms was measured slower than that at {more.predicted:.4g} ms: "
        "the cost table misled the search there."
        for less, more in unordered(result.searched)
    ]
    return tuple(found)


def _next_command(recipe: Recipe, artifact: Path) -> str:
    """What confirms the artifact on the machine at hand."""
    words = ["planish", "measure", _relative(artifact), "--target", "host", "--data", recipe.data]
    for option, values in (("--mean", recipe.mean), ("--std", recipe.std)):
        for value in values or ():
            words += [option, f"{value:g}"]
    return shlex.join(words)


def _relative(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
