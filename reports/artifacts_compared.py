"""Two artifacts of one format beside each other, as data: bytes, inputs and outputs, operators."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from reports.schema import Count, Record, Sha256


class BorderRecord(Record):
    """An input or output as the file has it; a dimension that varies is -1."""

    name: str
    shape: tuple[Annotated[int, Field(ge=-1)], ...]
    dtype: str


class ContentsRecord(Record):
    """What a file holds.

    `inputs` and `outputs` are None where its runtime does not run here, `operators` (how many of each kind) where no
    reader is known, `macs` (multiply-accumulates on one sample) where the file does not tell the shapes.
    """

    file: str
    format: str
    bytes: Count
    sha256: Sha256
    inputs: tuple[BorderRecord, ...] | None
    outputs: tuple[BorderRecord, ...] | None
    operators: dict[str, Count] | None
    macs: Count | None


class KindRecord(Record):
    """How often each file has operators of one kind."""

    kind: str
    a: Count
    b: Count


class ArtifactsComparedRecord(Record):
    """Two artifacts; `operators` are the kinds of which they do not have as many, None where they are not known."""

    a: ContentsRecord
    b: ContentsRecord
    same_bytes: bool
    same_inputs: bool | None
    same_outputs: bool | None
    operators: tuple[KindRecord, ...] | None


def compare_artifacts(a: ContentsRecord, b: ContentsRecord) -> ArtifactsComparedRecord:
    """Two artifacts of one format. Borders are the same when shapes and types are; names are a converter's."""
    operators = None
    if a.operators is not None and b.operators is not None:
        kinds = sorted({*a.operators, *b.operators})
        counts = [KindRecord(kind=kind, a=a.operators.get(kind, 0), b=b.operators.get(kind, 0)) for kind in kinds]
        operators = tuple(each for each in counts if each.a != each.b)
    return ArtifactsComparedRecord(
        a=a,
        b=b,
        same_bytes=a.sha256 == b.sha256,
        same_inputs=_same(a.inputs, b.inputs),
        same_outputs=_same(a.outputs, b.outputs),
        operators=operators,
    )


def _same(a: tuple[BorderRecord, ...] | None, b: tuple[BorderRecord, ...] | None) -> bool | None:
    if a is None or b is None:
        return None
    return [(each.shape, each.dtype) for each in a] == [(each.shape, each.dtype) for each in b]
