"""The run directory: content-addressed stages, crash-safe writes, one process at a time.

A stage's result is a directory that appears whole or not at all: it is built under a temporary name and renamed, with
a `.stage.json` inside that holds the key it was made from. The key is the SHA-256 of the stage's inputs, settings and
code version, so a stage is served from the directory exactly when it would come out the same. Failures are recorded in
`events.ndjson` and never served.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from pipeline.store.keys import stage_key
from pipeline.store.writing import PARTIAL, writing
from targets.cache import write_atomic
from targets.errors import MissingEnvironmentError, PlanishError, UsageError

MARK = ".stage.json"
RECIPE = "recipe.toml"
LOCK = ".lock"


class RunDirectory:
    """One run. Use `create` or `resume`, then `stage` for every step."""

    def __init__(self, root: Path, lock: IO[str]) -> None:
        self.root = root
        self._lock = lock
        for leftover in root.rglob(f"{PARTIAL}*"):
            shutil.rmtree(leftover, ignore_errors=True)

    @classmethod
    def create(cls, root: Path, recipe_toml: str) -> RunDirectory:
        """A new run in `root`, which must be empty or absent, or hold a run that ended before its first candidate.

        Raises:
            UsageError: RUN_EXISTS, OUTPUT_NOT_EMPTY. MissingEnvironmentError: RUN_BUSY, OUTPUT_UNWRITABLE, DISK_FULL.
        """
        if any(root.glob(f"candidates/*/*/{MARK}")):
            raise UsageError(
                "the output directory already holds a run",
                where=str(root),
                why="there are candidates in it",
                fix=f"go on with it: planish fit --resume {root}; or choose another -o",
                code="RUN_EXISTS",
            )
        with writing(root):
            if not (root / RECIPE).exists() and root.is_dir() and set(os.listdir(root)) - {LOCK}:
                raise UsageError(
                    "the output directory is not empty",
                    where=str(root),
                    why="it holds files that are not a run's",
                    fix="choose another -o, an empty directory or one that does not exist",
                    code="OUTPUT_NOT_EMPTY",
                )
            root.mkdir(parents=True, exist_ok=True)
            lock = _locked(root)
            write_atomic(root / RECIPE, recipe_toml)
        return cls(root, lock)

    @classmethod
    def resume(cls, root: Path) -> RunDirectory:
        """The run in `root`.

        Raises:
            UsageError: RUN_MISSING. MissingEnvironmentError: RUN_BUSY, OUTPUT_UNWRITABLE.
        """
        recipe_of(root)
        with writing(root):
            return cls(root, _locked(root))

    def stage(self, name: str, inputs: Mapping[str, Any], make: Callable[[Path], Any]) -> Any:
        """The result of a stage: read back if it was made from the same inputs, else made now.

        Args:
            name: directory of the stage, relative to the run.
            inputs: everything the result depends on, JSON-able.
            make: builds the stage's files in the directory it is given and returns a JSON-able result.
        """
        key, directory = stage_key(name, inputs), self.root / name
        if (held := _held(directory)) is not None and held["key"] == key:
            self.event("stage", stage=name, cached=True)
            return held["result"]
        with writing(directory):
            directory.parent.mkdir(parents=True, exist_ok=True)
            partial = directory.parent / f"{PARTIAL}{directory.name}-{os.getpid()}"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            started = time.monotonic()
            try:
                result = make(partial)
                seconds = round(time.monotonic() - started, 3)
                (partial / MARK).write_text(json.dumps({"key": key, "seconds": seconds, "result": result}) + "\n")
                shutil.rmtree(directory, ignore_errors=True)
                os.replace(partial, directory)
            except BaseException as error:
                shutil.rmtree(partial, ignore_errors=True)
                told = error.to_json() if isinstance(error, PlanishError) else repr(error)
                with contextlib.suppress(OSError):  # a full disk has no room for its own news
                    self.event("failed", stage=name, error=told)
                raise
        self.event("stage", stage=name, cached=False, seconds=seconds)
        return json.loads(json.dumps(result))

    def holds(self, name: str, inputs: Mapping[str, Any]) -> bool:
        """Whether the stage was made from these inputs, and would be read back."""
        held = _held(self.root / name)
        return held is not None and held["key"] == stage_key(name, inputs)

    def seconds(self, name: str) -> float:
        """Wall-clock seconds the stage took when it was made."""
        held = _held(self.root / name)
        return held["seconds"] if held else 0.0

    def scratch(self, name: str) -> Path:
        """A file for checkpoints of a stage under way; `clear_scratch` removes it when the stage is done."""
        folder = self.root / "scratch"
        folder.mkdir(exist_ok=True)
        return folder / name

    def clear_scratch(self) -> None:
        shutil.rmtree(self.root / "scratch", ignore_errors=True)

    def event(self, kind: str, **fields: Any) -> None:
        """Append a line to `events.ndjson`, whole or not at all."""
        row = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": kind, **fields}
        line = (json.dumps(row, default=str) + "\n").encode()
        with (self.root / "events.ndjson").open("ab", buffering=0) as log:
            end = log.tell()
            if log.write(line) < len(line):
                log.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), log.name)

    def status(self, **fields: Any) -> None:
        """Replace `status.json`, what a person or a script polls."""
        write_atomic(self.root / "status.json", json.dumps(fields, default=str) + "\n")

    def log(self, name: str) -> Path:
        folder = self.root / "logs"
        folder.mkdir(exist_ok=True)
        return folder / f"{name}.log"


def recipe_of(root: Path) -> Path:
    """The recipe's file of the run in `root`. UsageError RUN_MISSING when there is none."""
    if not (root / RECIPE).is_file():
        raise UsageError(
            "there is no run to resume",
            where=str(root),
            why=f"it holds no {RECIPE}",
            fix="give the directory of an earlier run, or start one: planish fit MODEL ...",
            code="RUN_MISSING",
        )
    return root / RECIPE


def _held(directory: Path) -> dict[str, Any] | None:
    try:
        return json.loads((directory / MARK).read_text())
    except (OSError, json.JSONDecodeError):
        return None


def _locked(root: Path) -> IO[str]:
    lock = (root / LOCK).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise MissingEnvironmentError(
            "another planish is working in this run directory",
            where=str(root),
            code="RUN_BUSY",
            why="its lock is held",
            fix="wait for it, stop it, or choose another -o",
        ) from error
    return lock
