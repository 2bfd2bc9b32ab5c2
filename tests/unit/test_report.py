"""The report: right numbers, whole without anything else, small, and safe to open."""

import re
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any, Literal, get_origin
from xml.etree import ElementTree

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from tasks.models.components import Component
from tasks.quality_records import Difference, GateCheck
from tasks.report import wording
from tasks.report.catalogue import render_catalogue
from tasks.report.evidence_figures import draw_methods
from tasks.report.front_figure import FrontPoint, decade_ticks, draw_front
from tasks.report.importance_figure import average_cells, draw_importance, rank_cells
from tasks.report.report import headline, write_report
from tasks.report.report_data import ReportData
from tasks.report.svg import linear, nice_ticks
from tests.unit.report_factory import make_cost, make_report
from tests.unit.test_catalogue import make_listing

SVG = re.compile(r"<svg.*?</svg>", re.DOTALL)


def empty(**changes: object) -> ReportData:
    fields = {
        "recipe_name": "docs-lm",
        "run_id": "1",
        "started": "2026-11-20 02:00 UTC",
        "seconds": 3.0,
        "protocol": {},
        "versions": {},
        "recipe_yaml": "",
    }
    return ReportData.model_validate(fields | changes)


@pytest.fixture(scope="module")
def page() -> str:
    return write_report(make_report())


def test_the_page_says_what_matters(page: str) -> None:
    text = " ".join(re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL).split())
    for said in [
        "Published int4, refused int8.",
        "longest 2 distill with 3 min 32 s",
        "5.8\N{MULTIPLICATION SIGN} smaller +0.225 nats/token",
        "0.91\N{MULTIPLICATION SIGN} prefill speed",
        "+0.2250, upper end +0.2460, limit 0.3",
        "0.306 of the teacher",
        "No champion on the channel yet",
        "nightpress pull docs-lm/int4@sha256:",
        "9 min 12 s of work was computed; 3 min 04 s was saved",
        "cached, 3 min 00 s saved",
        "3 min 32 s on node-a, node-b 1.51 GB a worker, 0.29 EUR, 7.08 Wh",
        "1 min 36 s on node-a, node-b 0.13 EUR, 3.21 Wh 2 from scratch",
        "int8 842 k 1.77 MB 31% 3.424 +0.181 30.69 17,900",
        "\N{MINUS SIGN}0.484 nats/token: better",
        "\N{MINUS SIGN}0.001 to +0.007, 174 documents",
        "no difference shown",
        "Kendall τ 0.79, R² 0.87. 2 of 72 sub-models had no finite utility and were left out.",
        "after round KV groups FFN neurons chosen by nats/token "
        "1 3 96 criterion 3.417 2 2 64 sweep 3.882",
        "47% of the prunable parameters removed. Both cuts have one shape",
        "hidden dimensions, most important first: kept , cut",
        "prefill of 8 x 256 tokens",
        "Since 2026-11-19 02:00 UTC: int4 0.014 nats/token better",
        "steps.1.distill.num_tokens 300000 → 400000",
        "feed-forward 720 k 360 k 50% 1.44 M 720 k 50%",
        "int4 If the file is opened , the *mode* argument is a string.",
        "0.296 worker-hours 0.74 EUR at 2.5 EUR a worker-hour 17.8 Wh energy",
        "tokens until int8 has paid Never by speed alone: int4,",
        "sst2 cola mean teacher 0.911 0.402 0.657",
        "int4 1 12.5 ms 3.10 ms 400 MB 8 80.0 ms 4.20 ms 400 MB",
    ]:
        assert said in text
    assert page.count("nightpress pull") == 1  # what was refused cannot be pulled


def test_the_page_needs_nothing_but_itself(page: str) -> None:
    assert not re.search(r"<script|<link|<img|@import|url\(|https?://|src=", page)
    assert write_report(make_report()) == page
    for figure in SVG.findall(page):
        assert ElementTree.fromstring(figure).attrib["aria-label"]


def test_the_page_stays_small_for_a_large_model() -> None:
    assert len(write_report(make_report(num_layers=80, ffn_width=2048)).encode()) < 300_000


def test_a_run_that_ended_early_has_a_page(page: str) -> None:
    teacher = make_report().models[:1]
    for data in (
        empty(ending="failed", error="no space left\n  free 3 GB"),
        empty(models=teacher),
        empty(models=make_report().models, stages=make_report().stages),
    ):
        text = write_report(data)
        assert "docs-lm" in text
        assert "undefined" not in text
    assert "The run failed." in write_report(empty(ending="failed", error="no space left"))
    assert "no space left" in write_report(empty(ending="failed", error="no space left"))


HOSTILE = [
    "<script>document.documentElement.dataset.owned = 1</script>",
    "</script></style></title><script>document.documentElement.dataset.owned = 1</script>",
    "\"'><img src=x onerror=document.documentElement.dataset.owned=1>",
    '" onmouseover="document.documentElement.dataset.owned = 1',
    "javascript:document.documentElement.dataset.owned=1",
    "<svg onload=alert(1)>{{ 7 * 7 }}{% raw %}]]><!--&lt;",
    "\u202e\x00\x1b[31m",
]


OURS = {(GateCheck, "name"), (Component, "name")}
"""Names that our own code gives."""


def poison(value: Any, venom: str) -> Any:
    """Append to every text of a record, and to every key of its dicts, but not to choices of our
    own."""
    if isinstance(value, BaseModel):
        kind = type(value)
        inner = {
            name: getattr(value, name)
            for name, field in kind.model_fields.items()
            if get_origin(field.annotation) is not Literal and (kind, name) not in OURS
        }
        return value.model_copy(update={name: poison(v, venom) for name, v in inner.items()})
    if isinstance(value, dict):
        return {key + venom: poison(inner, venom) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(poison(inner, venom) for inner in value)
    return value + venom if isinstance(value, str) else value


class Skeleton(HTMLParser):
    """Tags with their attributes' names, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, ...]] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, *(name for name, _ in attrs)))
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.text += data


@settings(max_examples=12, deadline=None)
@given(st.lists(st.sampled_from(HOSTILE) | st.text(max_size=8), min_size=1, max_size=4))
@example(HOSTILE)
def test_no_text_from_outside_becomes_markup(parts: list[str]) -> None:
    """Whatever names and texts say, the page has the very same elements and attributes."""
    report, venom = make_report(), "".join(parts)
    clean = Skeleton(write_report(report))
    page = Skeleton(write_report(poison(report, venom)))
    assert page.tags == clean.tags and page.links == []
    if venom.isprintable():
        assert page.text.count(venom) > 100


@settings(max_examples=12, deadline=None)
@given(st.lists(st.sampled_from(HOSTILE) | st.text(max_size=8), min_size=1, max_size=4))
@example(HOSTILE)
def test_nothing_in_the_catalogue_does_either(parts: list[str]) -> None:
    listed, venom = make_listing(), "".join(parts)
    clean = Skeleton(render_catalogue([listed], "s3://models"))
    page = Skeleton(render_catalogue([poison(listed, venom)], "s3://models" + venom))
    assert page.tags == clean.tags
    assert all(link.startswith("artifacts/") for link in page.links)


def test_headlines() -> None:
    exports = make_report().exports
    unchanged = [e.model_copy(update={"outcome": "unchanged"}) for e in exports]
    assert headline(empty(exports=unchanged)).startswith("Nothing changed")
    assert headline(empty(exports=[unchanged[0], exports[1]])) == "Unchanged int4, refused int8."
    assert headline(empty()) == "No export was reached."


@pytest.mark.parametrize(
    ("lower", "upper", "verdict"),
    [(-0.2, -0.1, "better"), (0.1, 0.2, "worse"), (-0.1, 0.1, "no difference shown"), (0, 0, "no")],
)
def test_a_verdict_needs_both_ends(lower: float, upper: float, verdict: str) -> None:
    figure = (lower + upper) / 2
    between = Difference(figure=figure, lower=lower, upper=upper, num_documents=9)
    assert wording.judge(between).startswith(verdict)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (wording.format_bytes(5_773_824), "5.77 MB"),
        (wording.format_bytes(999_600), "1.00 MB"),
        (wording.format_bytes(140e9), "140 GB"),
        (wording.format_count(1_443_456), "1.44 M"),
        (wording.format_count(70e9), "70.0 B"),
        (wording.format_seconds(9.94), "9.9 s"),
        (wording.format_seconds(59.7), "1 min 00 s"),
        (wording.format_seconds(28_800), "8 h 00 min"),
        (wording.signed(-0.0001), "0.000"),
        (wording.signed(-0.25), "\N{MINUS SIGN}0.250"),
        (wording.format_energy(0.0123), "12.3 Wh"),
        (wording.format_energy(0.00002), "< 0.1 Wh"),
        (wording.format_price(make_cost(3.6, 1.0)), "< 0.01 EUR"),
        (wording.shorten("1.00 MB"), "1 MB"),
        (wording.shorten("100 k"), "100 k"),
    ],
)
def test_numbers_read_well(said: str, expected: str) -> None:
    assert said == expected


def test_what_may_pass_lies_in_the_field_and_what_is_refused_does_not() -> None:
    points = [
        FrontPoint("teacher", "teacher", 4_000_000, 3.0, None),
        FrontPoint("good", "passed", 900_000, 3.2, (3.19, 3.21)),
        FrontPoint("big", "refused", 1_500_000, 3.1, None),
        FrontPoint("bad", "refused", 900_000, 3.6, None),
    ]
    root = ElementTree.fromstring(draw_front(points, [], 3.3, 1_200_000.0, 700, 400))
    (field,) = (e for e in root if e.attrib["class"] == "may-pass")
    left, top = float(field.attrib["x"]), float(field.attrib["y"])
    right = left + float(field.attrib["width"])
    bottom = top + float(field.attrib["height"])
    inside = []
    for element in root:
        if element.tag == "path":
            x, y = map(float, element.attrib["d"][1:].split("l")[0].split())
            inside.append(left <= x <= right and top <= y + 7 <= bottom)
    assert inside == [True, False, False]


def test_a_limit_far_above_does_not_press_the_models_flat() -> None:
    points = [
        FrontPoint("teacher", "teacher", 4_000_000, 3.0, None),
        FrontPoint("good", "passed", 900_000, 3.2, None),
    ]
    root = ElementTree.fromstring(draw_front(points, [], 100.0, 1_200_000.0, 700, 400))
    (field,) = (e for e in root if e.attrib["class"] == "may-pass")
    assert float(field.attrib["y"]) == 14, "all the way up"
    assert not any("limit 100" in (e.text or "") for e in root)


@settings(max_examples=100, deadline=None)
@given(st.floats(-50, 50), st.floats(0.001, 100), st.integers(2, 8))
def test_ticks_are_round_inside_and_not_too_many(low: float, span: float, count: int) -> None:
    ticks = nice_ticks(low, low + span, count)
    assert all(low - 1e-6 * span <= tick <= low + span * (1 + 1e-6) for tick in ticks)
    assert len(ticks) <= count + 1
    assert len(ticks) >= count // 3


def test_ticks_of_sizes() -> None:
    assert decade_ticks(700_000, 6_000_000) == [1e6, 2e6, 5e6]


def test_the_map_keeps_order_and_mass() -> None:
    assert average_cells([4.0, 2.0, 1.0, 1.0], 2) == [3.0, 1.0]
    assert average_cells([1.0, 2.0], 64) == [1.0, 2.0]
    assert linear(0, 10, 100, 200)(5) == 150


def fills(figure: str, kept: bool) -> list[ElementTree.Element]:
    root = ElementTree.fromstring(figure)
    found = [e for e in root if "heat" in e.attrib.get("class", "").split()]
    return [e for e in found if ("off" not in e.attrib["class"].split()) == kept]


def test_kept_and_cut_units_are_told_apart() -> None:
    """By where they lie, and by colour; equal shades of one fate are one rectangle."""
    figure = draw_importance("ffn", [[0.0] * 8, [0.0] * 8], [4, 6])
    kept, cut = fills(figure, kept=True), fills(figure, kept=False)
    widths = [float(e.attrib["width"]) for e in (*kept, *cut)]
    assert widths[2] == pytest.approx(widths[0])
    assert widths[1] == pytest.approx(3 * widths[3], abs=0.2)
    assert float(kept[0].attrib["x"]) < float(cut[0].attrib["x"])


def test_the_most_important_units_are_the_darkest_and_come_first() -> None:
    figure = draw_importance("ffn", [[0.0, 9.0, 5.0, 1.0]], [2])
    shades = [[e.attrib["class"].split()[1] for e in fills(figure, kept)] for kept in (True, False)]
    assert shades == [["h12"], ["h2", "h0"]]


def test_layers_stay_in_their_order() -> None:
    importance = [3.0, 0.1, 2.0, 0.2]
    figure = draw_importance("layers", [importance], [2], [[0, 2]])
    lefts = [[float(e.attrib["x"]) for e in fills(figure, kept)] for kept in (True, False)]
    assert lefts[0][0] < lefts[1][0] < lefts[0][1] < lefts[1][1]
    assert "network" in figure


@given(st.lists(st.floats(-1, 5), min_size=1, max_size=300), st.data())
def test_cells_cover_a_layer_and_hold_its_mass(values: list[float], data: st.DataObject) -> None:
    kept = data.draw(st.integers(0, len(values)))
    cells, edges = rank_cells(values, kept)
    assert (edges[0], edges[-1]) == (0, pytest.approx(len(values)))
    assert len(edges) == len(cells) + 1 <= 67
    held = sum(b - a for (_, stays), (a, b) in zip(cells, pairwise(edges), strict=True) if stays)
    assert held == pytest.approx(kept)


def test_the_better_method_has_the_shorter_line() -> None:
    root = ElementTree.fromstring(draw_methods(3.0, {"criterion": 4.0, "sweep": 3.5}, "sweep"))
    lengths = [
        float(e.attrib["x2"]) - float(e.attrib["x1"]) for e in root if e.attrib["class"] == "path"
    ]
    assert lengths[0] == 0
    assert lengths[2] == pytest.approx(lengths[1] / 2, abs=0.1)
    said = ["".join(e.itertext()) for e in root if e.attrib["class"] == "strong"]
    assert said == ["sweep, chosen"]


def test_a_cut_that_beats_the_dense_model_stays_in_the_figure() -> None:
    root = ElementTree.fromstring(draw_methods(3.0, {"criterion": 2.5}, "criterion"))
    width = float(root.attrib["viewBox"].split()[2])
    assert all(130 <= float(e.attrib["cx"]) <= width for e in root if "cx" in e.attrib)
