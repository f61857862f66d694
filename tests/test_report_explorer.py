from __future__ import annotations

import itertools
import json
import math
import re

import pytest

from accel.report import bars, explorer, html, svg
from accel.report.explorer import Column, Labelled
from accel.report.markup import Markup, breakable, escaped, void
from accel.report.regions import Region

COLUMNS = (
    Column("Name", "code", "what it is"),
    Column("Error", "number"),
    Column("Kind", "label", has_choices=True),
    Column("Phase", has_choices=True, hidden=True),
)
ROWS = (
    ("a.b", 1.23456789e-7, Labelled("out", "bad"), "forward"),
    ("c/d", math.inf, Labelled("within", "good"), "backward"),
    ("e", None, Labelled("within", "good"), None),
)


def data_of(text: str) -> dict[str, object]:
    found = re.search(r'<script type="application/json">(.*?)</script>', text)
    assert found is not None
    data: dict[str, object] = json.loads(found[1])
    return data


def test_the_rows_travel_as_data_and_the_first_ones_stand_there_too() -> None:
    table = explorer.explorer(COLUMNS, ROWS, name="all", caption="All", marked=[0], first=2)
    data = data_of(table)
    assert data["rows"] == [
        ["a.b", 1.23457e-07, {"sort": "out", "tone": "bad"}, "forward"],
        ["c/d", "inf", {"sort": "within", "tone": "good"}, "backward"],
        ["e", None, {"sort": "within", "tone": "good"}, None],
    ]
    assert data["marked"] == [0]
    assert data["details"] == [None, None, None]
    assert table.count('scope="row"') == 2
    assert table.count('<tr class="bad">') == 1
    assert "a.<wbr>b" in table
    assert '<th scope="col" class="number"><button type="button">Error</button></th>' in table
    assert 'title="what it is"' in table
    assert "Phase" in table.split("<table")[0]  # can be chosen
    assert "Phase" not in table.split("<table")[1]  # and is no column
    assert re.findall(r'<option value="(\w*)">', table) == [
        "", "out", "within", "", "backward", "forward",
    ]  # fmt: skip
    assert "The first 2 of 3" in table


def test_the_data_cannot_end_its_script() -> None:
    name = "</script><!-- <script>"
    table = explorer.explorer(COLUMNS[:1], [(name,)], name="x", caption="x",
                              details=[Markup("<p>&lt;/p></p>")])  # fmt: skip
    assert table.count("</script>") == 1
    assert table.count("<!--") == 0
    assert data_of(table)["rows"] == [[name]]
    assert data_of(table)["details"] == ["<p>&lt;/p></p>"]


def test_rows_and_details_must_fit() -> None:
    with pytest.raises(ValueError, match="4 columns and 1 rows need as many cells"):
        explorer.explorer(COLUMNS, [("a",)], name="x", caption="x")
    with pytest.raises(ValueError, match=r"4 columns and 3 rows .* got 1"):
        explorer.explorer(COLUMNS, ROWS, name="x", caption="x", details=[None])


def test_characters_that_turn_text_around_are_replaced() -> None:
    assert escaped("a\u202eb\u2066c\x7f\ud800\ufffed") == "a\ufffdb\ufffdc\ufffd\ufffd\ufffdd"
    assert escaped("שלום, 世界\t\n") == "שלום, 世界\t\n"
    escaped("\ud83d\ude00").encode()


def test_names_break_after_separators_and_void_elements_do_not_close() -> None:
    assert breakable("a.b/c_d:e") == "a.<wbr>b/<wbr>c_<wbr>d:<wbr>e"
    assert breakable("<.x") == "&lt;.<wbr>x"
    assert void("input", type="search", data_x='"') == '<input type="search" data-x="&quot;">'


def test_parts_of_a_page() -> None:
    assert html.section("H", anchor="here") == '<section id="here"><h2>H</h2></section>\n'
    assert html.section("H") == "<section><h2>H</h2></section>\n"
    assert '<a href="#here">&lt;H</a>' in html.contents({"here": "<H"})
    assert (
        html.disclosure("s", "x", is_open=True)
        == '<details open=""><summary>s</summary><p>x</p></details>'
    )
    box = html.copyable("a 'b'", name="the command")
    assert "<pre><code>a &#x27;b&#x27;</code></pre>" in box
    assert 'aria-label="Copy the command"' in box
    assert "<dd><b>x</b></dd>" in html.definitions({"x": Markup("<b>x</b>")})
    text = html.page("T", [], style=".x{}", script="y()")
    assert ".x{}</style>" in text
    assert "y()</script>" in text
    head = html.headline("faulty", "<it>", tone="bad")
    assert 'class="headline bad"' in head
    assert "&lt;it&gt;" in head
    assert html.figures([(3, "values", "warn")]).count('class="figure warn"') == 1
    assert '<td class="long">' in html.table(["a"], [("x" * 25,)])
    assert '<th scope="row">a</th>' in html.table(["a"], [("a",)], row_headings=True, caption="c")


def test_a_histogram_is_as_tall_as_its_counts_say() -> None:
    drawing = bars.histogram([("0", 9), ("1", 0), ("2", 99)], title="errors", height=100)
    heights = [int(found) for found in re.findall(r"v-(\d+)h", drawing)]
    assert heights == [50, 0, 100]  # log10 of count + 1
    assert 'aria-label="errors: 0: 9, 2: 99"' in drawing
    assert ">99</text>" in drawing
    assert "<svg" in bars.histogram([], title="nothing")
    assert "1.5k" in bars.histogram([("0", 1500)], title="many")


def test_a_waterfall_begins_each_bar_where_the_last_one_ends() -> None:
    drawing = bars.waterfall(
        [("a", 4.0), ("b", -1.0)], title="loss", total="all", actual=2.0, actual_name="recorded"
    )
    spans = [
        (float(x), float(x) + float(wide))
        for x, wide in re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', drawing)
    ]
    (zero, four), (three, until), (begin, end) = spans
    assert until == pytest.approx(four, abs=0.2)
    assert three == pytest.approx(zero + 0.75 * (four - zero), abs=0.2)
    assert (begin, end) == pytest.approx((zero, three), abs=0.2)
    (mark,) = re.findall(r'x1="([\d.]+)"[^>]*stroke-dasharray', drawing)
    assert float(mark) == pytest.approx((zero + four) / 2, abs=0.2)
    assert "recorded 2" in drawing
    assert "loss: a 4, b -1, all 3" in drawing
    odd = bars.waterfall([("a", math.nan), ("b", math.inf)], title="t", total="all")
    assert re.findall(r'="-?(?:nan|inf)', odd) == []
    assert ">nan</text>" in odd
    assert ">inf</text>" in odd


def test_region_names_do_not_touch() -> None:
    regions = [Region(i, i + 1, f"blocks.{i}") for i in range(60)]
    drawing = svg.error_plot([svg.Series("a", [1e-6] * 60)], regions=regions, height=200)
    places = re.findall(r'x="([\d.]+)" y="([\d.]+)">(blocks\.\d+)<', drawing)
    assert 10 < len(places) < 60
    for row in {y for _, y, _ in places}:
        spots = sorted((float(x), len(name) * 6.4) for x, y, name in places if y == row)
        for (x, width), (after, wide) in itertools.pairwise(spots):
            assert x + width / 2 < after - wide / 2
    assert drawing.count("<rect") == 30


def test_lines_do_not_lead_to_zero_or_infinity_and_limits_have_their_colour() -> None:
    drawing = svg.error_plot(
        [
            svg.Series("line", [1.0, 2.0, 0.0, 3.0, math.inf, 4.0], "line"),
            svg.Series("limit", [5.0] * 6, "steps", tone="limit"),
        ],
        description="what it shows",
    )
    (path,) = [d for d in re.findall(r'<path d="([^"]*)"', drawing) if d.count("M") == 5]
    assert path.count("L") == 1
    assert "stroke:var(--bad,#c6202b)" in drawing
    assert 'aria-label="what it shows"' in drawing
