"""Turns a finished fit into what a person and a pipeline read: the run record, the report, the bundle."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
from datetime import datetime
from pathlib import Path

from pipeline.environment import environment
from pipeline.fit import Candidate, FitResult
from pipeline.package.manifest import write_bundle
from pipeline.recipe import Recipe
from pipeline.stages import Stages
from pipeline.verify.records import delegation_record, parity_record
from reports.html.render import render
from reports.records import (
    CandidateRecord,
    EditRecord,
    GoalRecord,
    LayerRecord,
    MeasurementRecord,
    RejectedRecord,
    RunRecord,
    TargetRecord,
)
from reports.verification import ExportRecord
from targets.cache import write_atomic
from targets.profile import Profile


def candidate_record(stages: Stages, candidate: Candidate, goal_ms: float | None) -> CandidateRecord:
    """One probe as the report shows it; `goal_ms` is None before it is known."""
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
            )
            for m in candidate.measurements
            for artifact in candidate.artifacts
            if artifact.format == m.format
        ),
        operators=candidate.operators,
        quality=candidate.quality,
        verdict="base" if original else candidate.verdict,
        margin_percent=None if goal_ms is None else 100 * (candidate.milliseconds / goal_ms - 1),
        reasons=tuple(reasons),
        seconds={name.name: stages.run.seconds(f"{candidate.made.folder}/{name.name}") for name in sorted(names)},
    )


def goal_record(recipe: Recipe, goal_ms: float) -> GoalRecord:
    return GoalRecord(
        latency_ms=goal_ms,
        max_drop_points=recipe.max_drop_points,
        formats=tuple(recipe.formats),
        primary_format=recipe.formats[0],
    )


def target_record(profile: Profile) -> TargetRecord:
    core = profile.core
    return TargetRecord(
        name=profile.name,
        title=profile.title,
        core=core.name if core else platform.machine(),
        clock_ghz=profile.clock_ghz,
        kind=profile.kind,
        profile_version=profile.version,
    )


def run_record(stages: Stages, result: FitResult, *, command: str, started: datetime, finished: datetime) -> RunRecord:
    """The whole run, with the verdict, the exit code and one sentence that says it."""
    recipe, final = stages.recipe, result.final
    met = result.met and result.floor_kept is not False
    verdict = "met" if met else "undecided" if result.undecided else "not-met"
    if met and result.violations:
        verdict = "verification-failed"
    directory = stages.run.root
    return RunRecord(
        planish_version=importlib.metadata.version("planish"),
        name=directory.name,
        model=recipe.model,
        data=recipe.data,
        target=target_record(stages.profile),
        goal=goal_record(recipe, result.goal_ms),
        verdict=verdict,
        exit_code={"met": 0, "undecided": 5, "not-met": 3, "verification-failed": 4}[verdict],
        headline=_headline(stages, result),
        base=candidate_record(stages, result.original, result.goal_ms),
        candidates=tuple(candidate_record(stages, c, result.goal_ms) for c in result.probes),
        winner=final.index if verdict == "met" else None,
        best=None if verdict == "met" else final.index,
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
    final, original, where = result.final, result.original, stages.profile.title
    took = f"{final.milliseconds:.3g} ms on {where}"
    if result.violations and result.met:
        return f"{took}, but not delegated as a whole: {result.violations[0]}"
    if result.undecided:
        return f"{took}: the goal of {result.goal_ms:.3g} ms lies inside the measurement's interval."
    if not result.met:
        times = final.milliseconds / result.goal_ms
        if final is original:
            method = stages.recipe.method
            return f"The original takes {took} and {method} may do nothing that makes it faster: the report says why."
        smallest = "; nothing smaller can be planned" if final.made.result["smallest"] else ""
        return f"The closest candidate takes {took}, {times:.3g} times the {result.goal_ms:.3g} ms asked for{smallest}."
    if result.floor_kept is False:
        lost = original.quality.value_percent - final.quality.value_percent
        return (
            f"The latency is met with {took}, but {lost:.2f} points of quality were lost and "
            f"{stages.recipe.max_drop_points:g} were allowed."
        )
    if final is original:
        return f"The original takes {took} as it is; nothing was changed."
    return f"{took}, {original.milliseconds / final.milliseconds:.2f} times faster than the original."


def _warnings(stages: Stages, result: FitResult) -> tuple[str, ...]:
    found = []
    if stages.recipe.test is None:
        found.append("No test data was given: quality is judged on a fifth of the calibration data that was held out.")
    if not stages.samples.test.has_labels:
        found.append("The test data has no labels: quality is agreement with the original.")
    if unexplained := result.final.unexplained or result.original.unexplained:
        found.append(f"Where the time goes is not known: {unexplained}.")
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
