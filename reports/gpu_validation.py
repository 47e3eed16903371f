"""How models of mobile GPUs compare with published latencies: `reports/gpu-validation.md`, the console's table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from reports.quantities import significant
from targets.gpu.published import SOURCE
from targets.gpu.validation import CONFIDENCE, CarriedOver, LeftOut, Naive, Validation

PAGE = Path(__file__).with_name("gpu-validation.md")
COMMAND = "planish targets validate --published FOLDER"
WAYS = {"whole families": "Whole families left out", "one in seven": "One network in seven left out"}


def markdown(found: Validation) -> str:
    """The whole page."""
    rules = "; ".join(f"{rule.what}: {rule.rows} rows, {rule.exceptions} exceptions" for rule in found.rules)
    parts = [
        "# Modelled beside published latencies of mobile GPUs",
        f"Written by `{COMMAND}`; FOLDER holds the published tables, which are not part of planish: {SOURCE}. "
        "`--refit` fits the constants anew that ship in `targets/gpu/constants`. All modelled figures are of networks "
        "that were in neither table when the model was fitted; which terms there are, and the correction's length and "
        "variance, were chosen with all of them in view.",
        f"The rules by which the delegate is taken to choose its kernels, on the published kernels: {rules}.",
    ]
    for way, title in WAYS.items():
        parts += [f"## {title}", _summary([one for one in found.left_out if one.way == way])]
    parts += ["## Intervals", _intervals(found), "## GPUs modelled by one another", _CARRIED.format(found=found)]
    parts += [_carried([one for one in found.carried_over if one.same_kind])]
    parts += ["Across kinds it does not hold, and no profile does so:"]
    parts += [_carried([one for one in found.carried_over if not one.same_kind])]
    parts += ["## Every network, its family left out", _networks(found)]
    return "\n\n".join(parts) + "\n"


_CARRIED = (
    "The constants of one GPU, for another of the same maker: terms by lanes times clock, clock and bandwidth of the "
    "profiles, the overhead as it is. Nine of ten networks are within {found.carried_interval:.2f} times, which is the "
    "interval of the GPUs nobody measured."
)


def record(found: Validation) -> dict[str, Any]:
    """The same for a program."""
    return {"command": COMMAND, **asdict(found)}


def console_table(found: Validation) -> Table:
    """One line a GPU, families left out."""
    table = Table("GPU", "networks", "median", "90 %", "rank correlation", "affine in FLOPs", box=None, pad_edge=False)
    for one in found.left_out:
        if one.way == "whole families":
            figures = (f"{one.error.median:.1%}", f"{one.error.p90:.1%}", f"{one.error.spearman:.3f}")
            table.add_row(one.gpu, str(one.error.networks), *figures, f"{one.affine.median:.1%}")
    return table


def _summary(rows: Sequence[LeftOut]) -> str:
    cells = [
        [
            one.gpu,
            str(one.error.networks),
            f"**{one.error.median:.1%}**",
            f"**{one.error.p90:.1%}**",
            f"**{one.error.spearman:.3f}**",
            f"{one.worst} {one.worst_error:+.0%}",
            *_naive(one.one_constant),
            *_naive(one.affine),
        ]
        for one in rows
    ]
    heads = ["GPU", "networks", "median", "90 %", "rank correlation", "worst"]
    naive = [f"{name}: {figure}" for name in ("FLOPs", "FLOPs and a constant") for figure in ("median", "90 %", "rank")]
    return _table([*heads, *naive], cells, left=1)


def _naive(found: Naive) -> list[str]:
    return [f"{found.median:.0%}", f"{found.p90:.0%}", f"{found.spearman:.3f}"]


def _intervals(found: Validation) -> str:
    said = (
        f"An interval holds {CONFIDENCE:.0%} of the residuals of held-out families (split conformal). Covered: the "
        "share of networks inside the interval made of the other families' residuals."
    )
    cells = [
        [one.gpu, f"{1 / one.interval:.2f} to {one.interval:.2f}", f"{one.coverage:.0%}"]
        for one in found.left_out
        if one.coverage is not None
    ]
    return said + "\n\n" + _table(["GPU", "times the modelled figure", "covered"], cells, left=1)


def _carried(rows: Sequence[CarriedOver]) -> str:
    cells = [
        [one.gpu, one.by, f"{one.bias:+.0%}", f"{one.median:.0%}", f"{one.p90:.0%}", f"{one.spearman:.3f}"]
        for one in rows
    ]
    return _table(["GPU", "modelled by", "bias", "median", "90 %", "rank correlation"], cells, left=2)


def _networks(found: Validation) -> str:
    families = [one for one in found.left_out if one.way == "whole families"]
    cells = []
    for name in families[0].predictions:
        row = [name]
        for one in families:
            modelled, published = one.predictions[name]
            row.append(f"{significant(modelled)} / {significant(published)}")
        cells.append(row)
    said = "Modelled / published milliseconds."
    return said + "\n\n" + _table(["network", *(one.gpu for one in families)], cells, left=1)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """A Markdown table; columns from `left` on hold numbers."""
    rule = ["---" if column < left else "---:" for column in range(len(heads))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows))
