"""Heat maps and scatter plots: what is drawn is what was given."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from accel.report.heatmap import heatmap
from accel.report.scatter import Link, Points, scatter

SPACE = "{http://www.w3.org/2000/svg}"
HOSTILE = "<script>alert('x')</script>"


def cells(drawing: str) -> dict[tuple[str, str], tuple[str, float]]:
    """Colour and strength by the labels in the tooltip."""
    found = {}
    for rect in ElementTree.fromstring(drawing).iter(f"{SPACE}rect"):
        title = rect.findtext(f"{SPACE}title")
        if title:
            row, column, _ = title.split("\n")
            colour = re.search(r"var\(--(\w+)", rect.get("style") or "")
            opacity = re.search(r"fill-opacity:([\d.]+)", rect.get("style") or "")
            found[row, column] = (colour[1] if colour else "", float(opacity[1]))
    return found


def test_cells_have_the_strength_of_their_values() -> None:
    drawing = heatmap(
        [[1.0, -0.5, 0.0], [0.25, 3.0, math.nan]], row_labels=["a", "b"],
        column_labels=["p", "q", "r"], row_title="rows", column_title="columns", limit=2.0,
    )  # fmt: skip
    assert cells(drawing) == {
        ("a", "p"): ("s0", 0.5),
        ("a", "q"): ("s1", 0.25),
        ("a", "r"): ("s0", 0.0),
        ("b", "p"): ("s0", 0.12),
        ("b", "q"): ("s0", 1.0),
        ("b", "r"): ("", 0.0),
    }
    assert "--bad" in drawing  # the cross of NaN
    for text in ("rows", "columns", "2", "-2"):
        assert f">{text}</text>" in drawing


def test_rows_go_down_and_columns_to_the_right() -> None:
    drawing = heatmap([[0.1, 0.2], [0.3, 0.4]], row_labels="ab", column_labels="pq")
    places = {
        r.findtext(f"{SPACE}title"): (float(r.get("x")), float(r.get("y")))
        for r in ElementTree.fromstring(drawing).iter(f"{SPACE}rect")
        if r.find(f"{SPACE}title") is not None
    }
    (ap, aq, bp, bq) = (places[f"{k[0]}\n{k[1]}\n{v}"] for k, v in
                        (("ap", 0.1), ("aq", 0.2), ("bp", 0.3), ("bq", 0.4)))  # fmt: skip
    assert ap[0] == bp[0] < aq[0] == bq[0]
    assert ap[1] == aq[1] < bp[1] == bq[1]


@pytest.mark.parametrize("label", ["x", "LATIN SMALL LETTER TURNED DELTA WITH HOOK", "字" * 40])
@pytest.mark.parametrize("count", [1, 24, 64])
def test_labels_stay_inside(label: str, count: int) -> None:
    names = [f"{label} {i}" for i in range(count)]
    drawing = heatmap(
        [[0.0] * count] * count, row_labels=names, column_labels=names, row_title="a",
        column_title="b", cell=480 / (count + 8),
    )  # fmt: skip
    width, height = map(float, re.search(r'viewBox="0 0 (\d+) (\d+)"', drawing).groups())
    for text in ElementTree.fromstring(drawing).iter(f"{SPACE}text"):
        shown = "".join(text.itertext()).removeprefix(text.findtext(f"{SPACE}title") or "")
        long = len(shown) * 6.4
        turn = text.get("transform")
        if turn is None and text.get("text-anchor") == "end":
            assert float(text.get("x")) - long > 14 + 4  # beside the title of the rows
        elif turn and "rotate(-60)" in turn:
            x, y = map(float, re.search(r"translate\(([\d.-]+) ([\d.-]+)\)", turn).groups())
            assert x - long / 2 > 0
            assert y + long * math.sin(math.radians(60)) < height
        elif turn is None:
            assert 0 <= float(text.get("x")) < width


@pytest.mark.parametrize(
    ("values", "rows", "columns", "limit", "message"),
    [
        ([[1.0]], "ab", "p", 1.0, "do not fit"),
        ([[1.0, 2.0], [1.0]], "ab", "pq", 1.0, "do not fit"),
        ([], "", "", 1.0, "1 to 64"),
        ([[0.0] * 65], "a", "p" * 65, 1.0, "1 to 64"),
        ([[0.0]], "a", "p", 0.0, "limit"),
        ([[0.0]], "a", "p", math.inf, "limit"),
    ],
)
def test_bad_matrices(values, rows, columns, limit, message) -> None:
    with pytest.raises(ValueError, match=message):
        heatmap(values, row_labels=rows, column_labels=columns, limit=limit)


def places_of(drawing: str, tag: str) -> dict[str, tuple[float, float]]:
    return {
        c.findtext(f"{SPACE}title"): (float(c.get("cx")), float(c.get("cy")))
        for c in ElementTree.fromstring(drawing).iter(f"{SPACE}{tag}")
        if c.find(f"{SPACE}title") is not None
    }


def test_points_keep_their_distances() -> None:
    places = [(0.0, 0.0), (3.0, 0.0), (0.0, 3.0), (-10.0, 1.0)]
    found = places_of(scatter([Points("a", places, list("pqrs"))]), "circle")
    p, q, r, s = (found[f"a\n{name}"] for name in "pqrs")
    across, up, left = q[0] - p[0], p[1] - r[1], p[0] - s[0]
    assert across == pytest.approx(up, abs=0.2)
    assert left == pytest.approx(across * 10 / 3, abs=0.2)
    assert q[1] == p[1]


def test_links_lead_from_point_to_point() -> None:
    groups = [Points("a", [(0.0, 0.0), (1.0, 2.0)]), Points("b", [(2.0, 1.0)])]
    drawing = scatter(groups, links=[Link(0, 1, 1, 0)])
    (line,) = (
        one
        for one in ElementTree.fromstring(drawing).iter(f"{SPACE}line")
        if "stroke-opacity" in one.get("style")
    )
    circles = [
        (float(c.get("cx")), float(c.get("cy")))
        for c in ElementTree.fromstring(drawing).iter(f"{SPACE}circle")
    ]
    assert (float(line.get("x1")), float(line.get("y1"))) in circles
    assert float(line.get("x2")) > float(line.get("x1"))


@pytest.mark.parametrize("count", [1, 5, 9])
def test_groups_differ_in_shape_and_colour(count: int) -> None:
    groups = [Points(f"g{i}", [(float(i), 0.0)]) for i in range(count)]
    root = ElementTree.fromstring(scatter(groups))
    looks = set()
    for one in root.iter():
        title = one.findtext(f"{SPACE}title")
        if title:
            shape = re.sub(r"[\d. -]+", "", one.get("d") or "circle")
            looks.add((shape, one.get("style")))
    assert len(looks) == count


@pytest.mark.parametrize(
    "places", [[], [(1.0, 1.0)], [(2.0, 2.0)] * 3, [(1e30, 0.0), (-1e30, 1.0)]]
)
def test_every_cloud_can_be_drawn(places) -> None:
    drawing = scatter([Points("a", places)])
    found = re.findall(r'c[xy]="([\d.e+-]+|nan|inf)"', drawing)
    assert len(found) == 2 * len(places) + 2  # the legend has one too
    assert all(0 <= float(value) < 600 for value in found)


def test_bad_points_and_escapes() -> None:
    with pytest.raises(ValueError, match="2 notes for 1 points"):
        scatter([Points("a", [(0.0, 0.0)], ["p", "q"])])
    with pytest.raises(ValueError, match="not finite"):
        scatter([Points("a", [(0.0, math.nan)])])
    for drawing in (
        scatter([Points(HOSTILE, [(0.0, 0.0)], [HOSTILE])], x_title=HOSTILE, y_title=HOSTILE),
        heatmap([[0.0]], row_labels=[HOSTILE], column_labels=[HOSTILE], row_title=HOSTILE),
    ):
        assert "<script" not in drawing
