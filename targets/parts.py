"""A part of a set-up: a directory in the cache, named after the hash of what it is made of, that lists its own files.

So a new version of anything is a new directory, and what was deleted or cut short since is seen before it is used.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from targets.cache import exclusive, staged_directory

CONTENTS = "contents.json"  # of a part: every file with its size

Progress = Callable[[str], None]
Build = Callable[[Path, Progress], None]


def build_missing(
    home: Path, steps: Iterable[tuple[Path, Build]], needed_bytes: int, progress: Progress, *, kept: str = ""
) -> None:
    """Build those parts in `home` that are missing or damaged, one after another, each whole or not at all.

    Of two processes the second waits, and finds them built.

    Args:
        steps: (where a part belongs, what builds it in the folder it is given).
        needed_bytes: free on the disk before anything is built.
        kept: how hidden folders begin that are none of a killed set-up's.

    Raises:
        OSError: too little is free, or the disk cannot be written.
    """
    with exclusive(home / "setup.lock"):
        free = shutil.disk_usage(home).free
        if free < needed_bytes:
            raise OSError(f"{free / 1e6:.0f} MB are free, {needed_bytes / 1e6:.0f} MB are needed")
        for killed in home.glob(".*"):  # what a killed set-up left; nobody else builds parts under this lock
            if not (kept and killed.name.startswith(kept)):
                shutil.rmtree(killed)
        for final, build in steps:
            if final.exists() and (harm := damage(final)):
                progress(f"building {final.name} again: {harm}")
                shutil.rmtree(final)
            if not final.exists():
                with staged_directory(final) as staging:
                    build(staging, progress)
                    record_contents(staging)


def part(home: Path, name: str, made_of: list[str]) -> Path:
    """Where the part `name` belongs that is made of `made_of`."""
    return home / f"{name}-{hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:12]}"


def record_contents(part: Path) -> None:
    """Note every file of a finished part with its size, for `damage`."""
    sizes = {str(file.relative_to(part)): file.lstat().st_size for file in part.rglob("*") if not file.is_dir()}
    (part / CONTENTS).write_text(json.dumps(sizes), encoding="utf-8")


def damage(part: Path) -> str | None:
    """What is wrong with the files of a part: some are gone or have another size. None where nothing is.

    Some thousand files are looked at in some hundredths of a second; their bytes are not read.
    """
    try:
        sizes = json.loads((part / CONTENTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"its list of files cannot be read: {error}"
    wrong = [name for name, size in sizes.items() if _size(part / name) != size]
    if not wrong:
        return None
    return f"{len(wrong)} of its {len(sizes)} files are missing or have another size, {wrong[0]} first"


def _size(file: Path) -> int | None:
    try:
        return file.lstat().st_size
    except OSError:
        return None


def libraries(root: Path) -> str:
    """`LD_LIBRARY_PATH` under which programs unpacked into `root` find their libraries."""
    return ":".join(str(path) for base in ("usr/lib", "lib") for path in root.glob(f"{base}/*-linux-gnu"))


def versions(part: Path) -> dict[str, str]:
    """Package name -> version, of what a part was unpacked from."""
    return json.loads((part / "versions.json").read_text(encoding="utf-8"))


def record_versions(part: Path, versions: dict[str, str]) -> None:
    """Keep them in the part."""
    (part / "versions.json").write_text(json.dumps(versions), encoding="utf-8")
