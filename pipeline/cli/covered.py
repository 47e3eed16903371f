"""What each format makes of each operator, as a person reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.export.formats import FORMATS
from reports.quantities import duration

if TYPE_CHECKING:
    from pipeline.export.survey import Coverage, OperatorCoverage

STYLES = {"unsupported": "bold red", "not known": "yellow", "fallback": "yellow", "converted": "dim", "native": "green"}
_PLACES = 4  # shown of one operator; all are in --json
_CALLS, _GAP = 5, 2  # columns of the table


def coverage_tables(coverages: Sequence[Coverage], width: int) -> list[RenderableType]:
    """One table of verdicts, split where the formats do not fit in `width` columns, then what is behind them."""
    parts: list[RenderableType] = []
    known = [coverage for coverage in coverages if coverage.operators]
    room = _room(known, width)
    for start in range(0, len(known), room):
        parts += [Text(), _verdicts(known[start : start + room])]
    for coverage in coverages:
        parts += [Text(), *_behind(coverage)]
    return parts


def _room(coverages: Sequence[Coverage], width: int) -> int:
    """How many formats fit beside the longest name of an operator, each as wide as the longest verdict."""
    longest = max((len(row.operator) for each in coverages for row in each.operators), default=0)
    cells = [_verdict([row for row in each.operators if row.operator == mine.operator])
             for each in coverages for mine in each.operators]  # fmt: skip
    column = max((len(cell) for cell in cells), default=1) + _GAP
    return max(1, (width - longest - _CALLS - _GAP) // column)


def _verdicts(coverages: Sequence[Coverage]) -> Table:
    table = Table("operator", "calls", *(coverage.format for coverage in coverages), box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.no_wrap = True
    names = dict.fromkeys(row.operator for coverage in coverages for row in coverage.operators)
    of = [{name: [row for row in each.operators if row.operator == name] for name in names} for each in coverages]
    for name in names:
        calls = max(sum(row.count for row in rows[name]) for rows in of)
        table.add_row(name, str(calls), *(_verdict(rows[name]) for rows in of))
    return table


def _verdict(rows: Sequence[OperatorCoverage]) -> Text:
    """The worst of an operator's calls, and of how many where not all fare alike."""
    if not rows:
        return Text("")
    worst = rows[0]
    every = sum(row.count for row in rows)
    share = f" {worst.count}/{every}" if len(rows) > 1 else ""
    return Text(f"{worst.verdict}{share}", STYLES.get(worst.verdict, ""))


def _behind(coverage: Coverage) -> list[RenderableType]:
    title = FORMATS[coverage.format].title
    if coverage.failure is None:
        parts = [Text(f"{title}: the network is converted ({duration(coverage.seconds)})", "bold")]
    else:
        parts = [Text(f"{title}: the network is refused ({duration(coverage.seconds)})", "bold")]
        parts.append(_indented(f"why: {coverage.failure.sentence}"))
        parts += [_indented(f"fix: {remedy}") for remedy in coverage.failure.remedies]
    for row in coverage.operators:
        if row.verdict != "native":
            parts += _row(row)
    if coverage.outside is not None:
        left = ", ".join(f"{count} {kind}" for kind, count in sorted(coverage.outside.items())) or "nothing"
        parts.append(_indented(f"the delegate leaves in the whole network: {left}"))
    parts.append(Text(f"  {coverage.learned}", "dim"))
    return parts


def _row(row: OperatorCoverage) -> list[Text]:
    into = {
        "decomposed": f" into {', '.join(row.becomes)}",
        "fallback": f", left to {', '.join(row.becomes)}",
    }.get(row.verdict, f": {row.reason}" if row.reason else "")
    parts = [_indented(f"{row.operator} ×{row.count} {row.verdict}{into}")]
    parts += [_indented(f"  {place}") for place in row.places[:_PLACES]]
    if len(row.places) > _PLACES:
        parts.append(_indented(f"  and {len(row.places) - _PLACES} more places"))
    return parts


def _indented(line: str) -> Text:
    return Text(f"  {line}")
