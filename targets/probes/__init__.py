"""Operators as artifacts, built directly in the runtimes' formats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy


@dataclass(frozen=True)
class Probe:
    """An artifact of chains of operators, one sample for its inputs, and the file's nodes of each operator."""

    content: bytes
    samples: dict[str, numpy.ndarray]
    nodes: tuple[range, ...]
