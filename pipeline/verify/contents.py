"""What an artifact holds, of which nothing but the file is at hand and no network to hold it against."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from pipeline.export.artifact import bytes_of, sha256_of
from pipeline.verify.execute import silent_stderr
from pipeline.verify.from_file import format_of
from reports.artifacts_compared import BorderRecord, ContentsRecord
from targets.delegation import READERS
from targets.errors import UsageError
from targets.graph import read_graph
from targets.runners.artifact import ArtifactError, open_artifact

Border = tuple[BorderRecord, ...]


def contents_of(path: Path) -> ContentsRecord:
    """What the file or package at `path` holds; operators of an `.ort` are those that are left of it once it is loaded.

    Raises:
        UsageError: as `from_file.format_of`; `ARTIFACT_UNUSABLE` for a file that its runtime or reader refuses.
    """
    format = format_of(path)
    try:
        with silent_stderr():
            inputs, outputs = _borders(path, format.name) if format.runs_on_host else (None, None)
            graph = read_graph(path, format.name)
            kinds = [operator.kind for operator in graph]
            if not graph and format.name in READERS:
                kinds = [operator.kind for operator in READERS[format.name](path).operators]
    except (ArtifactError, RuntimeError, ValueError) as error:
        raise UsageError(
            "the artifact cannot be read",
            where=str(path),
            why=str(error),
            fix="export it again",
            code="ARTIFACT_UNUSABLE",
        ) from error
    return ContentsRecord(
        file=str(path),
        format=format.name,
        bytes=bytes_of(path),
        sha256=sha256_of(path),
        inputs=inputs,
        outputs=outputs,
        operators=dict(Counter(kinds)) if format.name in READERS else None,
        macs=sum(operator.macs for operator in graph) if graph else None,
    )


def _borders(path: Path, format: str) -> tuple[Border, Border]:
    """Inputs, and the outputs of an inference on zeros."""
    opened = open_artifact(path, format)
    opened.feed([np.zeros([abs(size) for size in shape], dtype) for _, shape, dtype in opened.inputs])
    opened.invoke()
    found = opened.outputs()
    return (
        tuple(BorderRecord(name=name, shape=shape, dtype=np.dtype(dtype).name) for name, shape, dtype in opened.inputs),
        tuple(BorderRecord(name=name, shape=value.shape, dtype=value.dtype.name) for name, value in found.items()),
    )
