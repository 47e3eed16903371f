"""The HTML report: complete, escaped, self-contained, well formed; the plot under it."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_runs import TARGET_MS, all_runs, outcome, parity

from reports import plots
from reports.comparison import compare_layers, touches
from reports.html.render import render, render_failed
from reports.records import LimitRecord
from reports.verification import BlockErrorRecord, CulpritRecord

VOID = {"meta", "br", "input", "line", "path", "circle", "img", "link"}


class Page(HTMLParser):
    """Collects tags and attributes, and checks that every element is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data.replace("\u00a0", " "))

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def pages(runs) -> dict[str, Page]:
    return {name: Page(render(run)) for name, run in runs.items()}


@pytest.mark.parametrize("name", all_runs())
def test_nothing_is_loaded_from_anywhere(pages, name):
    for tag, attributes in pages[name].tags:
        assert tag not in {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
        assert not {"src", "srcset", "action", "data", "xlink:href"} & attributes.keys()
        assert not [key for key in attributes if key.startswith("on")]
        assert attributes.get("href", "#").startswith("#")
    style = render(all_runs()["met"]).split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style


@pytest.mark.parametrize("name", all_runs())
def test_links_lead_somewhere_and_ids_are_unique(pages, name):
    identifiers = [attributes["id"] for _, attributes in pages[name].tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    links = {attributes["href"][1:] for _, attributes in pages[name].tags if "href" in attributes}
    labels = {attributes["aria-labelledby"] for _, attributes in pages[name].tags if "aria-labelledby" in attributes}
    assert links | labels <= set(identifiers)


@pytest.mark.parametrize("name", all_runs())
def test_every_table_says_what_its_columns_are_and_rows_fill_it(pages, name):
    columns = cells = 0
    for tag, attributes in pages[name].tags:
        if tag == "thead":
            columns = 0
        elif tag == "th" and attributes.get("scope") == "col":
            columns += 1
        elif tag == "tr":
            assert cells in (0, columns)
            cells = 0
        elif tag == "td" or (tag == "th" and attributes.get("scope") == "row"):
            cells += int(attributes.get("colspan") or 1)
        elif tag == "th":
            pytest.fail("a header without a scope")
        if tag in ("table", "h2"):
            cells = 0


def test_text_of_the_user_stays_text(pages, runs):
    html = render(runs["hostile text"])
    assert "<script" not in html and "<img" not in html and "<i>" not in html and "\x1b" not in html
    assert "{{ 7*7 }}" in html and "49" not in pages["hostile text"].words.split()
    assert "<script>alert(1)</script>" in pages["hostile text"].words


def test_the_page_says_what_was_asked_measured_and_done(pages):
    words = pages["met"].words
    for said in (
        "Target met",
        "8.31 ms",
        "[8.29, 8.33]",
        "2.2 % under",
        "1.71× faster",
        "91.70 %",
        "91.35 %",
        "−0.35 pt",
        "1.85 MB",
        "1.02 MB",
        "Cortex-A76",
        "planish fit examples/fashion/model.py:trained",
        "Two 3×3 convolutions became one 5×5.",
        "rank 8 of 9 saves nothing",
        "litert-torch",
        "emulator",
    ):
        assert said in words, said


def test_verdicts_are_words_not_only_colours(pages):
    assert "Target not met" in pages["not met"].words and "✗ floor broken" in pages["not met"].words
    assert "Undecided" in pages["undecided"].words
    assert "Verification failed" in pages["failed"].words and "EXPORT_PARITY" in pages["failed"].words
    assert "The original already meets the target" in pages["base meets"].words
    assert "Agreement with the original" in pages["no labels"].words


def test_every_limit_is_shown_for_every_candidate_where_there_are_several(pages, runs):
    words = pages["two targets"].words
    assert "Targets and limits # pixel-4-cpu ≤ 8.50 ms raspberry-pi-4 ≤ 20.0 ms size ≤ 1.11 MB" in words
    for row in (
        "base 14.2 ms [14.16, 14.24] ▲ 67 % over 34.1 ms [34.0, 34.2] ▲ 70 % over 1.85 MB ▲ 67 % over",
        "3 8.34 ms [8.31, 8.37] ● 1.9 % under 20.0 ms [20.0, 20.1] ◆ 0.08 % over 1.09 MB ● 2 % under",
        "4 winner 8.24 ms",
    ):
        assert row in words, row
    assert "Raspberry Pi 4" in words and "Latency on pixel-4-cpu" in words and "Worst margin" in words
    assert "tflite decides pixel-4-cpu" in words and "2.9 % under the limit of 1.11 MB" in words
    assert "raspberry-pi-4 median: the interval straddles the limit." in words
    assert not [name for name in runs if name != "two targets" and "Targets and limits" in pages[name].words]


def test_a_limit_on_the_size_alone_is_judged_on_its_card(pages):
    assert "Asked size ≤ 1.11 MB (60% of the original)" in pages["small"].words
    assert "7.9 % under the limit of 1.11 MB. −45 % (tflite)." in pages["small"].words
    assert 'class="target-name"' not in render(all_runs()["small"])


@pytest.mark.parametrize(
    ("quantity", "unit", "limit", "heading", "said"),
    [
        ("p90", "ms", 9.0, "90th percentile", "15.0 ms → 8.80 ms 2.2 % under the limit of 9.00 ms, interval"),
        ("memory", "B", 9e6, "Peak memory", "15.0 MB → 8.80 MB 2.2 % under the limit of 9.00 MB, interval"),
    ],
)
def test_a_limit_that_no_other_card_shows_has_one(runs, quantity, unit, limit, heading, said):
    asked = LimitRecord(quantity=quantity, target="pixel-4-cpu", limit=limit, unit=unit, asked="")
    scale = 1e6 if unit == "B" else 1.0
    run = runs["met"]

    def judged(candidate, value):
        return candidate.model_copy(update={"outcomes": (outcome(asked, value * scale),)})

    changes = {
        "goal": run.goal.model_copy(update={"limits": (asked,)}),
        "base": judged(run.base, 15.0),
        "candidates": (judged(run.candidate(4), 8.8),),
        "front": (),
    }
    words = Page(render(run.model_copy(update=changes))).words
    assert f"{heading} {said}" in words


def test_an_interval_without_an_upper_bound_is_shown_as_such(runs):
    run = runs["two targets"]
    outcomes = tuple(each.model_copy(update={"high": None}) for each in run.candidate(4).outcomes)
    changed = run.candidate(4).model_copy(update={"outcomes": outcomes})
    words = Page(render(run.model_copy(update={"candidates": (changed,), "front": (), "advice": ()}))).words
    assert "4 winner 8.24 ms [8.22, ∞] ● 3.1 % under" in words


def test_a_broken_floor_is_said_at_the_top_with_what_each_knob_would_buy(pages):
    words = pages["floor broken"].words
    assert "The quality floor is broken : 1.40 pt of top-1 lost, at most 1.00 pt allowed" in words
    assert "too close to the floor for 2,000 samples to tell" in words
    assert "−1.40 pt [−2.00, −0.80]" in words
    assert "What each knob would buy latency Candidate 1 takes 9.31 ms and loses 0.25 points." in words
    assert words.count("the original") == 0 and "--recover 20min" in words
    links = [attributes.get("href") for tag, attributes in pages["floor broken"].tags if tag == "a"]
    assert links.index("#candidate-1") < links.index("#candidate-0"), "advice stands above the probes"
    for name in ("met", "not met", "own metric"):
        assert "floor is broken" not in pages[name].words and "knob" not in pages[name].words


def test_a_metric_of_the_users_has_no_percent_and_its_direction_is_said(pages, runs):
    words = pages["own metric"].words
    for said in (
        "Pose error 0.08214 → 0.08466 +0.00252 [+0.00132, +0.00372]",
        "95 % interval [0.08156, 0.08796], 1,500 samples, evaluated on the artifact; less is better",
        "at most 0.003 of quality lost",
        "0.08391 +0.00177",
    ):
        assert said in words, said
    svg = render(runs["own metric"]).split("<svg")[1]
    assert "pose error (less is better)" in svg and "at most 0.08514" in svg and "0.08466 %" not in svg
    assert "top-1, % (more is better)" in render(runs["met"]) and "floor 90.70 %" in render(runs["met"])


def test_the_front_is_drawn_as_steps_through_its_points(runs):
    svg = plots.latency_quality(
        [
            point("base", 14.0, 92.0, front=True),
            point("#1", 8.0, 91.0, front=True),
            point("#2", 9.0, 90.0),
            point("#3", 10.0, 91.5, front=True),
        ],
        target_ms=None,
        floor=None,
        metric="top-1",
    )
    (path,) = re.findall(r'class="front" d="([^"]*)"', svg)
    start, *steps = [[float(n) for n in re.findall(r"[\d.]+", part)] for part in re.split("(?=H)", path)]
    assert start[0] < steps[0][0] < steps[1][0], "from the fastest to the slowest"
    assert start[1] > steps[0][1] > steps[1][1], "each of them better: higher on the page"
    assert path.count("H") == path.count("V") == 2 and "target" not in svg
    other = point("#4", 12.0, 91.2, front=True)  # on the front for the sake of another limit: here #3 is both
    worse = [point("#3", 10.0, 91.5, front=True), other, point("base", 14.0, 92.0, front=True)]
    (path,) = re.findall(
        r'class="front" d="([^"]*)"', plots.latency_quality(worse, target_ms=None, floor=None, metric="top-1")
    )
    assert path.count("H") == 1
    assert 'class="front"' not in plots.latency_quality(
        [point("#1", 8.0, 91.0, front=True)], target_ms=8.5, floor=None, metric="top-1"
    )
    assert "Steps: the best quality" in render(runs["met"]) and "Steps:" not in render(runs["not met"])


def test_failed_candidates_stand_open_and_nothing_is_plotted_without_points(pages):
    opened = [attributes["id"] for tag, attributes in pages["failed"].tags if tag == "details" and "open" in attributes]
    assert opened == ["candidate-1", "candidate-2"]
    assert "nothing to plot" in pages["failed"].words


@pytest.mark.parametrize("scheme", [0, 1])
def test_text_colours_reach_the_contrast_of_wcag_aa(scheme):
    """Relative luminance and ratio as WCAG 2.2 defines them; 4.5 : 1 for text."""
    css = render(all_runs()["met"])
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", css.split(":root {")[1 + scheme].split("}")[0]))

    def luminance(colour: str) -> float:
        channels = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
        return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for text in ("ink", "quiet", "link", "good", "bad", "doubt"):
        for ground in ("page", "panel", "shade"):
            light, dark = sorted((luminance(colours[text]), luminance(colours[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{text} on {ground}"


def test_layers_pair_by_name_in_network_order(met):
    rows = compare_layers(met.base.layers, met.candidate(4).layers, met.candidate(4).edits)
    assert [row.name for row in rows if row.before] == [layer.name for layer in met.base.layers]
    changes = {row.name: row.change for row in rows}
    assert changes["layer1.3.conv1"] == "changed" and changes["layer1.3.conv2"] == "removed"
    assert changes["stem.conv"] == "kept"
    merged = next(row for row in rows if row.name == "layer1.3.conv2")
    assert [edit.kind for edit in merged.edits] == ["merge"]


def test_a_new_layer_stands_where_it_belongs(met):
    before = met.base.layers[:3]
    halves = [before[1].model_copy(update={"name": f"{before[1].name}.{part}"}) for part in ("u", "v")]
    rows = compare_layers(before, (before[0], *halves, before[2]), ())
    assert [(row.name, row.change) for row in rows] == [
        (before[0].name, "kept"),
        (before[1].name, "removed"),
        (halves[0].name, "added"),
        (halves[1].name, "added"),
        (before[2].name, "kept"),
    ]


@pytest.mark.parametrize(
    ("site", "layer", "expected"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.b.c", True),
        ("a.b", "a.bc", False),
        ("a+b", "b", True),
        ("a, b → c", "c", True),
        ("", "a", False),
    ],
)
def test_an_edit_touches_its_site_and_what_is_under_it(site, layer, expected):
    assert touches(site, layer) is expected


def point(label: str, x_ms: float, value: float, spread: float = 0.0, **changes) -> plots.Point:
    return plots.Point(
        label,
        x_ms,
        x_ms * (1 - spread),
        x_ms * (1 + spread),
        value,
        max(0.0, value - 100 * spread),
        min(100.0, value + 100 * spread),
        **{"outcome": "met", **changes},
    )


def numbers(svg: str) -> list[float]:
    return [float(each) for each in re.findall(r' (?:x|y|x1|x2|y1|y2|cx|cy)="([^"]*)"', svg)]


def label_boxes(svg: str) -> list[tuple[float, float, float, float]]:
    """Left, top, right, bottom of each point label, at 6.5 px a character."""
    boxes = []
    pattern = r'class="label[^"]*" x="([^"]*)" y="([^"]*)" text-anchor="(\w+)">([^<]*)'
    for x, y, anchor, text in re.findall(pattern, svg):
        width = 6.5 * len(text)
        left = float(x) - {"start": 0, "middle": width / 2, "end": width}[anchor]
        boxes.append((left, float(y) - 10, left + width, float(y) + 2))
    return boxes


def test_labels_of_equal_points_do_not_overlap():
    svg = plots.latency_quality(
        [point(f"#{index}", 8.0, 91.0) for index in range(5)], target_ms=8.5, floor=90.0, metric="top-1"
    )
    boxes = label_boxes(svg)
    assert len(boxes) == 5
    for index, a in enumerate(boxes):
        for b in boxes[index + 1 :]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_one_point_on_the_target_still_has_axes():
    svg = plots.latency_quality([point("base", TARGET_MS, 100.0)], target_ms=TARGET_MS, floor=None, metric="top-1")
    ticks = re.findall(r'class="tick"[^>]*>([^<]*)', svg)
    assert len(ticks) >= 4 and "100" in [tick.split(".")[0] for tick in ticks]
    assert max(float(tick) for tick in ticks) <= 100


@given(
    st.lists(st.tuples(st.floats(1e-3, 1e4), st.floats(0, 100), st.floats(0, 0.2)), min_size=1, max_size=6),
    st.floats(1e-3, 1e4),
    st.one_of(st.none(), st.floats(0, 100)),
)
def test_a_plot_is_finite_and_inside_its_frame(values, target_ms, floor):
    svg = plots.latency_quality(
        [point(f"#{i}", *value) for i, value in enumerate(values)],
        target_ms=target_ms,
        floor=floor,
        metric="top-1",
        width=720,
        height=400,
    )
    assert "nan" not in svg.lower() and "inf" not in svg.lower()
    assert all(-1 <= number <= 721 for number in numbers(svg))
    assert 2 <= len(re.findall('class="tick"', svg)) <= 40


def test_plot_text_is_escaped():
    svg = plots.latency_quality([point("<b>", 8, 90)], target_ms=8, floor=None, metric='"&')
    assert "<b>" not in svg and "&lt;b&gt;" in svg and 'aria-label="Latency against &#34;&amp;' in svg


def test_the_page_says_where_the_time_goes_before_and_after(pages):
    page = pages["broken down"]
    assert page.words.count("60 % of the time is bound by memory (DRAM)") == 2
    assert "layer4.0.conv1 Convolution F32 GEMM 1×1 512→2048 at 7×7 1.20 ms 60.0 %" in page.words
    pieces = [attributes["class"] for _, attributes in page.tags if "piece" in (attributes.get("class") or "").split()]
    assert pieces == 2 * ["piece compute", "piece L1", "piece DRAM", "piece itself"]
    assert "Where the time goes" not in pages["met"].words


def test_the_page_says_how_artifacts_were_checked_and_what_is_delegated(pages):
    page = pages["met"].words
    for words in ("emulated phone", "not run here", "Apple's systems alone", "2 passed", "ATAN2", "layer2.1.angle"):
        assert words in page, words


def test_a_failed_artifact_has_a_page_with_its_first_wrong_block():
    own = [1e-7, 2e-4, 0.02, 1e-7]
    blocks = tuple(
        BlockErrorRecord(module=f"layer{depth}.conv<1>", block=f"layer{depth}", value=max(own[: depth + 1]), own=error)
        for depth, error in enumerate(own)
    )
    culprit = CulpritRecord(
        block="layer2",
        module="layer2.conv<1>",
        wrong=("layer2",),
        looked_into="the artifact",
        samples=8,
        reproducer="reproducer",
        rounding=1e-3,
        blocks=blocks,
    )
    failed = next(each for each in parity(passed=False) if each.verdict == "failed")
    failed = failed.model_copy(update={"reasons": ("on your samples output 'y' is <b>off</b>",)})
    page = render_failed("The tflite artifact is wrong", failed, culprit)
    assert (
        "First to go wrong: <code>layer2</code>" in page and "layer2.conv&lt;1&gt;" in page and "<b>off</b>" not in page
    )
    assert page.count('class="mark above"') == page.count('class="n bad"') == 1 and page.count("<circle") == len(blocks)
    stricter = render_failed("t", failed, culprit.model_copy(update={"rounding": 1e-5}))
    assert stricter.count('class="mark above"') == stricter.count('class="n bad"') == 2
    assert "No block is wrong by itself" in render_failed(
        "t", failed, culprit.model_copy(update={"block": None, "module": None, "wrong": ()})
    )
    assert "culprit" not in render_failed("t", failed, None)
