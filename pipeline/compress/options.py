"""What can be done to a stretch of a network, and what it brings and breaks: what a plan chooses from."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.compress.narrow import Stretch
from pipeline.compress.refit import Form
from pipeline.compress.regions import Region
from pipeline.model.edits import Edit


@dataclass(frozen=True)
class Option:
    """One way to make a stretch cheaper. Two options whose spans do not overlap can be taken together.

    Attributes:
        kind: `merge`, `truncate`, `refit`, `narrow` or `collapse`.
        site: the first layer it is about, as the user knows it.
        span: positions in the graph of the first and the last node it replaces.
        saving_ms: by the cost table.
        damage: output divergence it causes by itself, before recovery.
        edits: on the original network.
        summary: what happens, in words.
        sites: the activations that become linear by it.
        region, form: of a refit, which is fitted again behind the edits before it.
        stretch, width: of a narrowing, which is as well.
    """

    kind: str
    site: str
    span: tuple[int, int]
    saving_ms: float
    damage: float
    edits: tuple[Edit, ...] = field(compare=False)
    summary: str
    sites: tuple[str, ...] = ()
    region: Region | None = None
    form: Form | None = None
    stretch: Stretch | None = None
    width: int = 0

    def overlaps(self, other: Option) -> bool:
        return self.span[0] <= other.span[1] and other.span[0] <= self.span[1]


def most_saving(options: Sequence[Option]) -> tuple[Option, ...]:
    """The disjoint options that save the most together: weighted interval scheduling."""
    order = sorted(options, key=lambda option: option.span[1])
    ends = sorted({option.span[1] for option in options})
    best: list[tuple[float, tuple[Option, ...]]] = [(0.0, ())]
    for end in ends:
        candidates = [best[-1]]
        for option in order:
            if option.span[1] == end:
                saved, earlier = best[before(option, ends)]
                candidates.append((saved + option.saving_ms, (*earlier, option)))
        best.append(max(candidates, key=lambda candidate: candidate[0]))
    return best[-1][1]


def before(option: Option, ends: Sequence[int]) -> int:
    """How many of the ends lie before the option begins."""
    return bisect_right(ends, option.span[0] - 1)
