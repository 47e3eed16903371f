"""The run directory: content-addressed stages, crash-safe writes, one process at a time.

A stage's result is a directory that appears whole or not at all: it is built under a temporary name and renamed, with
a mark inside that holds the key it was made from. The key is the SHA-256 of the stage's inputs, settings and code
version, so a stage is served exactly when it would come out the same: from the run itself, else from the store that all
runs share, whose files are linked into the run. Failures are recorded in `events.ndjson` and never served.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from pipeline.store.keys import stage_key
from pipeline.store.locks import PATIENCE_S, locked, take
from pipeline.store.mark import MARK, DamagedError, Mark, read_mark, require_intact, seal
from pipeline.store.objects import Store, shared_store
from pipeline.store.writing import FULL, PARTIAL, writing
from targets.cache import write_atomic
from targets.errors import MissingEnvironmentError, PlanishError, UsageError

RECIPE = "recipe.toml"
LOCK = ".lock"
STATUS = "status.json"
EVENTS = "events.ndjson"
UNWRITTEN = ".*.*.????????"  # what `write_atomic` leaves of a file when its process is killed


class RunDirectory:
    """One run. Use `create` or `resume`, then `stage` for every step."""

    def __init__(self, root: Path, lock: IO[str], store: Store, publishes: bool = True) -> None:
        self.root, self.store, self.publishes = root, store, publishes
        self.tell: Callable[[str], None] = lambda text: None  # hears what a person at the console wants to hear
        self._lock = lock
        self._fetched: set[str] = set()  # stages just taken from the store
        self._reserved: set[str] = set()  # keys whose turn a `reserved` block has
        self._warned = False
        for leftover in leftovers(root):
            shutil.rmtree(leftover, ignore_errors=True)
        for leftover in root.glob(UNWRITTEN):
            leftover.unlink()

    @classmethod
    def create(cls, root: Path, recipe_toml: str, *, publishes: bool = True) -> RunDirectory:
        """A new run in `root`, which must be empty or absent, or hold a run that ended before its first candidate.

        Args:
            publishes: whether what it makes is put into the store; without, the store is only read.

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
            if not (root / RECIPE).exists() and root.is_dir() and _others_files(root):
                raise UsageError(
                    "the output directory is not empty",
                    where=str(root),
                    why="it holds files that are not a run's",
                    fix="choose another -o, an empty directory or one that does not exist",
                    code="OUTPUT_NOT_EMPTY",
                )
            root.mkdir(parents=True, exist_ok=True)
            lock = take_run(root)
            write_atomic(root / RECIPE, recipe_toml)
        return cls(root, lock, shared_store(), publishes)

    @classmethod
    def resume(cls, root: Path) -> RunDirectory:
        """The run in `root`.

        Raises:
            UsageError: RUN_MISSING. MissingEnvironmentError: RUN_BUSY, OUTPUT_UNWRITABLE.
        """
        recipe_of(root)
        with writing(root):
            return cls(root, take_run(root), shared_store())

    def stage(self, name: str, inputs: Mapping[str, Any], make: Callable[[Path], Any], *, shared: bool = True) -> Any:
        """The result of a stage: read back if it was made from the same inputs, here or in another run, else made now.

        Of two runs that want the same the second waits for the first. That the store cannot be used fails no run.

        Args:
            name: directory of the stage, relative to the run.
            inputs: everything the result depends on, JSON-able.
            make: builds the stage's files in the directory it is given and returns a JSON-able result.
            shared: whether the result is as good in any other run; not what this machine's clock says.
        """
        key = stage_key(name, inputs)
        with contextlib.ExitStack() as turn:
            mark = self._own(name, key)
            if mark is None and shared:
                self._take_turn(turn, name, key)
                mark = self._from_store(name, key)
            if mark is not None:
                self.event("stage", stage=name, cached="store" if name in self._fetched else "run")
                self._fetched.discard(name)
                return mark.result
            mark = self._made(name, key, make)
            if shared and self.publishes:
                self._publish(self.root / name, mark)
        self.event("stage", stage=name, cached=False, seconds=mark.seconds)
        return mark.result

    @contextlib.contextmanager
    def reserved(self, wanted: Mapping[str, Mapping[str, Any]]) -> Iterator[list[str]]:
        """For stages that are made together: those that have to be made, which until the block ends no other run makes.

        Args:
            wanted: the inputs of each stage, by name.
        """
        keys = {name: stage_key(name, inputs) for name, inputs in wanted.items()}
        with contextlib.ExitStack() as turn:
            missing = [name for name, inputs in wanted.items() if not self.holds(name, inputs)]
            for name in sorted(
                missing, key=lambda name: keys[name]
            ):  # in one order, so that no two wait for each other
                self._take_turn(turn, name, keys[name])
                self._reserved.add(keys[name])
                turn.callback(self._reserved.discard, keys[name])
            yield [name for name in missing if self._from_store(name, keys[name]) is None]

    def close(self) -> None:
        """Let another process, or another part of this one, have the run."""
        self._lock.close()

    def keep_recipe(self, recipe_toml: str) -> None:
        """Go on with this recipe; a change is written down."""
        before = (self.root / RECIPE).read_text(encoding="utf-8")
        if before != recipe_toml:
            self.event("recipe", before=before, after=recipe_toml)
            write_atomic(self.root / RECIPE, recipe_toml)

    def holds(self, name: str, inputs: Mapping[str, Any]) -> bool:
        """Whether the stage was made from these inputs, here or in another run; from then on it is in this run."""
        key = stage_key(name, inputs)
        return (self._own(name, key) or self._from_store(name, key)) is not None

    def seconds(self, name: str) -> float:
        """Wall-clock seconds the stage took when it was made; 0.0 where it is not there."""
        try:
            mark = read_mark(self.root / name)
        except DamagedError:
            return 0.0
        return mark.seconds if mark else 0.0

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
        with (self.root / EVENTS).open("ab", buffering=0) as log:
            end = log.tell()
            if log.write(line) < len(line):
                log.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), log.name)

    def status(self, **fields: Any) -> None:
        """Replace `status.json`, what a person or a script polls."""
        write_atomic(self.root / STATUS, json.dumps(fields, default=str) + "\n")

    def log(self, name: str) -> Path:
        folder = self.root / "logs"
        folder.mkdir(exist_ok=True)
        return folder / f"{name}.log"

    # One stage -------------------------------------------------------------------------------------------------

    def _own(self, name: str, key: str) -> Mark | None:
        """The stage as this run holds it, if it was made from the same; removed where it is not as it was made."""
        directory = self.root / name
        try:
            mark = read_mark(directory)
            if mark is None or mark.key != key:
                return None
            require_intact(directory, mark)
        except DamagedError as error:
            self.event("dropped", stage=name, source="run", reason=str(error))
            shutil.rmtree(directory, ignore_errors=True)
            return None
        return mark

    def _take_turn(self, turn: contextlib.ExitStack, name: str, key: str) -> None:
        """Until `turn` ends, no other run makes this."""
        if not self.publishes or key in self._reserved:
            return

        def waiting() -> None:
            self.event("waiting", stage=name)
            self.tell(f"waiting for another run that makes {name}")

        try:
            turn.enter_context(locked(self.store.lock(key), waiting))
        except OSError as error:
            self._without_store(error)

    def _from_store(self, name: str, key: str) -> Mark | None:
        directory = self.root / name
        with writing(directory):
            try:
                with _partial(directory) as partial:
                    mark = self.store.fetch(key, partial)
                    if mark is None:
                        return None
                    _publish(partial, directory)
            except DamagedError as error:
                self.event("dropped", stage=name, source="store", reason=str(error))
                return None
            except OSError as error:
                if error.errno in FULL:
                    raise
                self._without_store(error)
                return None
        self._fetched.add(name)
        return mark

    def _made(self, name: str, key: str, make: Callable[[Path], Any]) -> Mark:
        directory = self.root / name
        try:
            with writing(directory), _partial(directory) as partial:
                started = time.monotonic()
                result = make(partial)
                seconds = round(time.monotonic() - started, 3)
                mark = seal(partial, key=key, stage=name, seconds=seconds, result=result)
                _publish(partial, directory)
        except BaseException as error:
            told = error.to_json() if isinstance(error, PlanishError) else repr(error)
            with contextlib.suppress(OSError):  # a full disk has no room for its own news
                self.event("failed", stage=name, error=told)
            raise
        return mark

    def _publish(self, directory: Path, mark: Mark) -> None:
        try:
            self.store.put(directory, mark)
        except OSError as error:
            self._without_store(error)

    def _without_store(self, error: OSError) -> None:
        """Say, once a process, that nothing is shared with other runs."""
        if not self._warned:
            self._warned = True
            self.event("warning", text="results are not shared with other runs", where=self.store.root, why=str(error))


def recipe_of(root: Path) -> Path:
    """The recipe's file of the run in `root`. UsageError RUN_MISSING when there is none."""
    if not (root / RECIPE).is_file():
        raise UsageError(
            "there is no run in this directory",
            where=str(root),
            why=f"it holds no {RECIPE}",
            fix="give the directory of an earlier run, or start one: planish fit MODEL ...",
            code="RUN_MISSING",
        )
    return root / RECIPE


def leftovers(root: Path) -> list[Path]:
    """What a killed process left half-made in a run; not in the runs below it, which have their own locks."""
    below = {path.parent for path in root.glob(f"*/{RECIPE}")}
    return [path for path in sorted(root.rglob(f"{PARTIAL}*")) if below.isdisjoint(path.parents)]


def take_run(root: Path) -> IO[str]:
    """The lock of the run in `root`, held until it is closed. MissingEnvironmentError RUN_BUSY where it is not free."""
    lock = take(root / LOCK, PATIENCE_S)
    if lock is None:
        raise MissingEnvironmentError(
            "another planish is working in this run directory",
            where=str(root),
            code="RUN_BUSY",
            why="its lock is held",
            fix="wait for it, stop it, or choose another -o",
        )
    return lock


def _others_files(root: Path) -> set[str]:
    """Names in a directory that are not of a run that was killed before its recipe was written."""
    return set(os.listdir(root)) - {LOCK} - {path.name for path in root.glob(f".{RECIPE}.????????")}


@contextlib.contextmanager
def _partial(directory: Path) -> Iterator[Path]:
    """A directory to make another in, beside it; it is gone when the block ends."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = directory.parent / f"{PARTIAL}{directory.name}-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _publish(partial: Path, directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(partial, directory)
