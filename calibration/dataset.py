"""The user's samples: opened from one of four places, checked, and handed out in batches of a fixed order.

They are read as NumPy arrays: PyTorch is imported by who asks for tensors, as `planish measure` does not.
"""

from __future__ import annotations

import hashlib
import math
import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from calibration.callables import load_callable
from calibration.sources import Source, from_returned, read_folder, read_npz
from targets.errors import UsageError, nearest

if TYPE_CHECKING:
    from torch import Tensor

PASS_VALUES = 1 << 21  # of the inputs of one forward pass


@dataclass(frozen=True)
class SampleInfo:
    """What `Samples.validate` saw. `minimum` and `maximum` are of x as the network receives it."""

    count: int
    shape: tuple[int, ...]
    has_labels: bool
    classes: int | None
    minimum: float
    maximum: float


@dataclass(frozen=True)
class Normalization:
    """(x - mean) / std per channel, after uint8 has been scaled to [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """x: [C, ...] float32."""
        mean, std = (np.reshape(each, (-1,) + (1,) * (x.ndim - 1)) for each in (self.mean, self.std))
        return (x - mean.astype(np.float32)) / std.astype(np.float32)


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples in a fixed order. A sample is x: float32 of `shape` (no batch dimension), with or without a class number.

    Immutable: `take`, `split` and `select` return new values over the same source. Images are decoded when a batch asks
    for them, arrays stay in the type they were stored in.

    Attributes:
        name: what the user called the data, for messages.
        shape: of every sample; a batch is [B, *shape].
        classes: number of classes, where the user or the class folders tell it.
        class_names: of the class folders, in the order of the labels; empty for other sources.
        has_labels: whether every sample has a class number.
    """

    name: str
    shape: tuple[int, ...]
    classes: int | None
    has_labels: bool
    _source: Source
    _indices: tuple[int, ...]
    _normalization: Normalization | None = None
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def pixel_normalization(self) -> Normalization | None:
        """What turns pixels of 0 to 255, divided by 255, into what the network takes: one mean and std a channel.

        None for samples that are no images of 8 bits: what was done to them before is not known.
        """
        x, _ = self._source.sample(self._indices[0])
        if x.dtype != np.uint8 or x.ndim != 3:
            return None
        known = self._normalization or Normalization((0.0,), (1.0,))
        return Normalization(*(values * (x.shape[0] // len(values)) for values in (known.mean, known.std)))

    @property
    def batch_size(self) -> int:
        """Samples in one forward pass: 64, but fewer large ones, for their feature maps take memory."""
        return min(64, max(8, PASS_VALUES // math.prod(self.shape)))

    def arrays(self, batch_size: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Yields x: [B, *shape] float32 and y: [B] int64 (None without labels), always in the same order.

        The last batch holds what is left over. Raises `UsageError` DATA_SHAPE, DATA_LABELS, DATA_FORMAT or
        DATA_CALLABLE when a sample cannot be used.
        """
        size = batch_size or self.batch_size
        for start in range(0, len(self), size):
            read = [self._read(index) for index in self._indices[start : start + size]]
            y = np.array([y for _, y in read], np.int64) if self.has_labels else None
            yield np.stack([x for x, _ in read]), y

    def batches(self, batch_size: int | None = None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """As `arrays`, as tensors. Images lie in memory with the channels last: so convolutions are faster."""
        import torch

        for array, labels in self.arrays(batch_size):
            x = torch.from_numpy(array)
            x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
            yield x, None if labels is None else torch.from_numpy(labels)

    def select(self, positions: Sequence[int]) -> Samples:
        """The samples at `positions`, in that order; a permutation of `range(len(self))` shuffles."""
        return Samples(
            self.name,
            self.shape,
            self.classes,
            self.has_labels,
            self._source,
            tuple(self._indices[position] for position in positions),
            self._normalization,
            self.class_names,
        )

    def take(self, count: int) -> Samples:
        """The first `count` samples, or all when there are fewer."""
        return self.select(range(min(count, len(self))))

    def split(self, holdout: float, seed: int = 0) -> tuple[Samples, Samples]:
        """(rest, held out): a random share `holdout` in (0, 1) is held out; both keep the original order.

        Raises `UsageError` DATA_EMPTY when either side would be empty.
        """
        count = round(holdout * len(self))
        if not 0 < count < len(self):
            raise UsageError(
                f"{len(self)} samples cannot be split",
                where=self.name,
                why=f"holding out {holdout:.1%} leaves one side empty",
                fix="give more samples",
                code="DATA_EMPTY",
            )
        held = set(random.Random(seed).sample(range(len(self)), count))
        return (self.select([i for i in range(len(self)) if i not in held]), self.select(sorted(held)))

    def validate(self) -> SampleInfo:
        """Reads every sample once and returns what was seen.

        Raises `UsageError`: DATA_NAN for a sample with NaN or infinite values, DATA_LABELS for a label outside
        [0, classes), and what `arrays` raises.
        """
        low, high = float("inf"), float("-inf")
        for number, (x, y) in enumerate(self.arrays()):
            first = number * self.batch_size
            finite = np.isfinite(x.reshape(len(x), -1)).all(1)
            if not finite.all():
                raise self._not_finite(first + int(finite.argmin()))
            if y is not None:
                outside = (y < 0) if self.classes is None else (y < 0) | (y >= self.classes)
                if outside.any():
                    position = int(outside.argmax())
                    raise self._label_outside(first + position, int(y[position]))
            low, high = min(low, float(x.min())), max(high, float(x.max()))
        return SampleInfo(len(self), self.shape, self.has_labels, self.classes, low, high)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of shape, values and labels in order, as delivered: the same for the same samples from any source."""
        digest = hashlib.sha256(repr((self.shape, self.has_labels)).encode())
        for index in self._indices:
            x, y = self._read(index)
            digest.update(x.tobytes())
            digest.update(b"" if y is None else struct.pack("<q", y))
        return digest.hexdigest()

    def _read(self, index: int) -> tuple[np.ndarray, int | None]:
        x, y = self._source.sample(index)
        if x.shape != self.shape:
            raise _wrong_shape(self._source.where(index), x.shape, self.shape, "the other samples have")
        if (y is not None) != self.has_labels:
            raise UsageError(
                "some samples have labels and some have none",
                where=self._source.where(index),
                why=f"this one has {'a' if y is not None else 'no'} label, the first one differs",
                fix="label all samples, or none",
                code="DATA_LABELS",
            )
        with np.errstate(over="ignore", invalid="ignore"):  # what is infinite, `validate` refuses by the sample's name
            x = x.astype(np.float32) / 255 if x.dtype == np.uint8 else x.astype(np.float32, copy=False)
            return (x if self._normalization is None else self._normalization(x)), y

    def _not_finite(self, position: int) -> UsageError:
        return UsageError(
            "a sample holds NaN or infinite values",
            where=self._source.where(self._indices[position]),
            why="every value must be a finite number",
            fix="correct or leave out that sample",
            code="DATA_NAN",
        )

    def _label_outside(self, position: int, label: int) -> UsageError:
        allowed = "at least 0" if self.classes is None else f"0 to {self.classes - 1}"
        return UsageError(
            f"label {label} is out of range",
            where=self._source.where(self._indices[position]),
            why=f"the labels of this network are {allowed}",
            fix="number the classes from 0 in the order of the network's outputs",
            code="DATA_LABELS",
        )


def open_samples(
    source: str | Path,
    *,
    input_shape: Sequence[int] | None = None,
    classes: int | None = None,
    limit: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Samples:
    """Opens the user's data.

    Args:
        source: one of
            `file.py:callable` or `package.module:callable`, called without arguments, returning a torch `Dataset`, a
            list or iterator of `(x, label)` or of `x`, a dict of arrays `x` and `y`, a pair of arrays, or one array;
            a folder of class folders of images (or of images alone, without labels): each image is scaled to cover
            `input_shape` and cropped at the centre, in grey for one channel, else RGB;
            an `.npz` file with array `x` (or its first array) and, if there are labels, `y`.
            uint8 values become float32 in [0, 1]; floating values are taken as they are.
        input_shape: what the network expects of one sample, without the batch dimension.
        classes: number of the network's classes.
        limit: at most this many samples, from the start.
        mean, std: per channel, applied as (x - mean) / std after scaling.

    Raises `UsageError`: DATA_MISSING, DATA_CALLABLE, DATA_EMPTY, DATA_SHAPE, DATA_LABELS, DATA_FORMAT. Values are not
    read beyond the first sample; call `validate` once before long work.
    """
    expected = None if input_shape is None else tuple(input_shape)
    opened, names = _open(str(source), expected, classes, limit)
    count = len(opened) if limit is None else min(limit, len(opened))
    if count == 0:
        raise UsageError(
            "there are no samples",
            where=str(source),
            why="the data is empty",
            fix="give at least a few hundred samples that look like what the network will see",
            code="DATA_EMPTY",
        )
    x, y = opened.sample(0)
    if expected is not None and x.shape != expected:
        raise _wrong_shape(opened.where(0), x.shape, expected, "the network expects")
    normalization = None
    if mean is not None or std is not None:
        normalization = _normalization(mean, std, x.shape)
    return Samples(
        str(source),
        x.shape,
        classes if classes is not None else len(names) or None,
        y is not None,
        opened,
        tuple(range(count)),
        normalization,
        names,
    )


def _open(
    source: str, shape: tuple[int, ...] | None, classes: int | None, limit: int | None
) -> tuple[Source, tuple[str, ...]]:
    path = Path(source)
    if path.is_dir():
        return read_folder(path, shape, classes)
    if path.suffix == ".npz" and path.is_file():
        return read_npz(path), ()
    if path.exists():
        raise UsageError(
            "this kind of data file is not known",
            where=source,
            why=f"data is an .npz file, a folder of images or file.py:callable, not '{path.suffix}'",
            fix=f"write '{path}:callable'"
            if path.suffix == ".py"
            else "convert it to .npz, or load it in a function and name that: file.py:callable",
            code="DATA_FORMAT",
        )
    if ":" in source:
        function = load_callable(source, "data")
        return from_returned(function(), function, limit), ()
    siblings = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    raise UsageError(
        "the data does not exist",
        where=source,
        why=f"nothing is at {path.absolute()}",
        fix=f"{nearest(path.name, siblings)}check the path; it is relative to the folder you run in",
        code="DATA_MISSING",
    )


def _normalization(mean: Sequence[float] | None, std: Sequence[float] | None, shape: tuple[int, ...]) -> Normalization:
    mean, std = tuple(mean or (0.0,)), tuple(std or (1.0,))
    if any(len(values) not in (1, shape[0]) for values in (mean, std)) or not all(value > 0 for value in std):
        raise UsageError(
            "mean and std do not fit the samples",
            where=f"mean={list(mean)} std={list(std)}",
            why=f"samples have {shape[0]} channels; std must be positive",
            fix="give one value, or one a channel",
            code="DATA_SHAPE",
        )
    return Normalization(mean, std)


def _wrong_shape(where: str, seen: tuple[int, ...], expected: tuple[int, ...], who: str) -> UsageError:
    return UsageError(
        "a sample has the wrong shape",
        where=where,
        why=f"it is {list(seen)}; {who} {list(expected)}",
        fix="give all samples the shape of the network's input, without the batch dimension",
        code="DATA_SHAPE",
    )
