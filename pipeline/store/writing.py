"""Writing that tells a person, in planish's words, why it could not; and copies that a person may change."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from targets.errors import MissingEnvironmentError, PlanishError

PARTIAL = ".partial-"  # begins the name of a directory that is being made
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


class writing:
    """Context: turns "no space", "permission" and "read-only" of anything written under `where` into planish errors."""

    def __init__(self, where: Path) -> None:
        self.where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if (full := disk_full(error, self.where)) is not None:
            raise full from error
        if isinstance(error, OSError) and (error.errno in UNWRITABLE or self._is_absent(error)):
            raise MissingEnvironmentError(
                "the output directory cannot be written",
                where=str(self.where),
                why=str(error),
                fix="choose another -o, or make this one writable",
                code="OUTPUT_UNWRITABLE",
            ) from error

    def _is_absent(self, error: OSError) -> bool:
        """Whether `where` or a folder above it could not be made: what /proc answers instead of "not permitted"."""
        return error.errno == errno.ENOENT and Path(error.filename or "") in (self.where, *self.where.parents)


def disk_full(error: BaseException | None, where: Path | str) -> MissingEnvironmentError | None:
    """What to say of `error` if it means that there is no space left, else None.

    safetensors and torch write files in native code and report a full disk in words of their own.
    """
    if isinstance(error, PlanishError) or not (
        (isinstance(error, OSError) and error.errno in FULL)
        or any(words in str(error) for words in ("No space left on device", "PytorchStreamWriter failed"))
    ):
        return None
    return MissingEnvironmentError(
        "the disk is full",
        where=str(where),
        why=str(error),
        code="DISK_FULL",
        fix="free some space or choose another -o; finished stages are kept, --resume goes on from there",
    )


def copy_writable(source: Path, target: Path) -> None:
    """Copy a file or a directory of a stage, whose files are read-only, so that a person may change the copy."""
    if source.is_dir():
        shutil.copytree(source, target, copy_function=shutil.copyfile)
    else:
        shutil.copyfile(source, target)
