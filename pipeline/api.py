"""The main job as a function: what `planish fit` calls, and what a program of one's own can call.

from pipeline import Recipe, fit

run = fit(Recipe(model="model.py:build", data="data.npz", target="pixel-4-cpu", latency="12ms"), "runs/mine")
print(run.verdict, run.chosen.measurement("tflite").median_ms)
"""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pipeline.environment import environment
from pipeline.evidence import MODELLED_FORMAT
from pipeline.loop import Candidate, allowed_drop, search
from pipeline.per_target import exit_code, fit_each
from pipeline.recipe import Recipe, read_recipe
from pipeline.results import candidate_record, goal_record, run_record, target_record, write
from pipeline.stages import Stages
from pipeline.store.run_directory import RunDirectory, recipe_of
from reports.events import EVENTS_VERSION
from reports.matrix import MatrixRecord
from reports.records import CandidateRecord, GoalRecord, LimitRecord, RunRecord, TargetRecord
from targets.arm.setup import require as require_emulator
from targets.cache import write_atomic
from targets.errors import PlanishError, UsageError
from targets.gpu.places import require as require_gpu
from targets.profile import Profile, load_profile


class Listener:
    """Hears of a run while it is under way. Override what is of interest."""

    def doing(self, text: str) -> None:
        """What is being done now; often, and in words."""

    def begun(self, recipe: Recipe, targets: Sequence[TargetRecord], goal: GoalRecord) -> None:
        """The original was measured, so that every limit is a number."""

    def judged(self, candidate: CandidateRecord) -> None:
        """A candidate was measured and judged, the original first."""


def fit(
    recipe: Recipe, directory: Path | str, *, listener: Listener | None = None, command: str | None = None
) -> RunRecord | MatrixRecord:
    """Flatten a network until its exported artifact meets what the recipe asks for.

    Args:
        directory: of the run; empty or absent.
        command: what the report names as the command of this run.

    Returns:
        The run, which also stands in `directory/report.json`; with `per_target` the page over a run a target. A goal
        that was missed is no error: `verdict` and `exit_code` of each run say it.

    Raises:
        PlanishError: as `planish fit` would say it; `exit_code` of the error is the command's.
    """
    profiles = profiles_of(recipe)
    run = RunDirectory.create(Path(directory), recipe.to_toml())
    return run_in(run, recipe, profiles, listener or Listener(), command or f"planish fit {run.root / 'recipe.toml'}")


def resume(
    directory: Path | str, *, listener: Listener | None = None, command: str | None = None
) -> RunRecord | MatrixRecord:
    """Go on with the run in `directory`, whatever ended it. What is finished is not done again.

    Raises:
        PlanishError: as `fit`; UsageError RUN_MISSING.
    """
    recipe = read_recipe(recipe_of(Path(directory)))
    profiles = profiles_of(recipe)
    run = RunDirectory.resume(Path(directory))
    words = f"planish fit --resume {shlex.quote(str(run.root))}"
    return run_in(run, recipe, profiles, listener or Listener(), command or words)


def profiles_of(recipe: Recipe) -> list[Profile]:
    """The recipe's targets, each of which can be measured on.

    Raises:
        UsageError: TARGET_UNKNOWN, PROFILE_INVALID; FORMAT_NOT_MODELLED for a mobile GPU and anything but TFLite.
        MissingEnvironmentError: EMULATOR_MISSING, GPU_DRIVER_MISSING.
    """
    profiles = [load_profile(name) for name in recipe.targets]
    if any(profile.kind == "emulator" for profile in profiles):
        require_emulator()
    for profile in profiles:
        if profile.kind == "gpu":
            _require_modelled(recipe, profile)
            require_gpu()
    return profiles


def _require_modelled(recipe: Recipe, profile: Profile) -> None:
    if recipe.formats[0] != MODELLED_FORMAT:
        raise UsageError(
            f"{recipe.formats[0]} cannot be aimed at {profile.title}",
            where="--format",
            why="what is known of mobile GPUs is of TFLite's delegate",
            fix=f"name {MODELLED_FORMAT} first; other formats are written beside it",
            code="FORMAT_NOT_MODELLED",
        )


def run_in(
    run: RunDirectory, recipe: Recipe, profiles: Sequence[Profile], listener: Listener, command: str
) -> RunRecord | MatrixRecord:
    """The run of a recipe in its directory, which is closed. However it ends, `status.json` says so, unless killed."""
    with contextlib.closing(run), _told(run):
        run.event("begin", schema=EVENTS_VERSION, command=command)
        if not (recipe.per_target and len(profiles) > 1):
            return _run(run, recipe, profiles, listener, command, datetime.now(UTC))

        def one(folder: RunDirectory, own: Recipe, profile: Profile) -> RunRecord:
            again = f"planish fit --resume {shlex.quote(str(folder.root))}"
            with contextlib.closing(folder), _told(folder):
                folder.event("begin", schema=EVENTS_VERSION, command=again)
                return _run(folder, own, [profile], listener, again, datetime.now(UTC))

        matrix = fit_each(run, recipe, profiles, one, _doing(run, listener), command)
        _ended(run, "met" if len(matrix.met) == len(matrix.rows) else "not-met", exit_code(matrix), matrix.headline)
        return matrix


@contextlib.contextmanager
def _told(run: RunDirectory) -> Iterator[None]:
    """An end before the end is written down."""
    try:
        yield
    except BaseException as error:
        state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        told = error.to_json() if isinstance(error, PlanishError) else repr(error)
        with contextlib.suppress(OSError):  # a full disk has no room for its own news
            run.status(state=state, error=told)
            run.event("stopped", state=state, error=told)
        raise


def _doing(run: RunDirectory, listener: Listener) -> Callable[[str], None]:
    def doing(text: str) -> None:
        listener.doing(text)
        run.status(state="running", doing=text, at=datetime.now(UTC))

    run.tell = doing
    return doing


def _ended(run: RunDirectory, verdict: str, code: int, headline: str) -> None:
    run.event("end", verdict=verdict, exit_code=code)
    run.status(state="done", verdict=verdict, exit_code=code, headline=headline)


def _run(
    run: RunDirectory,
    recipe: Recipe,
    profiles: Sequence[Profile],
    listener: Listener,
    command: str,
    started: datetime,
) -> RunRecord:
    write_atomic(run.root / "environment.json", json.dumps(environment(), indent=1) + "\n")
    stages = Stages(run, recipe, profiles, _doing(run, listener))

    def told(candidate: Candidate, limits: tuple[LimitRecord, ...]) -> None:
        if candidate.index == 0:
            goal = goal_record(recipe, limits, allowed_drop(stages, candidate), candidate.quality)
            listener.begun(recipe, [target_record(profile) for profile in profiles], goal)
        record = candidate_record(stages, candidate)
        listener.judged(record)
        run.event(
            "candidate",
            index=candidate.index,
            verdict=candidate.verdict,
            outcomes=[outcome.model_dump(mode="json") for outcome in candidate.outcomes],
        )

    result = search(stages, told)
    record = run_record(stages, result, command=command, started=started, finished=datetime.now(UTC))
    write(stages, result, record)
    _ended(run, record.verdict, record.exit_code, record.headline)
    return record
