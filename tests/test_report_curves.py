"""Curves over steps, their scales and what has no place on them."""

from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from accel.report.curves import Curve, line_plot
from accel.report.scales import Scale, scale_of, tick_text

SPACE = "{http://www.w3.org/2000/svg}"


def points_of(drawing: str, label: str) -> list[tuple[float, float]]:
    """The corners of a curve's path, in px."""
    root = ElementTree.fromstring(drawing)
    (path,) = (p for p in root.iter(f"{SPACE}path") if p.findtext(f"{SPACE}title") == label)
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.-]+) ([\d.-]+)", path.get("d"))]


def breaks_of(drawing: str, label: str) -> int:
    root = ElementTree.fromstring(drawing)
    (path,) = (p for p in root.iter(f"{SPACE}path") if p.findtext(f"{SPACE}title") == label)
    return path.get("d").count("M")


def crosses(drawing: str) -> int:
    return len(re.findall(r"l8 8m0 -8l-8 8", drawing))


@pytest.mark.parametrize("is_log", [False, True])
def test_points_lie_where_their_values_say(is_log: bool) -> None:
    values = [1.0, 10.0, 100.0]
    drawing = line_plot([Curve("a", [0, 5, 10], values)], is_log=is_log)
    (x0, y0), (x1, y1), (x2, y2) = points_of(drawing, "a")
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
    share = (y0 - y1) / (y0 - y2)
    assert share == pytest.approx(0.5 if is_log else 9 / 99, abs=0.01)
    assert y2 < y0  # px grow downwards


def test_ticks_are_where_their_numbers_say() -> None:
    drawing = line_plot([Curve("a", [0, 100], [0.0, 3.0])])
    root = ElementTree.fromstring(drawing)
    labels = {
        float(t.text): float(t.get("y")) - 4
        for t in root.iter(f"{SPACE}text")
        if t.get("text-anchor") == "end"
    }
    assert {0.0, 3.0} <= labels.keys()
    (_, low), (_, high) = points_of(drawing, "a")
    assert labels[0.0] == pytest.approx(low, abs=0.1)
    assert labels[3.0] == pytest.approx(high, abs=0.1)


def test_gaps_and_what_is_not_finite() -> None:
    values = [1.0, None, 2.0, math.nan, 3.0, math.inf, -math.inf, 4.0]
    drawing = line_plot([Curve("a", range(8), values)])
    assert len(points_of(drawing, "a")) == 4
    assert breaks_of(drawing, "a") == 4
    assert crosses(drawing) == 3
    assert "nan" in drawing
    logarithmic = line_plot([Curve("a", range(4), [1.0, 0.0, -2.0, 1e-3])], is_log=True)
    assert crosses(logarithmic) == 2
    assert len(points_of(logarithmic, "a")) == 2


@pytest.mark.parametrize("is_log", [False, True])
@pytest.mark.parametrize(
    "values",
    [[], [3.0], [0.0, 0.0], [-5.0, -5.0], [None, None], [math.nan], [1e308, -1e308],
     [5e-324, 1.7e308], [1.0, 1.0 + 1e-15], [1e-9, 2e-9]],
)  # fmt: skip
def test_every_range_can_be_drawn(values, is_log) -> None:
    drawing = line_plot([Curve("a", range(len(values)), values)], is_log=is_log, x_title="step")
    numbers = re.findall(r"[ML]([\d.e+-]+|nan|inf) ", drawing)
    assert all(math.isfinite(float(n)) for n in numbers)
    assert "nan" not in drawing.replace(": nan", "")
    root = ElementTree.fromstring(drawing)
    for text in root.iter(f"{SPACE}text"):
        if text.get("y"):
            assert -20 < float(text.get("y")) < 400


def test_many_points_are_thinned_but_no_extreme_is_lost() -> None:
    values = [math.sin(i / 50) for i in range(20000)]
    values[777], values[13000], values[5000] = 9.0, -9.0, math.nan
    drawing = line_plot([Curve("a", range(20000), values)])
    found = points_of(drawing, "a")
    assert len(found) <= 450
    assert len(drawing) < 60000
    heights = [y for _, y in found]
    whole = points_of(line_plot([Curve("a", [0, 1], [9.0, -9.0])]), "a")
    # The cross of the NaN has a row above, which moves the plot down.
    assert max(heights) - min(heights) == pytest.approx(whole[1][1] - whole[0][1], abs=0.3)
    assert crosses(drawing) == 1
    assert all(b >= a for a, b in itertools.pairwise([x for x, _ in found]))


def test_curves_can_be_told_apart() -> None:
    curves = [Curve(f"curve {i}", [0, 1], [i, i + 1]) for i in range(14)]
    drawing = line_plot([*curves, Curve("limit", [0, 1], [3, 3], tone="limit")])
    root = ElementTree.fromstring(drawing)
    looks = {
        p.findtext(f"{SPACE}title"): (p.get("style"), p.get("stroke-dasharray"))
        for p in root.iter(f"{SPACE}path")
        if p.findtext(f"{SPACE}title")
    }
    assert len(looks) == 15
    assert len(set(looks.values())) == 15
    texts = [t for t in root.iter(f"{SPACE}text") if (t.text or "").startswith("curve")]
    places = sorted((float(t.get("y")), float(t.get("x"))) for t in texts)
    for (y, x), (other_y, other_x) in itertools.pairwise(places):
        assert other_y > y or other_x - x > 45  # no label lies on another
        assert other_x < 520


def test_bad_curves() -> None:
    with pytest.raises(ValueError, match="2 values for 3 steps"):
        line_plot([Curve("a", [0, 1, 2], [1.0, 2.0])])
    with pytest.raises(ValueError, match="must ascend"):
        line_plot([Curve("a", [1, 0], [1.0, 2.0])])


def test_labels_are_escaped() -> None:
    hostile = "<script>alert('x')</script>"
    drawing = line_plot([Curve(hostile, [0], [1.0])], x_title=hostile, y_title=hostile)
    assert "<script" not in drawing
    assert "alert(&#x27;x&#x27;)" in drawing


@pytest.mark.parametrize("span", [(0, 1), (-3, 17), (1e-9, 3e-9), (-1e30, 2e30), (99.5, 100.5)])
@pytest.mark.parametrize("most", [2, 5, 9])
def test_ticks_are_round_few_and_inside(span, most) -> None:
    scale = scale_of(span, 0.0, 100.0)
    assert scale.low <= span[0] < span[1] <= scale.high
    ticks = scale.ticks(most)
    assert 1 <= len(ticks) <= most + 1
    assert all(scale.low - 1e-9 <= tick <= scale.high * (1 + 1e-9) for tick in ticks)
    for tick in ticks:
        digits = f"{abs(tick):.10e}".split("e")[0].rstrip("0").replace(".", "")
        assert len(digits) <= 4, tick
        assert len(tick_text(tick)) <= 9


def test_logarithmic_ticks_are_decades() -> None:
    scale = scale_of([3e-5, 40.0], 0.0, 100.0, is_log=True)
    assert (scale.low, scale.high) == (pytest.approx(1e-5), pytest.approx(100.0))
    assert all(math.log10(tick) == round(math.log10(tick)) for tick in scale.ticks(9))
    assert Scale(1.0, 100.0, 0.0, 10.0, True).px(10.0) == pytest.approx(5.0)
