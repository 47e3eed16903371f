"""What an export leaves behind: a file or a package, and the contract an app needs to load it."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from targets.errors import VerificationError


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of an artifact.

    Attributes:
        name: the name the runtime knows it by (ONNX value name, TFLite signature key).
        shape: as stored in the artifact, batch 1 first.
        dtype: numpy name, `float32`.
        layout: `NCHW` or `NHWC` for images and feature maps, `NC` for vectors, empty for anything else.
        minimum, maximum: range seen in the calibration data; inputs only.
        mean, std: of an image, one a channel: the input is (pixel / 255 - mean) / std. None where it is not known.
        labels: of the classes that an output holds scores of; empty where they are not known.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: str = ""
    minimum: float | None = None
    maximum: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    labels: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        """What an app feeds or receives, in words."""
        kind = f"{self.dtype} {self.layout}".strip()
        if self.mean is not None and self.std is not None:
            colours = {1: "a grey image", 3: "an RGB image"}.get(len(self.mean), "an image")
            plain = not any(self.mean) and set(self.std) == {1.0}
            return f"{colours}, {kind}: pixel / 255" if plain else f"{colours}, {kind}: (pixel / 255 - mean) / std"
        return f"scores of {len(self.labels)} classes, {kind}" if self.labels else kind

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TensorSpec:
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in data.items()})


@dataclass(frozen=True)
class Artifact:
    """An exported network at batch 1.

    Attributes:
        path: what the app loads: a file, or a directory (Core ML's packages are).
        format: name in `formats.FORMATS`.
        sha256: of the content (`sha256_of`); ties measurements and parity to these very bytes.
        bytes: size, of a directory that of all its files.
        runtime, runtime_minimum: what loads it, and the oldest version that does.
        tool_versions: packages that took part in the conversion.
        seconds: wall-clock time of the export, child interpreter included.
        peak_mib: most memory that the conversion held at once, MiB; None where it was not watched.
        beside: names of files in the same directory that go with it, say a list of required operators.
        delegation: what the format's delegate took and what it left (`delegated.facts`); None where none is built in.
    """

    path: Path
    format: str
    sha256: str
    bytes: int
    runtime: str
    runtime_minimum: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    tool_versions: dict[str, str]
    seconds: float
    peak_mib: float | None = None
    beside: tuple[str, ...] = ()
    delegation: dict[str, Any] | None = None

    def to_json(self, root: Path) -> dict[str, Any]:
        """Plain data with `path` relative to `root`, so that a run directory can be moved."""
        return {**asdict(self), "path": self.path.resolve().relative_to(root.resolve()).as_posix()}

    @classmethod
    def from_json(cls, data: dict[str, Any], root: Path) -> Artifact:
        """The inverse of `to_json`."""
        return cls(
            **{
                **data,
                "path": root / data["path"],
                "inputs": tuple(map(TensorSpec.from_json, data["inputs"])),
                "outputs": tuple(map(TensorSpec.from_json, data["outputs"])),
                "beside": tuple(data.get("beside", ())),
            }
        )

    def moved(self, directory: Path) -> Artifact:
        """The same in another directory of the file system, with what lies beside it."""
        for name in (self.path.name, *self.beside):
            os.replace(self.path.with_name(name), directory / name)
        return replace(self, path=directory / self.path.name)

    def discard(self) -> None:
        """Removes it from the disk, with what lies beside it."""
        for path in (self.path, *(self.path.with_name(name) for name in self.beside)):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def require_unchanged(self) -> None:
        """Raises VerificationError `ARTIFACT_CHANGED` unless the path still holds the bytes that were exported."""
        found = sha256_of(self.path) if self.path.exists() else None
        if found != self.sha256:
            found_text = f"its SHA-256 is {found[:12]}…" if found else "there is no such file any more"
            raise VerificationError(
                f"The {self.format} artifact is not the file that was exported.",
                where=str(self.path),
                why=f"{found_text}, the export recorded SHA-256 {self.sha256[:12]}….",
                fix="export the network again; an edited artifact is a new artifact.",
                code="ARTIFACT_CHANGED",
            )


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content; of a directory, that of its files' relative paths and digests, sorted by path."""
    if path.is_dir():
        lines = [f"{sha256_of(file)}  {file.relative_to(path).as_posix()}\n" for file in files_of(path)]
        return hashlib.sha256("".join(sorted(lines, key=lambda line: line[64:])).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_of(path: Path) -> list[Path]:
    """The file itself, or all files below a directory."""
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]


def bytes_of(path: Path) -> int:
    """Size of a file, or of all files below a directory."""
    return sum(file.stat().st_size for file in files_of(path))


def layout_of(rank: int, *, channels_last: bool) -> str:
    """The layout's name for a tensor of `rank` dimensions; `channels_last` speaks of images and feature maps."""
    return {2: "NC", 4: "NHWC" if channels_last else "NCHW"}.get(rank, "")
