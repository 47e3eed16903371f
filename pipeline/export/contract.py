"""What an app must know of an artifact's input and output beyond name, shape and type: range, normalisation, labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.export.artifact import TensorSpec
from targets.errors import UsageError

if TYPE_CHECKING:
    from calibration.dataset import Samples

KEY = "planish.contract"


@dataclass(frozen=True)
class Contract:
    """Of the network's one input and its first output.

    Attributes:
        minimum, maximum: range of the calibration data as the network receives it.
        mean, std: one a channel, of pixels divided by 255; None where the data is no images of 8 bits.
        labels: of the classes, in the order of the output's scores; empty where they are not known.
    """

    minimum: float | None = None
    maximum: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    labels: tuple[str, ...] = ()

    @classmethod
    def of(cls, samples: Samples, labels: str | None = None, classes: int | None = None) -> Contract:
        """What `samples` tell of it; every value of them is read once.

        Args:
            labels: a text file with the names of the `classes`; without one the class folders are their names.

        Raises:
            UsageError: LABELS_UNUSABLE, and what `Samples.validate` raises.
        """
        seen, pixels = samples.validate(), samples.pixel_normalization
        return cls(
            seen.minimum,
            seen.maximum,
            None if pixels is None else pixels.mean,
            None if pixels is None else pixels.std,
            read_labels(Path(labels), classes) if labels else samples.class_names,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Contract:
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in data.items()})

    def of_inputs(self, specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        """`specs` with range and normalisation on the first, which is the one that samples are fed to."""
        first, *rest = specs
        known = replace(first, minimum=self.minimum, maximum=self.maximum, mean=self.mean, std=self.std)
        return known, *rest

    def of_outputs(self, specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        """`specs` with the labels on the first, if it holds a score for each."""
        first, *rest = specs
        return (replace(first, labels=self.labels) if first.shape[-1:] == (len(self.labels),) else first), *rest

    def told(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str:
        """Inputs and outputs as JSON, for formats that have room for a text under the name `KEY`."""
        told = {"inputs": self.of_inputs(inputs), "outputs": self.of_outputs(outputs)}
        rows = {kind: [{**asdict(spec), "description": spec.description} for spec in told[kind]] for kind in told}
        return json.dumps(rows, ensure_ascii=False)


def read_labels(file: Path, classes: int | None) -> tuple[str, ...]:
    """The lines of a text file, one a class.

    Raises:
        UsageError: LABELS_UNUSABLE when it cannot be read, or has not one line a class.
    """
    try:
        labels = tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines())
        why = f"it has {len(labels)} lines, the network {classes} classes" if len(labels) != (classes or 0) else ""
    except (OSError, UnicodeDecodeError) as error:
        labels, why = (), str(error)
    if why:
        raise UsageError(
            "the labels cannot be used",
            where=str(file),
            why=why,
            fix="give a text file with the name of one class a line, in the order of the network's scores",
            code="LABELS_UNUSABLE",
        )
    return labels
