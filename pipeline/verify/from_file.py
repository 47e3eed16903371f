"""An artifact of which nothing but the file is at hand: its inputs and outputs, by comparison with the network's own.

A file states shapes and types, not what the dimensions mean. That is found by comparing with the network's own shapes;
where both layouts fit, the answer is an error and not a guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline.export.artifact import Artifact, TensorSpec, bytes_of, sha256_of
from pipeline.export.formats import FORMATS, Format
from pipeline.verify.execute import silent_stderr
from pipeline.verify.reference import Reference
from targets.errors import UsageError, VerificationError
from targets.runners.artifact import ArtifactError, open_artifact

Layout = Literal["NCHW", "NHWC"]

_ORDERS: dict[Layout, tuple[int, ...]] = {"NCHW": (0, 1, 2, 3), "NHWC": (0, 2, 3, 1)}
# Names under which an ExecuTorch program asks for its delegates.
_DELEGATES = {"pte-vulkan": b"VulkanBackend", "pte-coreml": b"CoreMLBackend"}


def format_of(path: Path) -> Format:
    """The format of an artifact file, by its name's end; which delegate a `.pte` is for is read from its content.

    Raises:
        UsageError: `ARTIFACT_UNUSABLE` where there is nothing, `FORMAT_UNKNOWN`.
    """
    if not path.exists():
        raise UsageError(
            "the artifact does not exist",
            where=str(path),
            why="no such file",
            fix="check the path; it is relative to the folder you run in",
            code="ARTIFACT_UNUSABLE",
        )
    suffixes = {Path(format.file).suffix: format for format in reversed(FORMATS.values())}
    if path.suffix not in suffixes:
        raise UsageError(
            "this kind of artifact is not known",
            where=str(path),
            why=f"its name ends in '{path.suffix}'",
            fix=f"give a file that ends in {', '.join(reversed(suffixes))}",
            code="FORMAT_UNKNOWN",
        )
    if path.suffix == ".pte":
        content = path.read_bytes()
        return next((FORMATS[name] for name, asked in _DELEGATES.items() if asked in content), FORMATS["pte"])
    return suffixes[path.suffix]


def artifact_at(path: Path, reference: Reference, layout: Layout | None = None) -> Artifact:
    """The artifact at `path` with its inputs and outputs in the terms of the network behind `reference`.

    An output of a shape that the network does not have is left without a layout: that is for parity to judge. Of a
    format that does not run here nothing but the file itself is known. Names are the runtime's.

    Args:
        layout: of tensors of rank 4 whose shape fits both.

    Raises:
        UsageError: as `format_of`; `ARTIFACT_UNUSABLE` for a file that the runtime refuses; `CONTRACT_INPUTS`,
            `CONTRACT_SHAPE`, `CONTRACT_TYPE` when the network's samples cannot be fed; `CONTRACT_AMBIGUOUS`.
        VerificationError: `RUN_FAILED` when it loads and does not run.
    """
    format = format_of(path)
    inputs, outputs = _tensors(path, format, reference, layout) if format.runs_on_host else ((), ())
    return Artifact(
        path,
        format.name,
        sha256_of(path),
        bytes_of(path),
        format.runtime,
        "",
        inputs,
        outputs,
        {},
        seconds=0.0,
    )


def _tensors(
    path: Path, format: Format, reference: Reference, layout: Layout | None
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs; the outputs are those of an inference on zeros."""
    try:
        with silent_stderr():
            opened = open_artifact(path, format.name)
    except ArtifactError as error:
        raise UsageError(
            "the artifact cannot be opened",
            where=str(path),
            why=str(error),
            fix="export it again",
            code="ARTIFACT_UNUSABLE",
        ) from error
    sample = (1, *reference.own.group.samples.shape[1:])
    specification = _input(path, opened.inputs, sample, layout)
    try:
        opened.feed([np.zeros(specification.shape, specification.dtype)])
        opened.invoke()
        found = opened.outputs()
    except (ArtifactError, RuntimeError, ValueError) as error:
        raise VerificationError(
            f"The {format.name} artifact does not run on this machine.",
            where=str(path),
            why=str(error),
            fix="export it again; if that does not help, choose another format.",
            code="RUN_FAILED",
        ) from error
    wanted = [(1, *output.shape[1:]) for output in reference.own.outputs]
    wanted += [()] * (len(found) - len(wanted))
    outputs = [
        TensorSpec(name, value.shape, value.dtype.name, _layout(path, name, value.shape, shape, layout) or "")
        for (name, value), shape in zip(found.items(), wanted)
    ]
    return (specification,), tuple(outputs)


def _input(
    path: Path, inputs: Sequence[tuple[str, tuple[int, ...], Any]], sample: tuple[int, ...], layout: Layout | None
) -> TensorSpec:
    if len(inputs) != 1:
        raise UsageError(
            "an artifact with several inputs cannot be checked against samples",
            where=str(path),
            why=f"it takes {len(inputs)} inputs, a sample is one",
            fix="wrap the network so that it takes one tensor, and export it again",
            code="CONTRACT_INPUTS",
        )
    ((name, shape, dtype),) = inputs
    if not np.issubdtype(dtype, np.floating):
        raise UsageError(
            "the artifact takes integers",
            where=f"{path}, input '{name}'",
            why=f"it is {np.dtype(dtype).name}; samples are float32, as the network takes them",
            fix="export it with a float32 border",
            code="CONTRACT_TYPE",
        )
    found = _layout(path, name, shape, sample, layout)
    if found is None:
        raise UsageError(
            "the artifact was not made from this network",
            where=f"{path}, input '{name}'",
            why=f"it takes {list(shape)}, the network {list(sample)}",
            fix="give the network that it was exported from, and its data",
            code="CONTRACT_SHAPE",
        )
    fixed = tuple(sample[axis] for axis in _ORDERS[found]) if found in _ORDERS else sample
    return TensorSpec(name, fixed, np.dtype(dtype).name, found)


def _layout(
    path: Path, name: str, shape: Sequence[int], wanted: Sequence[int], asked: Layout | None
) -> Layout | Literal["NC", ""] | None:
    """How `shape` (-1: any size) holds a tensor that the network has as `wanted` [1, ...]; None when it cannot."""
    if len(shape) != len(wanted):
        return None
    if len(wanted) != 4:
        return ("NC" if len(wanted) == 2 else "") if _fits(shape, wanted) else None
    fitting = [layout for layout, order in _ORDERS.items() if _fits(shape, [wanted[axis] for axis in order])]
    if len(fitting) == 2 and np.prod(wanted) > 1:
        if asked is None:
            raise UsageError(
                "the layout cannot be told from the file",
                where=f"{path}, '{name}'",
                why=f"{list(shape)} fits the network's {list(wanted)} with the channels first and last",
                fix="say which: --layout NCHW or --layout NHWC",
                code="CONTRACT_AMBIGUOUS",
            )
        return asked
    return fitting[0] if fitting else None


def _fits(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    return all(size in (-1, other) for size, other in zip(shape, wanted))
