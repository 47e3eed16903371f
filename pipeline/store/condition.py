"""What a run is doing or how it ended, read from its directory; nothing is written, and nothing must be there."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pipeline.recipe import Limit, read_recipe
from pipeline.store.locks import is_held
from pipeline.store.run_directory import EVENTS, LOCK, RECIPE, STATUS, recipe_of
from targets.errors import PlanishError

State = Literal["running", "killed", "interrupted", "failed", "done"]


@dataclass(frozen=True)
class Condition:
    """Of one run.

    Attributes:
        state: `killed` says that the run neither ended nor has a process any more.
        what: it is doing, did last, or came to; in words.
        began: when the process that worked on it last began; None where it got nowhere.
        heard: when it last said something.
        limits: what was asked for; none where the recipe cannot be read.
        max_drop: quality that may be lost, as the user wrote it.
        candidates: the events of candidates judged so far, one each, in their order.
        resume: the command that goes on; None where nothing is left to do or a process is at it.
        parts: with `--per-target`, the run of each target.
    """

    directory: Path
    state: State
    what: str
    began: datetime | None
    heard: datetime
    limits: tuple[Limit, ...]
    max_drop: str | None
    candidates: tuple[dict[str, Any], ...]
    resume: str | None
    parts: tuple[Condition, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data for a script."""
        return {
            "directory": str(self.directory),
            "state": self.state,
            "what": self.what,
            "began": self.began and self.began.isoformat(),
            "heard": self.heard.isoformat(),
            "goal": [{"quantity": each.quantity, "target": each.target, "asked": each.text} for each in self.limits],
            "max_drop": self.max_drop,
            "candidates": list(self.candidates),
            "resume": self.resume,
            "parts": [each.to_json() for each in self.parts],
        }


def condition_of(root: Path) -> Condition:
    """The condition of the run in `root`. UsageError RUN_MISSING where there is none."""
    recipe_file = recipe_of(root)
    alive = is_held(root / LOCK)  # before its status is read: a run that ends meanwhile is then "running", not "killed"
    told, events = _status(root), list(_events(root))
    state = _state(alive, told.get("state"))
    began = [datetime.fromisoformat(event["time"]) for event in events if event["event"] == "begin"]
    judged = [{"outcomes": [], **event} for event in events if event["event"] == "candidate"]  # earlier ones had none
    candidates = {event["index"]: event for event in judged}
    try:
        recipe = read_recipe(recipe_file)
        limits, max_drop = recipe.limits, recipe.max_drop
    except PlanishError:  # of another version, or edited: the run can be told of all the same
        limits, max_drop = (), None
    return Condition(
        directory=root,
        state=state,
        what=_what(state, told, events),
        began=began[-1] if began else None,
        heard=_heard(root),
        limits=limits,
        max_drop=max_drop,
        candidates=tuple(candidates[index] for index in sorted(candidates)),
        resume=None if state in ("running", "done") else f"planish fit --resume {shlex.quote(str(root))}",
        parts=tuple(condition_of(part) for part in runs_under(root)),
    )


def runs_under(folder: Path) -> list[Path]:
    """The run directories in a folder, by name."""
    return sorted(path.parent for path in folder.glob(f"*/{RECIPE}"))


def _state(alive: bool, told: str | None) -> State:
    if alive:
        return "running"
    return told if told in ("interrupted", "failed", "done") else "killed"


def _what(state: State, told: dict[str, Any], events: list[dict[str, Any]]) -> str:
    if state == "running" and events and events[-1]["event"] == "waiting":
        return f"waiting for another run that makes {events[-1]['stage']}"
    if state in ("running", "killed"):
        return told.get("doing", "starting")
    if state == "done":
        return told.get("headline", "")
    error = told.get("error", "")
    return f"{error['what']} ({error['code']})" if isinstance(error, dict) else str(error)


def _status(root: Path) -> dict[str, Any]:
    try:
        return json.loads((root / STATUS).read_text())
    except (OSError, ValueError):
        return {}


def _events(root: Path) -> Iterator[dict[str, Any]]:
    """Those that can be read: a disk that was full may have cut one short."""
    try:
        lines = (root / EVENTS).read_text().splitlines()
    except OSError:
        return
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            continue


def _heard(root: Path) -> datetime:
    files = [root / name for name in (STATUS, EVENTS, RECIPE) if (root / name).exists()]
    return datetime.fromtimestamp(max(file.stat().st_mtime for file in files), UTC)
