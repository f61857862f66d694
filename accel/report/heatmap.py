"""A matrix as coloured cells, with its colour scale."""

from __future__ import annotations

import math
from collections.abc import Sequence

from accel.report.axes import CHAR, text_at
from accel.report.markup import Markup, element, joined, number

MOST = 64  # rows or columns; more is no longer a drawing of cells but of noise
_LABEL = 150.0  # px of the longest label; the tooltip has all of it
_UP, _DOWN = "--s0,#0969da", "--s1,#d1590a"  # above and below zero
_STEPS = 20  # of the colour scale
_TURN = 60  # degrees by which column labels are turned


def heatmap(
    values: Sequence[Sequence[float]],
    *,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    row_title: str = "",
    column_title: str = "",
    limit: float = 1.0,
    description: str = "",
    cell: float = 20.0,
) -> Markup:
    """Draw a matrix whose values lie between `-limit` and `limit`.

    Zero has the colour of the page, what is above and below it two colours that grow stronger; so
    it reads alike on light and dark pages. The tooltip of a cell says labels and value.

    Args:
        values: Rows of one length. NaN is crossed out.
        row_labels: One per row.
        column_labels: One per column.
        row_title: What the rows are.
        column_title: What the columns are.
        limit: The value of the strongest colour; what is beyond has it too.
        description: What the drawing shows, for who cannot see it.
        cell: Side of a cell, in px.

    Returns:
        An `<svg>` element inside a `<figure>`.

    Raises:
        ValueError: Labels do not fit, there is nothing to draw or more than 64 rows or columns, or
            `limit` is not positive.
    """
    rows, columns = len(values), len(column_labels)
    if len(row_labels) != rows or any(len(row) != columns for row in values):
        raise ValueError(
            f"{rows} rows of {sorted({len(row) for row in values})} values do not fit "
            f"{len(row_labels)} row labels and {columns} column labels"
        )
    if not 0 < rows <= MOST or not 0 < columns <= MOST:
        raise ValueError(f"a heat map has 1 to {MOST} rows and columns, got {rows} and {columns}")
    if not limit > 0 or not math.isfinite(limit):
        raise ValueError(f"limit must be positive and finite, got {limit}")
    left = 36.0 + max(_width(_shortened(label)) for label in row_labels)
    top = 14.0 + (20.0 if column_title else 0.0)
    bottom = top + cell * rows
    longest = max(_width(_shortened(label)) for label in column_labels)
    room = 18.0 + longest * math.sin(math.radians(_TURN))
    # A turned label begins far to the left of its column.
    left = max(left, 8.0 + longest * math.cos(math.radians(_TURN)) - cell / 2)
    right = left + cell * columns
    parts = [
        text_at(column_title, (left + right) / 2, 16, anchor="middle", muted=True),
        element(
            "text", row_title, class_="muted", text_anchor="middle",
            transform=f"translate(14 {(top + bottom) / 2:.1f}) rotate(-90)",
        ),
    ]  # fmt: skip
    for i, label in enumerate(row_labels):
        parts.append(_label(label, left - 6, top + cell * (i + 0.5) + 4, None))
        for j, value in enumerate(values[i]):
            title = element("title", f"{label}\n{column_labels[j]}\n{number(float(value))}")
            parts.append(_cell(value / limit, left + cell * j, top + cell * i, cell, title))
    for j, label in enumerate(column_labels):
        parts.append(_label(label, left + cell * (j + 0.5) + 4, bottom + 12, _TURN))
    scale = _colour_scale(right + 22, top, max(120.0, min(bottom - top, 240.0)), limit)
    height = max(bottom + room, top + 150.0)
    width = right + 80
    drawing = element(
        "svg", joined([*parts, *scale]), xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width:.0f} {height:.0f}", role="img",
        aria_label=description or f"{row_title} against {column_title}",
        style=f"max-width:{width:.0f}px",
    )  # fmt: skip
    return element("figure", drawing, class_="plot")


def _cell(share: float, x: float, y: float, side: float, *children: Markup) -> Markup:
    at = {"x": f"{x:.1f}", "y": f"{y:.1f}", "width": f"{side:.1f}", "height": f"{side:.1f}"}
    if not math.isfinite(share):
        cross = element(
            "path", *children, d=f"M{x:.1f} {y:.1f}l{side:.1f} {side:.1f}m0 -{side:.1f}"
            f"l-{side:.1f} {side:.1f}", style="stroke:var(--bad,#c6202b);fill:none",
        )  # fmt: skip
        return joined([element("rect", *children, **at, style="fill-opacity:0"), cross])
    colour = _UP if share >= 0 else _DOWN
    strength = min(1.0, abs(share))
    return element("rect", *children, **at, style=f"fill:var({colour});fill-opacity:{strength:.2f}")


def _label(text: str, x: float, y: float, turn: int | None) -> Markup:
    shown = _shortened(text)
    where = {"transform": f"translate({x:.1f} {y:.1f}) rotate(-{turn})"} if turn else {
        "x": f"{x:.1f}", "y": f"{y:.1f}"
    }  # fmt: skip
    # The title comes first in an element, so that it is its tooltip.
    return element(
        "text", element("title", text), shown, text_anchor="end", class_="muted", **where
    )


def _shortened(text: str) -> str:
    if _width(text) <= _LABEL:
        return text
    while _width(text) > _LABEL - CHAR:
        text = text[:-1]
    return text.rstrip() + "…"


def _width(text: str) -> float:
    """About how many px wide text is in the label font: capitals are wider than the average."""
    return sum(1.35 * CHAR if c.isupper() or not c.isascii() else CHAR for c in text)


def _colour_scale(x: float, top: float, height: float, limit: float) -> list[Markup]:
    parts = []
    side = height / _STEPS
    for step in range(_STEPS):
        share = 1.0 - (2 * step + 1) / _STEPS
        colour = _UP if share >= 0 else _DOWN
        parts.append(
            element(
                "rect", x=f"{x:.1f}", y=f"{top + side * step:.1f}", width="14",
                height=f"{side + 0.3:.1f}",
                style=f"fill:var({colour});fill-opacity:{abs(share):.2f}",
            )
        )  # fmt: skip
    frame = element(
        "rect", x=f"{x:.1f}", y=f"{top:.1f}", width="14", height=f"{height:.1f}",
        style="fill:none;stroke:var(--line,#d1d9e0)",
    )  # fmt: skip
    marks = [
        text_at(number(float(value)), x + 20, top + height * at + 4, muted=True)
        for value, at in ((limit, 0.0), (0.0, 0.5), (-limit, 1.0))
    ]
    return [*parts, frame, *marks]
