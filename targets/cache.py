"""Where planish keeps what it can rebuild, and how two processes share it safely.

`$PLANISH_CACHE`, else `$XDG_CACHE_HOME/planish`, else `~/.cache/planish`.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_root() -> Path:
    """The cache directory as an absolute path; it need not exist yet."""
    if explicit := os.environ.get("PLANISH_CACHE"):
        return Path(explicit).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "planish"


@contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Hold `lock` for this process; others wait. The kernel releases it if the process dies."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "w", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def staged_directory(final: Path) -> Iterator[Path]:
    """A temporary sibling that becomes `final` when the block ends well and vanishes when it does not.

    Of two processes that build the same directory, the first wins and the other's is thrown away.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    try:
        yield staging
        staging.chmod(0o755)
        try:
            staging.rename(final)
        except OSError:
            if not final.exists():
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_atomic(path: Path, text: str) -> None:
    """Write `text` so that a reader sees either the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
