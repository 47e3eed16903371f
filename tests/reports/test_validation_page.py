"""The page on emulated beside published latencies: every figure on it follows from the cases."""

from __future__ import annotations

import io

import rich.console

from reports.validation import console_table, markdown, verdict
from targets.profile import load_profile
from targets.validation.network import load_network
from targets.validation.validate import Case, Results


def case(network: str, published_ms: float, emulated_ms: float, **facts: object) -> Case:
    profile = load_profile("pixel-3a-cpu")
    given = {
        "profile": profile.name,
        "network": network,
        "precision": "fp32",
        "threads": 1,
        "runtime": "XNNPACK",
        "source": "s",
        "comparable": "same runtime",
        "note": "",
        "core": "Cortex-A75",
        "emulated_runtime": "tflite-runtime 2.14.0",
        "profile_version": profile.version,
    }
    return Case(**{**given, **facts}, published_ms=published_ms, emulated_ms=emulated_ms)


SAME = [
    case("mobilenet-v1", 88.0, 80.0),
    case("mobilenet-v3-small", 14.0, 10.5),
    case("mobilenet-v1", 44.0, 40.0, precision="int8"),
]
OTHER = [
    case(network, ms, 2 * ms, runtime="ncnn", comparable="other runtime")
    for network, ms in (("mobilenet-v1", 40.0), ("mobilenet-v2", 30.0), ("resnet-18", 90.0))
]
RESULTS = Results("planish targets validate", "2026-01-02", {"qemu": "7.2"}, (*SAME, *OTHER))


def cells(page: str, *start: str) -> list[str]:
    """The cells of the first table row that begins with these."""
    rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|")
    return next(row for row in rows if row[: len(start)] == list(start))


def test_the_page_says_what_was_run_and_how_far_off_it_was() -> None:
    page = markdown(RESULTS)
    assert "`planish targets validate` on 2026-01-02 with qemu 7.2" in page
    assert cells(page, "pixel-3a-cpu", "Cortex-A75", "1", "fp32")[4:] == ["2", "17.0%", "-25.0%", "1"]
    assert cells(page, "**all**")[4:] == ["3", "9.1%", "-25.0%", "2"]
    assert cells(page, "pixel-3a-cpu", "1", "fp32", "mobilenet-v3-small")[-4:] == [
        "tflite-runtime 2.14.0",
        "14.0",
        "10.5",
        "0.75",
    ]


def test_the_page_shows_operations_a_cycle_and_what_light_networks_lose() -> None:
    page = markdown(RESULTS)
    after = page[page.index("## Operations a cycle") :]
    clock = load_profile("pixel-3a-cpu").clock_ghz * 1e6
    published = 2 * load_network("mobilenet-v1").macs / (88.0 * clock)
    emulated = 2 * load_network("mobilenet-v1").macs / (80.0 * clock)
    row = cells(after, "pixel-3a-cpu", "1", "fp32", "mobilenet-v1")
    assert row[4:] == ["569", f"{published:.2f}", f"{emulated:.2f}"]
    macs = load_network("mobilenet-v3-small").macs / load_network("mobilenet-v1").macs
    drop = after[after.index("V3-Small over V1") :]
    assert cells(drop, "pixel-3a-cpu", "1", "fp32")[3:] == [f"{macs * 88 / 14:.2f}", f"{macs * 80 / 10.5:.2f}"]


def test_the_page_compares_precisions_and_other_runtimes() -> None:
    page = markdown(RESULTS)
    speedups = page[page.index("## int8 against fp32") :]
    assert cells(speedups, "pixel-3a-cpu", "1", "mobilenet-v1")[3:] == ["2.00", "2.00"]
    assert cells(page, "pixel-3a-cpu", "1", "ncnn", "fp32")[4:] == ["3", "1.000", "2.00", "1.00"]


def test_a_page_of_one_kind_has_no_empty_sections() -> None:
    assert "## Other runtimes" not in markdown(Results("c", "d", {}, (SAME[0],)))
    only_other = markdown(Results("c", "d", {}, tuple(OTHER)))
    assert "## The same runtime" not in only_other and "## Operations" not in only_other


def test_the_console_says_the_same() -> None:
    out = rich.console.Console(file=io.StringIO(), width=140)
    out.print(console_table([*SAME, *OTHER]))
    text = out.file.getvalue()
    assert "-25.0%" in text and "mobilenet-v1 int8" in text and "x 2.00" in text
    assert verdict([*SAME, *OTHER]) == (
        "2 of 3 cases of the same runtime within 15%, median 9.1%; "
        "ncnn fp32 on pixel-3a-cpu, 1 thread(s): rank correlation 1.000"
    )
