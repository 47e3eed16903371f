"""Where samples come from: arrays, a sequence of the user's, a folder of images.

A source hands out one sample at a time in its own dtype; `dataset.Samples` scales, checks and batches them.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from calibration.callables import UserCallable
from targets.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


class Source(Protocol):
    """Samples by index. `sample(i)` gives x without a batch dimension (uint8 or floating) and its label, if any."""

    def __len__(self) -> int: ...

    def sample(self, index: int) -> tuple[np.ndarray, int | None]: ...

    def where(self, index: int) -> str:
        """What an error calls the sample: a file, or a place in an array."""
        ...


@dataclass(frozen=True, eq=False)
class ArraySource:
    """x: [N, ...] uint8 or floating; y: [N] int64, or None."""

    name: str
    x: np.ndarray
    y: np.ndarray | None

    def __post_init__(self) -> None:
        if self.x.ndim < 2:
            raise UsageError(
                "the samples are not an array of samples",
                where=self.name,
                why=f"x has shape {list(self.x.shape)}; the first dimension counts samples",
                fix="give x the shape [N, channels, height, width], or [N, features]",
                code="DATA_FORMAT",
            )
        if self.y is not None and len(self.x) != len(self.y):
            raise UsageError(
                "samples and labels differ in number",
                where=self.name,
                why=f"x holds {len(self.x)} samples, y holds {len(self.y)} labels",
                fix="write both from the same list",
                code="DATA_LABELS",
            )

    def __len__(self) -> int:
        return len(self.x)

    def sample(self, index: int) -> tuple[np.ndarray, int | None]:
        return self.x[index], None if self.y is None else int(self.y[index])

    def where(self, index: int) -> str:
        return f"sample {index} of {self.name}"


@dataclass(frozen=True, eq=False)
class SequenceSource:
    """A map-style torch `Dataset` or a list of the user's, whose items are `(x, label)` or `x` alone."""

    origin: UserCallable
    items: Any

    def __len__(self) -> int:
        return len(self.items)

    def sample(self, index: int) -> tuple[np.ndarray, int | None]:
        try:
            item = self.items[index]
        except Exception as error:  # anything may go wrong in user code
            raise self.origin.failure(error) from error
        x, y = item if isinstance(item, tuple | list) and len(item) == 2 else (item, None)
        return self._as_sample(x, index), self._as_label(y, index)

    def _as_sample(self, x: Any, index: int) -> np.ndarray:
        from torch import Tensor

        if not isinstance(x, Tensor | np.ndarray):
            raise UsageError(
                "a sample is neither a tensor nor an array",
                where=self.where(index),
                why=f"it is a {type(x).__module__}.{type(x).__qualname__}",
                fix="return (x, label) or x, with x a float32 tensor; for PIL images apply "
                "torchvision.transforms.ToTensor()",
                code="DATA_FORMAT",
            )
        return as_array(x, self.where(index))

    def _as_label(self, y: Any, index: int) -> int | None:
        if y is None:
            return None
        label = np.asarray(y)
        if label.size != 1 or not np.issubdtype(label.dtype, np.integer):
            raise UsageError(
                "a label is not a class number",
                where=self.where(index),
                why=f"it is {y!r:.80}",
                fix="return the class as an integer",
                code="DATA_LABELS",
            )
        return int(label.reshape(()))

    def where(self, index: int) -> str:
        return f"sample {index} of {self.origin.reference}"


@dataclass(frozen=True, eq=False)
class FolderSource:
    """Image files and their labels, decoded when asked for; up to `cache_bytes` of decoded pixels are kept."""

    files: tuple[Path, ...]
    labels: tuple[int, ...] | None
    shape: tuple[int, ...] | None  # [C, H, W]; None keeps each image's own size, as RGB
    cache_bytes: int = 256 << 20
    _cache: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.shape is not None and (len(self.shape) != 3 or self.shape[0] not in (1, 3)):
            raise UsageError(
                "the network's input is not an image",
                where=str(self.files[0].parent),
                why=f"it takes samples of shape {list(self.shape)}; images have 1 or 3 channels, height and width",
                fix="give the samples as an .npz or as file.py:callable",
                code="DATA_SHAPE",
            )

    def __len__(self) -> int:
        return len(self.files)

    def sample(self, index: int) -> tuple[np.ndarray, int | None]:
        pixels = self._cache.get(index)
        if pixels is None:
            pixels = self._decode(self.files[index])
            if (len(self._cache) + 1) * pixels.size <= self.cache_bytes:
                self._cache[index] = pixels
        return pixels, None if self.labels is None else self.labels[index]

    def _decode(self, file: Path) -> np.ndarray:
        """[C, H, W] uint8: scaled until it just covers height and width, and cropped at the centre."""
        from PIL import Image, ImageOps

        try:
            with Image.open(file) as opened:
                if opened.mode.startswith(("I", "F")):
                    raise ValueError(f"pixels of mode {opened.mode} have no known range; 8 bits a channel are expected")
                image = opened.convert("L" if self.shape is not None and self.shape[0] == 1 else "RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # PIL raises all of these
            raise UsageError(
                "an image cannot be read",
                where=str(file),
                why=str(error),
                fix="replace or remove the file",
                code="DATA_FORMAT",
            ) from error
        if self.shape is not None:
            height, width = self.shape[1:]
            image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
        pixels = np.array(image)
        return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def where(self, index: int) -> str:
        return str(self.files[index])


def read_folder(
    folder: Path, shape: tuple[int, ...] | None, classes: int | None
) -> tuple[FolderSource, tuple[str, ...]]:
    """Class folders, in sorted order, become labels 0, 1, ...; images directly in `folder` have no labels.

    Returns the source and the names of the classes (none without labels).
    """
    class_folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not any(_images(path) for path in class_folders):
        files = _images(folder, deep=False)
        if not files:
            raise UsageError(
                "the data folder holds no images",
                where=str(folder),
                why=f"no file in it or its class folders ends in {', '.join(sorted(IMAGE_SUFFIXES))}",
                fix="put the images in one folder a class: DATA/<class>/<image>",
                code="DATA_EMPTY",
            )
        return FolderSource(tuple(files), None, shape), ()
    if classes is not None and len(class_folders) != classes:
        raise UsageError(
            "the class folders do not match the network's classes",
            where=str(folder),
            why=f"{len(class_folders)} folders, {classes} classes; labels are their sorted places",
            fix="make one folder a class (it may be empty), named to sort in the order of the outputs",
            code="DATA_LABELS",
        )
    labelled = [(file, label) for label, path in enumerate(class_folders) for file in _images(path)]
    files, labels = zip(*labelled, strict=True)
    return FolderSource(files, labels, shape), tuple(path.name for path in class_folders)


def _images(folder: Path, deep: bool = True) -> list[Path]:
    found = folder.rglob("*") if deep else folder.glob("*")
    return sorted(path for path in found if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def read_npz(file: Path) -> ArraySource:
    """Array `x` (or the first that is not `y`) holds the samples, array `y`, if there is one, the labels."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(
            "the .npz file cannot be read",
            where=str(file),
            why=str(error),
            fix="write it again with numpy.savez_compressed(path, x=samples, y=labels), plain arrays only",
            code="DATA_FORMAT",
        ) from error
    return from_arrays(arrays, str(file))


def from_arrays(arrays: Mapping[str, Any], name: str) -> ArraySource:
    """As `read_npz`, for arrays or tensors in memory."""
    key = "x" if "x" in arrays else next((candidate for candidate in arrays if candidate != "y"), None)
    if key is None:
        raise UsageError(
            "there is no array of samples",
            where=name,
            why=f"the arrays are {sorted(arrays) or 'none'}",
            fix="name the samples x and the labels y",
            code="DATA_FORMAT",
        )
    y = arrays.get("y")
    return ArraySource(name, as_array(arrays[key], name), None if y is None else _labels(y, name))


def _labels(y: Any, name: str) -> np.ndarray:
    """[N] int64; DATA_LABELS for anything that is not a list of whole numbers."""
    array = np.asarray(y)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise UsageError(
            "the labels are not class numbers",
            where=name,
            why=f"y has shape {list(array.shape)} and type {array.dtype}",
            fix="give y the shape [N] and an integer type; for one-hot rows use y.argmax(1)",
            code="DATA_LABELS",
        )
    return array.astype(np.int64)


def from_returned(returned: Any, origin: UserCallable, limit: int | None) -> Source:
    """The source for whatever a data callable returned; see `dataset.open_samples` for what is accepted.

    An iterator is read until it ends or `limit` samples are there.
    """
    from torch import Tensor
    from torch.utils.data import DataLoader

    arrays = (Tensor, np.ndarray)
    if isinstance(returned, DataLoader):
        raise _unusable(origin, "a DataLoader, which batches and may shuffle", "return its .dataset")
    if isinstance(returned, Mapping):
        return from_arrays(returned, origin.reference)
    if isinstance(returned, arrays):
        return from_arrays({"x": returned}, origin.reference)
    if isinstance(returned, tuple) and len(returned) == 2 and all(isinstance(part, arrays) for part in returned):
        return from_arrays({"x": returned[0], "y": returned[1]}, origin.reference)
    if hasattr(returned, "__getitem__") and hasattr(returned, "__len__") and not isinstance(returned, str | bytes):
        return SequenceSource(origin, returned)
    if isinstance(returned, Iterable) and not isinstance(returned, str | bytes):
        try:
            return SequenceSource(origin, list(islice(returned, limit)))
        except Exception as error:  # anything may go wrong in user code
            raise origin.failure(error) from error
    raise _unusable(
        origin,
        f"a {type(returned).__name__}",
        "return a torch Dataset, a list of (x, label), a dict or pair of arrays, or an iterator of samples",
    )


def _unusable(origin: UserCallable, what: str, fix: str) -> UsageError:
    return UsageError(
        f"the data callable '{origin.reference}' returned nothing usable",
        where=origin.file or origin.reference,
        why=f"it returned {what}",
        fix=fix,
        code="DATA_CALLABLE",
    )


def as_array(x: Any, where: str) -> np.ndarray:
    """x as a uint8 or floating array; DATA_FORMAT for any other type, since its scale would be a guess."""
    array = _of_tensor(x) if hasattr(x, "detach") else np.asarray(x)
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise UsageError(
            f"samples of type {array.dtype} cannot be used",
            where=where,
            why="only uint8 (scaled to [0, 1]) and floating samples have a known meaning",
            fix="convert them to the float32 values that the network expects",
            code="DATA_FORMAT",
        )
    return np.ascontiguousarray(array).astype(array.dtype.newbyteorder("="), copy=False)


def _of_tensor(x: Tensor) -> np.ndarray:
    import torch

    known = not x.is_floating_point() or x.dtype in (torch.float16, torch.float32, torch.float64)
    return (x if known else x.float()).detach().cpu().numpy()  # NumPy has no bfloat16
