"""A place to write beside the destination: what is moved from it is whole, what is left in it is nothing.

A run that was killed leaves its staging directory behind, and the next export removes it: the directory is locked as
long as the run or its child lives, so a lock that can be taken means that both are gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = ".export-"


@contextlib.contextmanager
def staging_beside(directory: Path) -> Iterator[tuple[Path, int]]:
    """A fresh locked directory on the destination's file system, with the descriptor that holds its lock."""
    with _locked(directory.parent):  # so that nobody takes a new directory for a dead one before it is locked
        for leftover in directory.parent.glob(f"{PREFIX}*"):
            _remove_if_dead(leftover)
        staging = Path(tempfile.mkdtemp(prefix=PREFIX, dir=directory.parent))
        lock = os.open(staging, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield staging, lock
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(lock)


def move_into(directory: Path, staged: Path, *beside: Path) -> Path:
    """Moves the artifact `staged`, and before it what belongs beside it, into `directory`; returns where it is now.

    A file replaces an earlier one in a single step. A directory cannot: the earlier one is moved into the staging
    directory first, so that for a moment there is none, but never half of one.
    """
    directory.mkdir(exist_ok=True)
    for source in (*beside, staged):
        destination = directory / source.name
        if destination.is_dir():
            os.rename(destination, source.with_name(f"earlier-{source.name}"))
        os.replace(source, destination)
    _sync(directory)
    return directory / staged.name


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_if_dead(leftover: Path) -> None:
    descriptor = os.open(leftover, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(leftover)
    except BlockingIOError:
        pass  # a run beside this one is at work in it
    finally:
        os.close(descriptor)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
