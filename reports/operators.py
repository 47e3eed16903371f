"""Where the time of an inference goes: its operators as a table, and in one sentence why it takes so long."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from reports import quantities
from reports.measured import OperatorRecord

NOTABLE = 0.1  # of the time, in operators that only move or adjust data
APART, SHAPED = 130, 96  # columns that a table takes which has the kind beside the module, and the shape
BOUND_BY = {
    "compute": "arithmetic",
    "branches": "mispredicted branches",
    "L1": "loads and stores (L1)",
    "L2": "the second cache (L2)",
    "L3": "the third cache (L3)",
    "DRAM": "memory (DRAM)",
    "threads": "waiting for other threads",
}


def dearest(operators: Sequence[OperatorRecord]) -> list[OperatorRecord]:
    """The operators without the runtime's own work, the slowest first."""
    return sorted(operators[:-1], key=lambda each: -each.milliseconds)


def kind_of(operator: OperatorRecord) -> str:
    """The runtime's name without its data layout: "Convolution (NHWC, F32) IGEMM" is "Convolution F32 IGEMM"."""
    name, parenthesis, rest = operator.kind.partition(" (")
    if not parenthesis:
        return name
    inside, _, after = rest.partition(")")
    precision = [word for word in inside.split(", ") if word not in ("NC", "NHWC", "ND", "NWC")]
    return " ".join([name, *precision[:1], *after.split()])


def where(operator: OperatorRecord) -> str:
    """The operator as a user knows it: its module, else its kind."""
    return operator.module or kind_of(operator)


def speed(operator: OperatorRecord) -> str:
    """ "1.9 of 16 FLOP/cycle"; empty for what does not multiply and accumulate."""
    if not operator.macs:
        return ""
    most = f" of {operator.peak_flop_per_cycle:.0f}" if operator.peak_flop_per_cycle else ""
    return f"{operator.flop_per_cycle:.3g}{most} FLOP/cycle"


def why(operators: Sequence[OperatorRecord]) -> str:
    """In one sentence: what bounds most of the time, the dearest operator, and how much goes to moving data."""
    ranked = dearest(operators)
    if not ranked:
        return "All of the time is the runtime's own."
    by_bound: dict[str, float] = {}
    for each in operators:
        by_bound[each.bound] = by_bound.get(each.bound, 0.0) + each.share
    bound = max(by_bound, key=by_bound.__getitem__)
    first = ranked[0]
    figures = [text for text in (first.shape, speed(first)) if text]
    said = (
        f"{100 * by_bound[bound]:.0f} % of the time is bound by {BOUND_BY[bound]}; the dearest is {where(first)}"
        f" ({100 * first.share:.0f} %)" + "".join(f", {text}" for text in figures)
    )
    moving: dict[str, float] = {}
    told = any(each.macs for each in ranked)  # ExecuTorch's programs do not tell shapes
    for each in ranked:
        if told and not each.macs:
            moving[kind_of(each)] = moving.get(kind_of(each), 0.0) + each.share
    if sum(moving.values()) >= NOTABLE:
        most, share = max(moving, key=moving.__getitem__), 100 * sum(moving.values())
        said += f"; {share:.0f} % goes to operators that only move or adjust data, most of it to {most}"
    return said + "."


def operator_table(operators: Sequence[OperatorRecord], top: int, width: int) -> Table:
    """The `top` slowest operators, what the others take, the runtime's own share, and the total.

    Args:
        width: columns of the terminal; a narrow one gives up the kind of an operator with a module, then the shape.
    """
    ranked, runtime = dearest(operators), operators[-1]
    shown, others = ranked[:top], ranked[top:]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    apart = width >= APART and any(each.module for each in shown)
    shapes = width >= SHAPED
    table.add_column("operator", no_wrap=True, overflow="ellipsis", max_width=40)
    if apart:
        table.add_column("module", no_wrap=True, overflow="ellipsis", max_width=40)
    if shapes:
        table.add_column("shape", no_wrap=True, overflow="ellipsis", style="dim")
    for name in ("ms", "share", "MMAC", "FLOP/cycle", "of peak"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("bound by", no_wrap=True)

    def row(names: tuple[str, str, str], *figures: str, style: str = "") -> None:
        kind, module, shape = names
        named = [kind, module] if apart else [module or kind]
        cells = [*named, *([shape] if shapes else []), *figures]
        table.add_row(*(Text(cell) for cell in cells), style=style)

    for each in shown:
        row(
            (kind_of(each), each.module, each.shape),
            quantities.significant(each.milliseconds),
            f"{100 * each.share:.1f} %",
            quantities.significant(each.macs / 1e6) if each.macs else "",
            quantities.significant(each.flop_per_cycle) if each.macs else "",
            "" if each.peak_share is None else f"{100 * each.peak_share:.0f} %",
            each.bound,
        )
    for name, some, style in (
        (f"{len(others)} others", others, "dim"),
        ("the runtime itself", [runtime], "dim"),
        ("total", operators, "bold"),
    ):
        if some:
            milliseconds, share = sum(each.milliseconds for each in some), sum(each.share for each in some)
            macs, cycles = sum(each.macs for each in some), sum(each.cycles for each in some)
            row(
                (name, "", ""),
                quantities.significant(milliseconds),
                f"{100 * share:.1f} %",
                quantities.significant(macs / 1e6) if macs else "",
                quantities.significant(2 * macs / cycles) if macs and cycles else "",
                "",
                "",
                style=style,
            )
    return table
