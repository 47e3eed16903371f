"""The most important way along a line of positions under a time budget: the dynamic programme of depth compression.

Rows of a table are pieces from one position to a later one, each with a time and an importance. A path takes pieces
end to end from position 0 to a goal:

    M[j, t] = max over rows (i, j) of  M[i, t - T(i, j)] + I(i, j),      M[0, t] = 0

(Kim et al., ICML 2023, and LayerMerge, ICML 2024, where a row is also a kernel size.) It is exact for whole times. The
official codes round times down, so that their solutions can take longer than the budget; here every time is rounded up
in exact arithmetic, and a path that is returned is never over it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby

import numpy as np

BINS = 10_000  # of the time of the path without a budget; rounding up costs half a bin a piece on average


@dataclass(frozen=True)
class Path:
    """Pieces end to end.

    Attributes:
        rows: of the table, in the order of the line.
        importance: their sum.
        time_ms: their real sum, not the rounded one.
    """

    rows: tuple[int, ...]
    importance: float
    time_ms: float


def best_path(
    starts: Sequence[int],
    ends: Sequence[int],
    times_ms: Sequence[float],
    importances: Sequence[float],
    budget_ms: float,
    *,
    goals: Sequence[int],
    grid_ms: float | None = None,
) -> Path | None:
    """The path from 0 to one of `goals` with the largest importance, and among those the least time.

    Args:
        starts, ends: of each row, start < end.
        times_ms: at least 0.
        importances: any sign.
        budget_ms: `math.inf` for none.
        grid_ms: width of a time bin; by default 1/10000 of the time the best path takes without a budget, so that it
            depends on the table alone and a larger budget never gives a less important path.

    Returns:
        None when no path fits the budget. The result is optimal among paths whose rounded times fit, and no less
        important than the fastest path where that fits.
    """
    order = sorted(range(len(starts)), key=lambda row: (ends[row], starts[row]))

    def path(rows: tuple[int, ...]) -> Path:
        return Path(rows, math.fsum(importances[r] for r in rows), math.fsum(times_ms[r] for r in rows))

    free = _lexicographic(order, starts, ends, importances, [-t for t in times_ms], goals)
    fastest = _lexicographic(order, starts, ends, [-t for t in times_ms], importances, goals)
    if free is None or fastest is None or path(fastest).time_ms > budget_ms:
        return None
    if path(free).time_ms <= budget_ms:
        return path(free)
    grid = Fraction(path(free).time_ms) / BINS if grid_ms is None else Fraction(grid_ms)
    bins = [math.ceil(Fraction(time) / grid) for time in times_ms]
    rounded = _binned(order, starts, ends, bins, times_ms, importances, math.floor(Fraction(budget_ms) / grid), goals)
    found = [path(rows) for rows in (rounded, fastest) if rows is not None]
    return max(found, key=lambda p: (p.importance, -p.time_ms))


def _lexicographic(
    order: Sequence[int],
    starts: Sequence[int],
    ends: Sequence[int],
    first: Sequence[float],
    second: Sequence[float],
    goals: Sequence[int],
) -> tuple[int, ...] | None:
    """Rows of the path with the largest sum of `first`, and among those of `second`, whatever the time."""
    best: dict[int, tuple[float, float, tuple[int, ...]]] = {0: (0.0, 0.0, ())}
    for row in order:
        if starts[row] in best:
            one, two, rows = best[starts[row]]
            candidate = (one + first[row], two + second[row], (*rows, row))
            if ends[row] not in best or candidate[:2] > best[ends[row]][:2]:
                best[ends[row]] = candidate
    reached = [best[goal] for goal in goals if goal in best]
    return max(reached, key=lambda b: b[:2])[2] if reached else None


@dataclass(frozen=True)
class _Cells:
    """Of one position, for every number of bins t: the best path that takes at most t; all arrays are [limit + 1]."""

    importance: np.ndarray  # -inf where there is none
    time_ms: np.ndarray  # its real time, which decides between equals
    row: np.ndarray  # its last row

    @classmethod
    def empty(cls, limit: int) -> _Cells:
        return cls(np.full(limit + 1, -np.inf), np.full(limit + 1, np.inf), np.full(limit + 1, -1))


def _binned(
    order: Sequence[int],
    starts: Sequence[int],
    ends: Sequence[int],
    bins: Sequence[int],
    times_ms: Sequence[float],
    importances: Sequence[float],
    limit: int,
    goals: Sequence[int],
) -> tuple[int, ...] | None:
    """Rows of the best path of at most `limit` bins: one shifted maximum a row of the table."""
    origin = _Cells(np.zeros(limit + 1), np.zeros(limit + 1), np.full(limit + 1, -1))
    cells = {0: origin}
    for end, rows in groupby(order, key=lambda row: ends[row]):
        here = _Cells.empty(limit)
        for row in rows:
            if starts[row] not in cells or bins[row] > limit:
                continue
            before, stop = cells[starts[row]], limit + 1 - bins[row]
            importance = before.importance[:stop] + importances[row]
            time = before.time_ms[:stop] + times_ms[row]
            best, least, last = (array[bins[row] :] for array in (here.importance, here.time_ms, here.row))
            better = (importance > best) | ((importance == best) & (time < least))
            np.copyto(best, importance, where=better)
            np.copyto(least, time, where=better)
            np.copyto(last, row, where=better)
        cells[end] = here
    ranked = [(cells[goal].importance[limit], -cells[goal].time_ms[limit], goal) for goal in goals if goal in cells]
    importance, _, at = max(ranked, default=(-np.inf, 0.0, 0))
    if importance == -np.inf:
        return None
    found, left = [], limit
    while at:
        row = int(cells[at].row[left])
        found.append(row)
        at, left = starts[row], left - bins[row]
    return tuple(reversed(found))
