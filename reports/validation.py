"""How the emulated latencies compare with published ones: the page `reports/validation.md` and the console's table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from reports.quantities import MISSING, significant
from targets.validation.network import load_network
from targets.validation.validate import APART, CLOSE, Agreement, Case, Results, agreement, grouped, order

PAGE = Path(__file__).with_name("validation.md")
RUN = ("profile", "core", "threads", "precision")  # what cases of one row of a summary share
LIGHT, HEAVY = "mobilenet-v3-small", "mobilenet-v1"


def markdown(results: Results) -> str:
    """The whole page; results have at least one case."""
    same = [case for case in results.cases if case.comparable == "same runtime"]
    other = [case for case in results.cases if case.comparable == "other runtime"]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(results.versions.items()))
    parts = [
        "# Emulated beside published latencies",
        f"Written by `{results.command}` on {results.date} with {versions}. Networks are built operator for operator "
        "from `targets/validation/networks`, with random weights; published figures and their sources are in "
        "`targets/validation/published.csv`. Where the published program gives every operator an array of its own to "
        f"write to ({APART}), so does the emulated artifact. These figures are of 2020 and 2022: in fp32 they stand "
        "beside the last TensorFlow Lite before LiteRT, of 2023, the oldest that runs here; today's divides products "
        "of matrices among caches and threads in another way. In int8 that one does not ask XNNPACK. No figure here "
        "was used to set a number of a core or a profile.",
    ]
    if same:
        parts += ["## The same runtime", _summary(same), _cases(same)]
        parts += ["## Operations a cycle", _FLOPS, _efficiency(same), _drop(same)]
    if speedups := _speedups(same):
        parts += ["## int8 against fp32", speedups]
    if other:
        parts += ["## Other runtimes", _OTHER, _orders(other), _cases(other)]
    return "\n\n".join(part for part in parts if part) + "\n"


_FLOPS = (
    "Two operations a multiply-accumulate, over the cycles of every core at work: what light networks lose against "
    "heavy ones shows here, whatever the clock."
)
_OTHER = (
    "Other kernels on the same networks and cores: the order should be the same and the ratio near constant. "
    "The spread is the largest ratio of emulated to published over the smallest."
)


def console_table(cases: Sequence[Case]) -> Table:
    """One line a case; against another runtime a ratio stands in the place of the error."""
    table = Table("target", "threads", "network", "published ms", "emulated ms", "error", box=None, pad_edge=False)
    for case in cases:
        network = case.network if case.precision == "fp32" else f"{case.network} {case.precision}"
        far = case.comparable == "same runtime" and abs(case.error) > CLOSE
        error = f"{case.error:+.1%}" if case.comparable == "same runtime" else f"x {1 + case.error:.2f}"
        latencies = (significant(case.published_ms), significant(case.emulated_ms))
        table.add_row(case.profile, str(case.threads), network, *latencies, error, style="yellow" if far else None)
    return table


def verdict(cases: Sequence[Case]) -> str:
    """The outcome in a sentence or two."""
    same = [case for case in cases if case.comparable == "same runtime"]
    said = []
    if same:
        found = agreement(same)
        close = f"{found.close} of {found.count} cases of the same runtime within {CLOSE:.0%}"
        said.append(f"{close}, median {found.median_error:.1%}")
    other = [case for case in cases if case.comparable == "other runtime"]
    for (profile, threads, runtime, precision), group in _other_groups(other).items():
        if (correlation := order(group).rank_correlation) is not None:
            said.append(f"{runtime} {precision} on {profile}, {threads} thread(s): rank correlation {correlation:.3f}")
    return "; ".join(said)


def _summary(cases: Sequence[Case]) -> str:
    rows = [
        [profile, core, str(threads), precision, *_agreement(agreement(group))]
        for (profile, core, threads, precision), group in grouped(cases, *RUN).items()
    ]
    rows.append(["**all**", "", "", "", *_agreement(agreement(cases))])
    heads = ["target", "core", "threads", "precision", "cases", "median error", "worst", f"within {CLOSE:.0%}"]
    return _table(heads, rows, left=4)


def _agreement(found: Agreement) -> list[str]:
    return [str(found.count), f"{found.median_error:.1%}", f"{found.worst_error:+.1%}", str(found.close)]


def _cases(cases: Sequence[Case]) -> str:
    rows = [
        [
            *(case.profile, str(case.threads), case.precision, case.network, case.runtime, case.note),
            case.emulated_runtime,
            *(significant(case.published_ms), significant(case.emulated_ms), f"{1 + case.error:.2f}"),
        ]
        for case in cases
    ]
    heads = ["target", "threads", "precision", "network", "published by", "remark", "emulated", "published ms"]
    return _table([*heads, "emulated ms", "ratio"], rows, left=7)


def _efficiency(cases: Sequence[Case]) -> str:
    rows = [
        [
            *(case.profile, str(case.threads), case.precision, case.network),
            f"{load_network(case.network).macs / 1e6:.0f}",
            f"{case.flop_per_cycle(case.published_ms):.2f}",
            f"{case.flop_per_cycle(case.emulated_ms):.2f}",
        ]
        for case in cases
    ]
    heads = ["target", "threads", "precision", "network", "million MACs", "published FLOP/cycle", "emulated FLOP/cycle"]
    return _table(heads, rows, left=4)


def _drop(cases: Sequence[Case]) -> str:
    """What is left of MobileNet V1's operations a cycle in V3-Small."""
    rows = []
    for (profile, _, threads, precision), group in grouped(cases, *RUN).items():
        by_network = {case.network: case for case in group}
        if LIGHT in by_network and HEAVY in by_network:
            light, heavy = by_network[LIGHT], by_network[HEAVY]
            published = light.flop_per_cycle(light.published_ms) / heavy.flop_per_cycle(heavy.published_ms)
            emulated = light.flop_per_cycle(light.emulated_ms) / heavy.flop_per_cycle(heavy.emulated_ms)
            rows.append([profile, str(threads), precision, f"{published:.2f}", f"{emulated:.2f}"])
    heads = ["target", "threads", "precision", "V3-Small over V1, published", "emulated"]
    return _table(heads, rows, left=3) if rows else ""


def _speedups(cases: Sequence[Case]) -> str:
    rows = []
    for (profile, threads, network), group in grouped(cases, "profile", "threads", "network").items():
        by_precision = {case.precision: case for case in group}
        if {"fp32", "int8"} <= by_precision.keys():
            fp32, int8 = by_precision["fp32"], by_precision["int8"]
            ratios = (fp32.published_ms / int8.published_ms, fp32.emulated_ms / int8.emulated_ms)
            rows.append([profile, str(threads), network, *(f"{ratio:.2f}" for ratio in ratios)])
    heads = ["target", "threads", "network", "speed-up, published", "emulated"]
    return _table(heads, rows, left=3) if rows else ""


def _orders(cases: Sequence[Case]) -> str:
    rows = []
    for (profile, threads, runtime, precision), group in _other_groups(cases).items():
        found = order(group)
        correlation = MISSING if found.rank_correlation is None else f"{found.rank_correlation:.3f}"
        figures = (str(found.count), correlation, f"{found.ratio:.2f}", f"{found.spread:.2f}")
        rows.append([profile, str(threads), runtime, precision, *figures])
    heads = ["target", "threads", "runtime", "precision", "networks", "rank correlation", "median ratio", "spread"]
    return _table(heads, rows, left=4)


def _other_groups(cases: Sequence[Case]) -> dict[tuple[str, int, str, str], list[Case]]:
    return grouped(cases, "profile", "threads", "runtime", "precision")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """A Markdown table; columns from `left` on hold numbers."""
    rule = ["---" if column < left else "---:" for column in range(len(heads))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows))
