"""The results that all runs share: one directory a key, whole or absent."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from pipeline.store.mark import MARK, DamagedError, Mark, read_mark, require_intact, transfer
from targets.cache import cache_root, staged_directory


class Store:
    """Content-addressed results in `root`, which need not exist.

    `objects/<key>` holds a result with its mark, whose time of change is that of its last use; `locks/<key>` is held by
    who makes it. An object is never changed: its files are linked into the runs that use it.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.objects = root, root / "objects"

    def lock(self, key: str) -> Path:
        """The file to lock while the result is made."""
        return self.root / "locks" / key

    def fetch(self, key: str, into: Path) -> Mark | None:
        """Put a result into an empty directory and check it there, out of the reach of others.

        Returns:
            None where there is no such result.

        Raises:
            DamagedError: it was not as it was made, and is dropped. OSError: it cannot be read, or `into` not written.
        """
        held = self.objects / key
        try:
            mark = read_mark(held)
            if mark is None:
                if held.exists():
                    raise DamagedError(f"{MARK} is missing")
                return None
            if mark.key != key:
                raise DamagedError(f"{MARK} is of another result")
            transfer(held, into, mark)
            require_intact(into, mark)
        except DamagedError:
            self.drop(key)
            raise
        with contextlib.suppress(OSError):  # a store that may only be read serves as well
            os.utime(held / MARK)
        return mark

    def put(self, directory: Path, mark: Mark) -> None:
        """Publish a finished stage; of two with one key the first stays. OSError where that cannot be done."""
        with staged_directory(self.objects / mark.key) as staging:
            transfer(directory, staging, mark)

    def drop(self, key: str) -> None:
        """Remove a result, as far as that is allowed. It is gone at once, not file by file."""
        away = self.objects / f".{key}.dropped-{os.getpid()}"
        with contextlib.suppress(OSError):
            os.replace(self.objects / key, away)
            shutil.rmtree(away)


def shared_store() -> Store:
    """The store in planish's cache."""
    return Store(cache_root() / "store")
