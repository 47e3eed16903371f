"""Parity as a person reads it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.verify.parity import GroupParity, Parity

_STYLES = {"passed": "green", "failed": "bold red", "not judged": "yellow", "not run here": "yellow"}
_SHED = {"SQNR dB": 80, "cosine": 72, "max abs": 63}  # columns, and the width of terminal below which they go
_LEAST = {"level": 8, "inputs": 16}  # so that the tables of several artifacts stand below each other


def parity_report(name: str, parities: Sequence[Parity], width: int) -> list[RenderableType]:
    """One artifact at its levels: the verdict in a line, the figures, and what else is to be said.

    Args:
        name: of the artifact, for people.
        width: columns of the terminal; 80 hold everything.
    """
    ran = any(parity.groups for parity in parities)
    return [_headline(name, parities), *([_figures(parities, width)] if ran else []), *_notes(parities)]


def _headline(name: str, parities: Sequence[Parity]) -> Text:
    """`model.onnx: failed at level host`."""
    verdict = next((v for v in ("failed", "passed") if any(p.verdict == v for p in parities)), "not run here")
    levels = " and ".join(parity.level for parity in parities if parity.verdict == verdict)
    at = "" if verdict == "not run here" else f" at level {levels}"
    return Text.assemble((name, "bold"), ": ", (verdict, _STYLES[verdict]), at)


def _figures(parities: Sequence[Parity], width: int) -> Table:
    """A row a group with the figures of its worst output."""
    columns = ["level", "inputs", "n", "rel.RMSE", "max abs", "SQNR dB", "cosine", "top-1", "verdict"]
    columns = [column for column in columns if width >= _SHED.get(column, 0)]
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        left, least = column in ("level", "inputs", "verdict"), _LEAST.get(column)
        table.add_column(column, justify="left" if left else "right", no_wrap=True, min_width=least)
    for parity in parities:
        for index, group in enumerate(parity.groups):
            row = _row(group) | {"level": parity.level if index == 0 else ""}
            table.add_row(*(row[column] for column in columns))
    return table


def _notes(parities: Sequence[Parity]) -> list[Text]:
    """Why a level was not run or failed, and on this machine what the difference costs at the task."""
    notes = []
    for parity in parities:
        if parity.reasons:
            verdict = Text(parity.verdict, _STYLES[parity.verdict])
            notes.append(Text.assemble(f"{parity.level}: ", verdict, f": {parity.reasons[0]}"))
        if (task := parity.task) is not None and parity.level == "host":
            notes.append(
                Text(
                    f"top-1 {task.artifact.value:.2f} % (n = {task.artifact.samples}), network "
                    f"{task.network.value:.2f} %: {task.difference_points:+.2f} points "
                    f"({task.low_points:+.2f} to {task.high_points:+.2f})"
                )
            )
    return notes


def _row(group: GroupParity) -> dict[str, str | Text]:
    row: dict[str, str | Text] = {"inputs": group.name, "n": str(group.samples), "verdict": _verdict(group.verdict)}
    if (worst := group.worst) is None:
        return {**dict.fromkeys(("rel.RMSE", "max abs", "SQNR dB", "cosine", "top-1"), ""), **row}
    agreement = worst.top1_agreement
    return row | {
        "rel.RMSE": _figure(worst.relative_rmse, ".1e"),
        "max abs": _figure(worst.max_abs, ".1e"),
        "SQNR dB": _figure(worst.sqnr_db, ".0f"),
        "cosine": _figure(worst.cosine, ".5f"),
        "top-1": "" if agreement is None else f"{agreement:.1%}",
    }


def _figure(value: float, form: str) -> str:
    if value == 0:
        return "0"
    return format(value, form) if math.isfinite(value) else {"inf": "∞", "-inf": "-∞"}.get(repr(value), "NaN")


def _verdict(verdict: str) -> Text:
    return Text(verdict, _STYLES[verdict])
