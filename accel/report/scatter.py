"""Points in the plane, in groups that differ in colour and shape, with links between partners."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from accel.report.axes import CHAR, line, text_at
from accel.report.markup import Markup, element, joined
from accel.report.scales import Scale

_COLOURS = ("#0969da", "#d1590a", "#59636e", "#1a7f37", "#8250df", "#b3196e")
_EDGE = 44.0


@dataclass(frozen=True)
class Points:
    """One group.

    Attributes:
        label: Its name in the legend.
        places: x and y of each point.
        notes: Text for the tooltip of each; empty for none.
    """

    label: str
    places: Sequence[tuple[float, float]]
    notes: Sequence[str] = ()


class Link(NamedTuple):
    """A line between two points: group and number of each."""

    group: int
    point: int
    other_group: int
    other_point: int


def scatter(
    groups: Sequence[Points],
    *,
    links: Sequence[Link] = (),
    x_title: str = "",
    y_title: str = "",
    description: str = "",
    width: int = 520,
    height: int = 420,
) -> Markup:
    """Draw points; both axes have one scale, so that distances mean something.

    Args:
        groups: What to draw.
        links: Lines between points, behind them.
        x_title: What lies along x.
        y_title: What lies along y.
        description: What the drawing shows, for who cannot see it.
        width: Of the drawing, in px; the page scales it.
        height: Of the plot itself, in px.

    Returns:
        An `<svg>` element inside a `<figure>`.

    Raises:
        ValueError: A place is not finite, or notes do not fit.
    """
    for one in groups:
        if one.notes and len(one.notes) != len(one.places):
            raise ValueError(
                f"group {one.label!r} has {len(one.notes)} notes for {len(one.places)} points"
            )
        if not all(math.isfinite(v) for place in one.places for v in place):
            raise ValueError(f"group {one.label!r} has places that are not finite")
    legend, top = _legend(groups, width)
    bottom = top + height
    x, y = _scales([p for one in groups for p in one.places], width, top, bottom)
    parts = [*legend, *_frame(x, y, width, top, bottom)]
    parts += [_link(groups, one, x, y) for one in links]
    for index, one in enumerate(groups):
        for number, (a, b) in enumerate(one.places):
            note = f"\n{one.notes[number]}" if one.notes else ""
            title = element("title", f"{one.label}{note}")
            parts.append(_marker(index, x.px(a), y.px(b), title))
    parts += [
        text_at(x_title, width / 2, bottom + 18, anchor="middle", muted=True),
        element(
            "text", y_title, class_="muted", text_anchor="middle",
            transform=f"translate(22 {(top + bottom) / 2:.1f}) rotate(-90)",
        ),
    ]  # fmt: skip
    drawing = element(
        "svg", joined(parts), xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {bottom + 28:.0f}", role="img",
        aria_label=description or f"{y_title} against {x_title}",
    )  # fmt: skip
    return element("figure", drawing, class_="plot")


def _scales(
    places: Sequence[tuple[float, float]], width: float, top: float, bottom: float
) -> tuple[Scale, Scale]:
    """Two scales with as many px per unit, both centred."""
    xs, ys = [p[0] for p in places] or [0.0], [p[1] for p in places] or [0.0]
    across, down = width - 2 * _EDGE - 12, bottom - top - 24
    unit = max((max(xs) - min(xs)) / across, (max(ys) - min(ys)) / down) or 1.0
    middle, half = (max(xs) + min(xs)) / 2, unit * across / 2
    x = Scale(middle - half, middle + half, _EDGE + 6, _EDGE + 6 + across)
    middle, half = (max(ys) + min(ys)) / 2, unit * down / 2
    return x, Scale(middle - half, middle + half, bottom - 12, top + 12)


def _frame(x: Scale, y: Scale, width: float, top: float, bottom: float) -> list[Markup]:
    parts = [
        element(
            "rect", x=f"{_EDGE:.1f}", y=f"{top:.1f}", width=f"{width - 2 * _EDGE:.1f}",
            height=f"{bottom - top:.1f}", style="fill:none;stroke:var(--line,#d1d9e0)",
        )
    ]  # fmt: skip
    if x.low < 0 < x.high:
        parts.append(line(x.px(0.0), top, x.px(0.0), bottom, "--grid", "#e6eaee"))
    if y.low < 0 < y.high:
        parts.append(line(_EDGE, y.px(0.0), width - _EDGE, y.px(0.0), "--grid", "#e6eaee"))
    return parts


def _link(groups: Sequence[Points], one: Link, x: Scale, y: Scale) -> Markup:
    (a, b), (c, d) = (
        groups[one.group].places[one.point],
        groups[one.other_group].places[one.other_point],
    )
    return element(
        "line", x1=f"{x.px(a):.1f}", y1=f"{y.px(b):.1f}", x2=f"{x.px(c):.1f}",
        y2=f"{y.px(d):.1f}", style="stroke:var(--muted,#59636e);stroke-opacity:.35",
    )  # fmt: skip


def _marker(index: int, x: float, y: float, *children: Markup) -> Markup:
    """A circle, square, triangle or diamond: colour is not the only difference."""
    slot = index % len(_COLOURS)
    style = f"fill:var(--s{slot},{_COLOURS[slot]});fill-opacity:.75"
    kind = index % 4
    if kind == 0:
        return element("circle", *children, cx=f"{x:.1f}", cy=f"{y:.1f}", r="3.6", style=style)
    d = {
        1: f"M{x - 3.3:.1f} {y - 3.3:.1f}h6.6v6.6h-6.6z",
        2: f"M{x:.1f} {y - 4.4:.1f}l4.2 7.4h-8.4z",
        3: f"M{x:.1f} {y - 4.6:.1f}l4.4 4.6l-4.4 4.6l-4.4 -4.6z",
    }[kind]
    return element("path", *children, d=d, style=style)


def _legend(groups: Sequence[Points], width: int) -> tuple[list[Markup], float]:
    parts: list[Markup] = []
    left, y = _EDGE, 14.0
    for index, one in enumerate(groups):
        need = 18 + len(one.label) * CHAR + 18
        if left + need > width and left > _EDGE:
            left, y = _EDGE, y + 18
        parts += [_marker(index, left + 6, y), text_at(one.label, left + 16, y + 4)]
        left += need
    return parts, y + 16
