"""Drives a fit and keeps the console, the status file and the report in step with it."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime

from pipeline.environment import environment
from pipeline.fit import Candidate, fit
from pipeline.recipe import Recipe
from pipeline.results import candidate_record, goal_record, run_record, target_record, write
from pipeline.stages import Stages
from pipeline.store.run_directory import RunDirectory
from reports.console import Console
from reports.records import RunRecord
from targets.cache import write_atomic
from targets.errors import PlanishError
from targets.profile import Profile


def run_fit(
    run: RunDirectory, recipe: Recipe, profile: Profile, console: Console, *, command: str, started: datetime
) -> RunRecord:
    """Run `fit` in a run directory, speaking of each stage and candidate, and write the report and the bundle.

    However it ends, short of being killed, `status.json` says so.
    """
    try:
        return _run_fit(run, recipe, profile, console, command=command, started=started)
    except BaseException as error:
        state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        told = error.to_json() if isinstance(error, PlanishError) else repr(error)
        with contextlib.suppress(OSError):  # a full disk has no room for its own news
            run.status(state=state, error=told)
            run.event("stopped", state=state, error=told)
        raise


def _run_fit(
    run: RunDirectory, recipe: Recipe, profile: Profile, console: Console, *, command: str, started: datetime
) -> RunRecord:
    write_atomic(run.root / "environment.json", json.dumps(environment(), indent=1) + "\n")
    run.event("begin", command=command)
    with console.stage("fitting") as stage:

        def progress(text: str) -> None:
            stage.update(text)
            run.status(state="running", doing=text, at=datetime.now(UTC))

        stages = Stages(run, recipe, profile, progress)

        def told(candidate: Candidate, goal_ms: float) -> None:
            if candidate.index == 0:
                console.begin(recipe.model, target_record(profile), goal_record(recipe, goal_ms))
            console.probe(candidate_record(stages, candidate, goal_ms))
            run.event(
                "candidate", index=candidate.index, milliseconds=candidate.milliseconds, verdict=candidate.verdict
            )

        result = fit(stages, told)
    record = run_record(stages, result, command=command, started=started, finished=datetime.now(UTC))
    write(stages, result, record)
    run.event("end", verdict=record.verdict, exit_code=record.exit_code)
    run.status(state="done", verdict=record.verdict, exit_code=record.exit_code, headline=record.headline)
    return record
