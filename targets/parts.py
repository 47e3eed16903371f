"""A part of a set-up: a directory in the cache, named after the hash of what it is made of, that lists its own files.

So a new version of anything is a new directory, and what was deleted or cut short since is seen before it is used.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

CONTENTS = "contents.json"  # of a part: every file with its size


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
