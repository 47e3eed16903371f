"""Takes back disk space: results that no run has used for long, and what a finished run no longer needs."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.export.artifact import bytes_of, files_of
from pipeline.store.locks import is_held, take
from pipeline.store.mark import MARK
from pipeline.store.objects import Store
from pipeline.store.run_directory import leftovers

KEPT = (".json", ".csv", ".ndjson")  # of a losing candidate: what was decided and what was measured


@dataclass
class Sweep:
    """Removes, or only counts what it would remove, and keeps the books.

    Attributes:
        removed: results, and files of runs.
        bytes: their size.
        freed_bytes: what the disk has more: a file leaves it with the last of the directories that share it.
        busy: results left alone, since another process makes or reads them.
        gone: of a dry run, links to each file that it counted; several sweeps may share it.
    """

    dry_run: bool = False
    removed: int = 0
    bytes: int = 0
    freed_bytes: int = 0
    busy: int = 0
    gone: Counter[tuple[int, int]] = field(default_factory=Counter)

    def remove(self, path: Path) -> None:
        """A file or a directory."""
        self.removed += 1
        for file in files_of(path):
            facts = file.stat()
            place = (facts.st_dev, facts.st_ino)
            self.bytes += facts.st_size
            if facts.st_nlink - self.gone[place] == 1:
                self.freed_bytes += facts.st_size
            if self.dry_run:
                self.gone[place] += 1
        if not self.dry_run:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@dataclass(frozen=True)
class Held:
    """A result in the store: its key, when it was last used (seconds since 1970), the size of its files."""

    key: str
    used: float
    bytes: int


def held(store: Store) -> list[Held]:
    """Every result, the one that was used last at the end."""
    found = []
    for directory in store.objects.glob("[!.]*"):
        mark = directory / MARK
        with suppress(FileNotFoundError):  # another process has removed it meanwhile
            used = (mark if mark.exists() else directory).stat().st_mtime
            found.append(Held(directory.name, used, bytes_of(directory)))
    return sorted(found, key=lambda each: (each.used, each.key))


def stale(results: list[Held], *, before: float | None, most_bytes: float | None) -> list[Held]:
    """What goes: what was last used before a time, and then the least recently used until the rest is small enough.

    Args:
        results: as `held` gives them.
        before: seconds since 1970; None where age is no reason.
        most_bytes: that may stay; None where size is no reason.
    """
    total, going = sum(each.bytes for each in results), []
    for each in results:
        if (before is not None and each.used < before) or (most_bytes is not None and total > most_bytes):
            going.append(each)
            total -= each.bytes
    return going


def sweep_store(store: Store, going: list[Held], sweep: Sweep) -> None:
    """Remove results, and what killed processes left half-written; never what a living process makes or reads."""
    for each in going:
        _remove(store, each.key, store.objects / each.key, sweep)
    for leftover in store.objects.glob(".*"):
        _remove(store, leftover.name.split(".")[1], leftover, sweep)
    if not sweep.dry_run:
        _remove_locks(store)


def sweep_run(root: Path, winner: int, sweep: Sweep) -> None:
    """Remove what a finished run's winner does not need; report, recipe, bundle, events and measurements stay."""
    for path in list(unneeded(root, winner)):
        sweep.remove(path)


def unneeded(root: Path, winner: int) -> Iterator[Path]:
    """What the stages hold beside the original network, the winner, and tables and records, which are small."""
    needed = (root / "base", root / "candidates" / f"{winner:02d}")
    for mark in sorted(root.rglob(MARK)):
        stage = mark.parent
        if not any(stage.is_relative_to(place) for place in needed):
            yield from (path for path in sorted(stage.iterdir()) if path.is_dir() or path.suffix not in KEPT)
    yield from (path for path in (root / "scratch",) if path.exists())
    yield from leftovers(root)


def _remove(store: Store, key: str, path: Path, sweep: Sweep) -> None:
    lock = nullcontext() if sweep.dry_run and not is_held(store.lock(key)) else take(store.lock(key))
    if lock is None:
        sweep.busy += 1
        return
    with lock:
        if path.exists():
            sweep.remove(path)


def _remove_locks(store: Store) -> None:
    """The locks of what is not there; who waits for one notices that it is gone and takes another."""
    for path in store.lock("").glob("*"):
        if not (store.objects / path.name).exists() and (lock := take(path)) is not None:
            with lock:
                path.unlink(missing_ok=True)
