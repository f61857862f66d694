"""Hand-drawn SVG: errors on a logarithmic axis over a sequence of names or numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from accel.report.axes import (
    CHAR,
    NONFINITE_ROW,
    ZERO_ROW,
    Frame,
    frame_of,
    grid,
    label_room,
    text_at,
    x_axis,
)
from accel.report.markup import Markup, element, joined, number
from accel.report.regions import REGION_ROOM, Region, regions_of

_LABEL = 34  # longest x label in characters; the tail says more than the head
_FALLBACK = ("#0969da", "#d1590a", "#59636e", "#1a7f37", "#8250df", "#b3196e")


@dataclass(frozen=True)
class Series:
    """One thing that is plotted.

    Attributes:
        label: Its name in the legend.
        values: One value per x position. None leaves a gap. Zero has a row of its own under the
            axis, NaN and infinity one above it, so that nothing is dropped.
        kind: Points, a line, or a step line (for limits, which hold for a position and not between
            two).
        notes: Text for the tooltip of each position; the label, x and value are shown anyway.
        tone: Its colour: one of its own for each series, that of a limit, or a muted one.
    """

    label: str
    values: Sequence[float | None]
    kind: Literal["points", "line", "steps"] = "points"
    notes: Sequence[str] = ()
    tone: Literal["own", "limit", "muted"] = "own"


def error_plot(
    series: Sequence[Series],
    *,
    x_labels: Sequence[str] = (),
    x_title: str = "",
    y_title: str = "relative error",
    mark: int | None = None,
    mark_label: str = "",
    regions: Sequence[Region] = (),
    description: str = "",
    width: int = 1080,
    height: int = 420,
) -> Markup:
    """Plot errors on a logarithmic axis.

    Args:
        series: What to draw; all have the same number of values.
        x_labels: One name per position, thinned where they would overlap (tooltips carry all);
            empty to number the positions from 0.
        x_title: What the positions are.
        y_title: What is plotted.
        mark: A position to point out by a vertical line.
        mark_label: What is written at it.
        regions: Named ranges of positions; their names stand under the axis in place of those of
            the positions.
        description: What the drawing shows, for who cannot see it; `y_title` if empty.
        width: Of the drawing, in px; the page scales it.
        height: Of the drawing, in px, without the room for x labels.

    Returns:
        An `<svg>` element inside a `<figure>`.

    Raises:
        ValueError: The series differ in length, or `x_labels` does not fit them.
    """
    count = _count(series, x_labels)
    names = [_shortened(name) for name in x_labels] or [str(i) for i in range(count)]
    legend, legend_rows = _legend(series, width)
    leaning = () if regions else names
    frame = frame_of(_values(series), count, leaning, width, height, top=34 + 20 * legend_rows)
    turned = bool(x_labels) and not regions
    room = REGION_ROOM if regions else label_room(names) if turned else 18
    total = frame.bottom + (ZERO_ROW if frame.has_zero else 0) + room + (26 if x_title else 8)
    parts = [
        *legend,
        *regions_of(frame, regions),
        *grid(frame, y_title),
        *([] if regions else x_axis(frame, names, turned=turned)),
        *_mark(frame, mark, mark_label),
        *(part for i, one in enumerate(series) for part in _drawn(frame, one, i, x_labels)),
        text_at(x_title, (frame.left + frame.right) / 2, total - 8, anchor="middle", muted=True),
    ]
    drawing = element(
        "svg",
        joined(parts),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {total:.0f}",
        role="img",
        aria_label=description or y_title,
    )
    return element("figure", drawing, class_="drawing")


def _count(series: Sequence[Series], x_labels: Sequence[str]) -> int:
    lengths = {len(one.values) for one in series} | ({len(x_labels)} if x_labels else set())
    if len(lengths) > 1:
        raise ValueError(f"series and x_labels must have one length, got {sorted(lengths)}")
    return lengths.pop() if lengths else 0


def _values(series: Sequence[Series]) -> list[float]:
    return [v for one in series for v in one.values if v is not None]


def _shortened(name: str) -> str:
    return name if len(name) <= _LABEL else "…" + name[-(_LABEL - 1) :]


def _mark(frame: Frame, index: int | None, label: str) -> list[Markup]:
    if index is None:
        return []
    x, top = frame.x(index), frame.top - (NONFINITE_ROW if frame.has_nonfinite else 0)
    to_left = x > (frame.left + frame.right) / 2
    line = element(
        "line", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=f"{top:.1f}", y2=f"{frame.bottom:.1f}",
        style="stroke:var(--bad,#c6202b)", stroke_dasharray="4 4",
    )  # fmt: skip
    anchor = "end" if to_left else "start"
    return [line, text_at(label, x + (-6 if to_left else 6), top - 6, anchor=anchor)]


def _drawn(frame: Frame, one: Series, index: int, x_labels: Sequence[str]) -> list[Markup]:
    points = [(i, v) for i, v in enumerate(one.values) if v is not None]
    if one.kind == "steps":
        return [_path(_steps(frame, points), _colour(one, index), dashed=True)]
    colour = _colour(one, index)
    parts = [_path(_polyline(frame, points), colour)] if one.kind == "line" else []
    radius = 3.4 if frame.count <= 120 else 2.2
    for i, value in points:
        where = x_labels[i] if x_labels else str(i)
        note = f"\n{one.notes[i]}" if one.notes else ""
        title = element("title", f"{where}\n{one.label}: {number(float(value))}{note}")
        parts.append(
            element(
                "circle", title, cx=f"{frame.x(i):.1f}", cy=f"{frame.y(value):.1f}", r=radius,
                style=f"fill:{colour};fill-opacity:.8",
            )
        )  # fmt: skip
    return parts


def _polyline(frame: Frame, points: Sequence[tuple[int, float]]) -> str:
    text = ""
    for position, (i, value) in enumerate(points):
        before = points[position - 1] if position > 0 else (None, 0.0)
        # Zero, NaN and infinity have rows of their own, which no line leads to.
        joins = before[0] == i - 1 and all(0.0 < v < math.inf for v in (before[1], value))
        text += f"{'L' if joins else 'M'}{frame.x(i):.1f} {frame.y(value):.1f}"
    return text


def _steps(frame: Frame, points: Sequence[tuple[int, float]]) -> str:
    text = ""
    for position, (i, value) in enumerate(points):
        joins = position > 0 and points[position - 1][0] == i - 1
        y = frame.y(value)
        text += (
            f"{'L' if joins else 'M'}{frame.x(i - 0.5):.1f} {y:.1f}L{frame.x(i + 0.5):.1f} {y:.1f}"
        )
    return text


def _path(d: str, colour: str, *, dashed: bool = False) -> Markup:
    style = f"fill:none;stroke:{colour};stroke-width:1.4"
    return element("path", d=d, style=style, stroke_dasharray="5 3" if dashed else None)


def _legend(series: Sequence[Series], width: int) -> tuple[list[Markup], int]:
    parts: list[Markup] = []
    x, row = 78.0, 0
    for index, one in enumerate(series):
        need = 26 + len(one.label) * CHAR + 22
        if x + need > width and x > 78.0:
            x, row = 78.0, row + 1
        y = 14 + 20 * row
        colour = _colour(one, index)
        if one.kind == "points":
            key = element("circle", cx=x + 9, cy=y, r=4, style=f"fill:{colour}")
        else:
            key = _path(f"M{x} {y}L{x + 18} {y}", colour, dashed=one.kind == "steps")
        parts += [key, text_at(one.label, x + 24, y + 4)]
        x += need
    return parts, row + 1


def _colour(one: Series, index: int) -> str:
    if one.tone != "own":
        return "var(--bad,#c6202b)" if one.tone == "limit" else "var(--muted,#59636e)"
    slot = index % len(_FALLBACK)
    return f"var(--s{slot},{_FALLBACK[slot]})"
