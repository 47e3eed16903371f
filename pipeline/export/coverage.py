"""The dry lowering: what each converter makes of each operator of a network, before anything is compressed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.export.failure import Failure, Place

Verdict = Literal["native", "decomposed", "fallback", "unsupported"]


@dataclass(frozen=True)
class OperatorCoverage:
    """One kind of operator in one format.

    Attributes:
        operator: `aten.roll.default`.
        count: calls of it in the network.
        verdict: native (one operator of the format), decomposed (several), fallback (converted, but the delegate does
            not take it) or unsupported.
        becomes: operators of the format that it turns into; empty when unsupported.
        places: where it stands, of the calls that have the verdict; empty for native.
        reason: the converter's sentence for unsupported, the delegate's for fallback where it gives one.
    """

    operator: str
    count: int
    verdict: Verdict
    becomes: tuple[str, ...]
    places: tuple[Place, ...]
    reason: str


@dataclass(frozen=True)
class Coverage:
    """A format's verdicts.

    Attributes:
        converted: whether the network as a whole went through the converter.
        learned: how the verdicts came about, a sentence.
        failure: of the whole network, else None.
    """

    format: str
    operators: tuple[OperatorCoverage, ...]
    converted: bool
    learned: str
    failure: Failure | None
    seconds: float


def cover(
    network_pt2: Path,
    *,
    formats: Sequence[str],
    log_directory: Path,
    timeout_s: float = 900,
    progress: Callable[[str], None] | None = None,
) -> list[Coverage]:
    """The dry lowering of a saved network to each of `formats`, each in a child interpreter, one after another."""
    raise NotImplementedError
