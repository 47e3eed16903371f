"""Locks between processes, one file each. The kernel releases what a process held when it dies, however it dies."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

PATIENCE_S = 0.5  # another process that only looks is done by then


@contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock until the block ends; `waiting` is called, once, where another process keeps it longer.

    Raises:
        OSError: the lock cannot be made.
    """
    handle = take(path, PATIENCE_S)
    if handle is None:
        waiting()
        while handle is None:
            handle = _standing(path, fcntl.LOCK_EX)
    with handle:
        yield


def take(path: Path, patience_s: float = 0.0) -> IO[str] | None:
    """The lock, held until the handle is closed; None where another process keeps it for longer than that."""
    path.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + patience_s
    while (handle := _standing(path, fcntl.LOCK_EX | fcntl.LOCK_NB)) is None and time.monotonic() < end:
        time.sleep(0.02)
    return handle


def is_held(path: Path) -> bool:
    """Whether a process holds the lock; nothing is written, and nobody is kept from it for longer than this takes."""
    try:
        with path.open() as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _standing(path: Path, how: int) -> IO[str] | None:
    """The locked file; None where it is another's, or was removed (`collect` does) while this process waited for it."""
    handle = path.open("a")
    try:
        fcntl.flock(handle, how)
        here, there = os.fstat(handle.fileno()), os.stat(path)
        if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino):
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        handle.close()
        raise
    handle.close()
    return None
