"""The mark of a finished stage: what it was made from, what it returned, and what every file of it must be.

A directory with a mark is whole. Like git's index, a check trusts a file whose size and time of change are as recorded
and reads any other. What it does not see is a change that keeps both, which no program makes by accident.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.export.artifact import sha256_of
from pipeline.store.keys import content_key

MARK = ".stage.json"
READ_ONLY = 0o444
NO_FILE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class DamagedError(Exception):
    """A directory that is not what its mark says; the message is the reason, in words."""


@dataclass(frozen=True)
class File:
    """One file of a stage as it was made; `mtime_ns` is its time of change in nanoseconds since 1970."""

    bytes: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True)
class Mark:
    """What `.stage.json` holds.

    Attributes:
        key: the hash of all that the result depends on (`keys.stage_key`).
        stage: its name in the run that made it.
        seconds: wall-clock time it took to make.
        result: what it returned, as plain JSON data.
        files: by path relative to the directory.
    """

    key: str
    stage: str
    seconds: float
    result: Any
    files: dict[str, File]

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(file.bytes for file in self.files.values())

    def write(self, directory: Path) -> None:
        """Write the mark, with a digest of itself: the result it holds has no other guard."""
        fields = asdict(self)
        (directory / MARK).write_text(json.dumps({**fields, "digest": content_key(fields)}) + "\n")


def seal(directory: Path, *, key: str, stage: str, seconds: float, result: Any) -> Mark:
    """Mark a directory as whole and make its files read-only, since others will share them.

    Raises:
        TypeError: `result` is not JSON data.
    """
    files = {}
    for path in _files(directory):
        path.chmod(READ_ONLY)
        facts = path.stat()
        name = path.relative_to(directory).as_posix()
        files[name] = File(facts.st_size, facts.st_mtime_ns, sha256_of(path))
    mark = Mark(key, stage, seconds, json.loads(json.dumps(result)), files)
    mark.write(directory)
    return mark


def read_mark(directory: Path) -> Mark | None:
    """The mark of a directory; None where there is none. DamagedError where it is not as it was written."""
    try:
        text = (directory / MARK).read_bytes()
    except NO_FILE:
        return None
    try:
        fields = json.loads(text)
        digest = fields.pop("digest")
        files = {name: File(**file) for name, file in fields.pop("files").items()}
        mark = Mark(**fields, files=files)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedError(f"{MARK} cannot be read: {error!r}") from error
    if digest != content_key(asdict(mark)):
        raise DamagedError(f"{MARK} is not as it was written")
    return mark


def require_intact(directory: Path, mark: Mark) -> None:
    """Raise DamagedError unless every file is there as it was made. What else lies there is not looked at."""
    for name, file in mark.files.items():
        path = directory / name
        try:
            facts = path.stat()
        except NO_FILE as error:
            raise DamagedError(f"{name} is missing") from error
        if facts.st_size != file.bytes:
            raise DamagedError(f"{name} has {facts.st_size} bytes, it was made with {file.bytes}")
        if facts.st_mtime_ns != file.mtime_ns and sha256_of(path) != file.sha256:
            raise DamagedError(f"{name} has another content than it was made with")


def transfer(source: Path, target: Path, mark: Mark) -> None:
    """Put the files of a stage, and its mark, into another directory: as hard links, else as copies.

    Raises:
        DamagedError: one is missing. OSError: it cannot be read or written.
    """
    for name in mark.files:
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _link(source / name, path)
        except NO_FILE as error:
            raise DamagedError(f"{name} is missing") from error
    mark.write(target)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except NO_FILE:
        raise
    except OSError:  # another file system, or one without links, or the most links a file can have
        shutil.copy2(source, target)


def _files(directory: Path) -> Iterator[Path]:
    return (path for path in sorted(directory.rglob("*")) if path.is_file())
