"""The run directory: content-addressed stages, crash-safe writes, one process at a time.

A stage's result is a directory that appears whole or not at all: it is built under a temporary name and renamed, with
a `.stage.json` inside that holds the key it was made from. The key is the SHA-256 of the stage's inputs, settings and
code version, so a stage is served from the directory exactly when it would come out the same. Failures are recorded in
`events.ndjson` and never served.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from targets.cache import write_atomic
from targets.errors import MissingEnvironmentError, PlanishError, UsageError

MARK = ".stage.json"
STAGE_VERSION = 1  # raise it when the code of a stage changes what it makes


class RunDirectory:
    """One run. Use `create` or `resume`, then `stage` for every step."""

    def __init__(self, root: Path, lock: IO[str]) -> None:
        self.root = root
        self._lock = lock
        for leftover in root.rglob(".partial-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    @classmethod
    def create(cls, root: Path, recipe_toml: str) -> RunDirectory:
        """A new run in `root`, which must be empty or absent.

        Raises:
            UsageError: RUN_EXISTS. MissingEnvironmentError: OUTPUT_UNWRITABLE, DISK_FULL.
        """
        if (root / "recipe.toml").exists():
            raise UsageError(
                "the output directory already holds a run",
                where=str(root),
                why="recipe.toml is there",
                fix=f"go on with it: planish fit --resume {root}; or choose another -o",
                code="RUN_EXISTS",
            )
        with writing(root):
            root.mkdir(parents=True, exist_ok=True)
            lock = _locked(root)
            write_atomic(root / "recipe.toml", recipe_toml)
        return cls(root, lock)

    @classmethod
    def resume(cls, root: Path) -> RunDirectory:
        """The run in `root`.

        Raises:
            UsageError: RUN_MISSING. MissingEnvironmentError: RUN_BUSY, OUTPUT_UNWRITABLE.
        """
        if not (root / "recipe.toml").is_file():
            raise UsageError(
                "there is no run to resume",
                where=str(root),
                why="it holds no recipe.toml",
                fix="give the directory of an earlier run, or start one with planish fit MODEL ...",
                code="RUN_MISSING",
            )
        with writing(root):
            return cls(root, _locked(root))

    def stage(self, name: str, inputs: Mapping[str, Any], make: Callable[[Path], Any]) -> Any:
        """The result of a stage: read back if it was made from the same inputs, else made now.

        Args:
            name: directory of the stage, relative to the run.
            inputs: everything the result depends on, JSON-able.
            make: builds the stage's files in the directory it is given and returns a JSON-able result.
        """
        key = content_key({"stage": name, "version": STAGE_VERSION, **inputs})
        directory = self.root / name
        if (held := _held(directory)) is not None and held["key"] == key:
            self.event("stage", stage=name, cached=True)
            return held["result"]
        with writing(directory):
            directory.parent.mkdir(parents=True, exist_ok=True)
            partial = directory.parent / f".partial-{directory.name}-{os.getpid()}"
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
                self.event(
                    "failed", stage=name, error=error.to_json() if isinstance(error, PlanishError) else repr(error)
                )
                raise
        self.event("stage", stage=name, cached=False, seconds=seconds)
        return json.loads(json.dumps(result))

    def has(self, name: str) -> bool:
        return _held(self.root / name) is not None

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
        """Append a line to `events.ndjson`."""
        row = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": kind, **fields}
        with (self.root / "events.ndjson").open("a") as log:
            log.write(json.dumps(row, default=str) + "\n")

    def status(self, **fields: Any) -> None:
        """Replace `status.json`, what a person or a script polls."""
        write_atomic(self.root / "status.json", json.dumps(fields, default=str) + "\n")

    def log(self, name: str) -> Path:
        folder = self.root / "logs"
        folder.mkdir(exist_ok=True)
        return folder / f"{name}.log"


def content_key(value: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON-able value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


class writing:
    """Context: turns "no space", "permission" and "read-only" of anything written under `where` into planish errors."""

    def __init__(self, where: Path) -> None:
        self.where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        number = error.errno if isinstance(error, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or _says_full(error):
            raise MissingEnvironmentError(
                "the disk is full",
                where=str(self.where),
                why=str(error),
                code="DISK_FULL",
                fix="free some space or choose another -o; finished stages are kept, --resume goes on from there",
            ) from error
        if number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise MissingEnvironmentError(
                "the output directory cannot be written",
                where=str(self.where),
                why=str(error),
                fix="choose another -o, or make this one writable",
                code="OUTPUT_UNWRITABLE",
            ) from error


def _says_full(error: BaseException | None) -> bool:
    """safetensors and torch write files in native code and report a full disk in words of their own."""
    return (
        error is not None
        and not isinstance(error, PlanishError)
        and ("No space left on device" in str(error) or "PytorchStreamWriter failed" in str(error))
    )


def _held(directory: Path) -> dict[str, Any] | None:
    try:
        return json.loads((directory / MARK).read_text())
    except (OSError, json.JSONDecodeError):
        return None


def _locked(root: Path) -> IO[str]:
    lock = (root / ".lock").open("w")
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
