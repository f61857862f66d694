from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest

from accel.report import Markup, html, svg, text
from accel.report.markup import element, escaped

HOSTILE = "<script>alert('x')</script>&\"\x00\x1b[31m"


class Balanced(HTMLParser):
    """Fails on a tag that is not closed, and collects what a page would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [str(v) for k, v in attrs if k in ("src", "href", "xlink:href", "action")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def circles(drawing: str) -> list[tuple[float, float, str]]:
    root = ElementTree.fromstring(drawing)
    space = "{http://www.w3.org/2000/svg}"
    return [
        (float(c.attrib["cx"]), float(c.attrib["cy"]), c.findtext(f"{space}title") or "")
        for c in root.iter(f"{space}circle")
        if "cx" in c.attrib and c.find(f"{space}title") is not None
    ]


def test_a_page_is_balanced_and_loads_nothing() -> None:
    plot = svg.error_plot([svg.Series("a", [1e-3, 0.0, math.inf, None])], x_labels=list("abcd"))
    page = html.page(
        "Title",
        [
            html.verdict("fine", good=True),
            "plain text",
            html.section("Plot", plot, html.badge("ok", good=True), html.badge("?")),
            html.definitions({"torch": "2.13", "error": 1e-9, "none": None}),
            html.table(["a", "b"], [(1, "x"), (2.5, None)], sortable=True),
        ],
        subtitle="sub",
    )
    parsed = Balanced(page)
    assert parsed.open == []
    assert parsed.loads == []
    assert "@import" not in page
    assert "url(" not in page
    assert "prefers-color-scheme:dark" in page


def test_everything_is_escaped() -> None:
    page = html.page(
        HOSTILE,
        [
            HOSTILE,
            html.verdict(HOSTILE, good=False),
            html.section(HOSTILE, HOSTILE),
            html.badge(HOSTILE),
            html.definitions({HOSTILE: HOSTILE}),
            html.table([HOSTILE], [[HOSTILE]]),
            svg.error_plot(
                [svg.Series(HOSTILE, [1.0], notes=[HOSTILE])],
                x_labels=[HOSTILE],
                x_title=HOSTILE,
                y_title=HOSTILE,
                mark=0,
                mark_label=HOSTILE,
            ),
        ],
        subtitle=HOSTILE,
    )
    assert Balanced(page).tags.count("script") == 1
    assert "alert('x')" not in page
    assert "\x00" not in page
    assert "\x1b" not in page


def test_markup_is_not_escaped_twice() -> None:
    assert element("p", Markup("<b>x</b>"), "&") == "<p><b>x</b>&amp;</p>"
    assert element("p", "x", class_="a", data_sort=None, aria_label='"') == (
        '<p class="a" aria-label="&quot;">x</p>'
    )
    assert escaped(escaped("<")) == "&lt;"


def test_tables_align_numbers_and_mark_rows() -> None:
    table = html.table(
        ["name", "error"], [("a", 1.23456e-7), ("b", math.inf), ("c", None), ("d", True)],
        sortable=True, bad=lambda row: row[0] == "b",
    )  # fmt: skip
    assert '<td class="number" data-sort="1.23456e-07">1.23e-07</td>' in table
    assert '<td class="number" data-sort="inf">inf</td>' in table
    assert '<td class="number">-</td>' in table
    assert "<td>True</td>" in table
    assert table.count('<tr class="bad">') == 1
    assert '<th scope="col" class="number">error</th>' in table


def test_points_lie_where_their_values_say() -> None:
    points = circles(svg.error_plot([svg.Series("a", [1e-6, 1e-4, 1e-2])]))
    assert [round(x) for x, _, _ in points] == sorted({round(x) for x, _, _ in points})
    high, middle, low = (y for _, y, _ in reversed(points))
    assert middle == pytest.approx((high + low) / 2, abs=0.2)
    assert high < low  # px grow downwards


def test_nothing_is_dropped_zero_and_infinity_have_rows_of_their_own() -> None:
    values = [1e-3, 1e-5, 0.0, math.inf, math.nan, None]
    points = circles(svg.error_plot([svg.Series("a", values)]))
    assert len(points) == 5
    large, small, zero, infinite, nan = (y for _, y, _ in points)
    assert infinite == nan < large < small < zero
    assert "inf" in points[3][2]
    only_zero = circles(svg.error_plot([svg.Series("a", [0.0, 0.0])]))
    assert len(only_zero) == 2
    extremes = circles(svg.error_plot([svg.Series("a", [5e-324, 1.7e308])]))
    assert all(math.isfinite(y) for _, y, _ in extremes)


@pytest.mark.parametrize("count", [1, 7, 63, 1000])
@pytest.mark.parametrize("names", [True, False])
def test_labels_do_not_overlap(count: int, names: bool) -> None:
    labels = [f"blocks.{i}.attention.query_key_value" for i in range(count)] if names else ()
    drawing = svg.error_plot([svg.Series("a", [1e-6] * count)], x_labels=labels)
    turned = re.findall(r"translate\(([\d.]+) [\d.]+\) rotate\(-40\)", drawing)
    level = re.findall(r'<text class="muted" text-anchor="middle" x="([\d.]+)" y="437', drawing)
    places = turned if names else level
    # px between neighbours: 12 across the text turned by 40 degrees, or the width of a number
    gap = 12 / math.sin(math.radians(40)) if names else 10 + 6 * len(str(count))
    spots = [float(place) for place in places]
    assert spots
    assert all(b - a >= gap - 0.5 for a, b in itertools.pairwise(spots))
    if not names:
        return
    # The first label leans left: it must begin inside the drawing.
    longest = min(len(labels[0]), 34) * 6.4 * math.cos(math.radians(40))
    assert spots[0] - longest >= 0


def test_plots_need_series_of_one_length() -> None:
    with pytest.raises(ValueError, match=r"one length, got \[1, 2\]"):
        svg.error_plot([svg.Series("a", [1.0]), svg.Series("b", [1.0, 2.0])])
    with pytest.raises(ValueError, match=r"one length, got \[1, 3\]"):
        svg.error_plot([svg.Series("a", [1.0])], x_labels=["a", "b", "c"])
    assert "svg" in svg.error_plot([])


def test_lines_and_steps_break_at_gaps() -> None:
    drawing = svg.error_plot(
        [
            svg.Series("line", [1.0, 2.0, None, 3.0], "line"),
            svg.Series("steps", [1.0, None, 3.0, 4.0], "steps"),
        ]
    )
    paths = [d for d in re.findall(r'<path d="([^"]*)"', drawing) if d.count("L") != 1 or "M" in d]
    drawn = [d for d in paths if not re.fullmatch(r"M[\d.]+ \d+L[\d.]+ \d+", d)]
    assert [d.count("M") for d in drawn] == [2, 2]


def test_a_text_table_is_aligned() -> None:
    table = text.table(
        ["module", "error", "note"], [("a", 1.5e-7, "x"), ("longer", None, "\x1b[2Jy\nz")]
    )
    assert table.splitlines() == [
        "module    error  note",
        "------  -------  -------",
        "a       1.5e-07  x",
        "longer        -  \ufffd[2Jy\ufffdz",
    ]
    assert text.table(["a"], []) == "a\n-"
    with pytest.raises(ValueError, match="a row of 2 values under 1 headers"):
        text.table(["a"], [(1, 2)])
