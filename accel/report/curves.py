"""Curves of numbers over steps, on a linear or a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from accel.report.axes import CHAR, line, text_at
from accel.report.markup import Markup, element, joined, number
from accel.report.scales import Scale, scale_of, tick_text

_COLOURS = ("#0969da", "#d1590a", "#59636e", "#1a7f37", "#8250df", "#b3196e")
_DASHES = (None, "7 3", "2 3")  # after the colours are used up, so that no two are alike
_LEFT, _RIGHT = 74.0, 18.0
_POINTS = 400  # of a curve; beyond, the smallest and largest of each stretch
_DOTTED = 40  # points up to which each has a dot of its own


@dataclass(frozen=True)
class Curve:
    """One line.

    Attributes:
        label: Its name in the legend.
        steps: Where its values are, ascending.
        values: One per step. None leaves a gap; what is not finite (or not positive on a
            logarithmic axis) is marked at the edge and never joined.
        tone: A colour of its own, that of a limit, or a muted one.
    """

    label: str
    steps: Sequence[float]
    values: Sequence[float | None]
    tone: Literal["own", "limit", "muted"] = "own"


def line_plot(
    curves: Sequence[Curve],
    *,
    x_title: str = "",
    y_title: str = "",
    is_log: bool = False,
    description: str = "",
    width: int = 520,
    height: int = 240,
) -> Markup:
    """Plot curves over steps.

    Args:
        curves: What to draw.
        x_title: What the steps are.
        y_title: What is plotted.
        is_log: Whether the vertical axis is logarithmic.
        description: What the drawing shows, for who cannot see it; `y_title` if empty.
        width: Of the drawing, in px; the page scales it.
        height: Of the plot itself, in px.

    Returns:
        An `<svg>` element inside a `<figure>`.

    Raises:
        ValueError: A curve has not one value per step, or its steps do not ascend.
    """
    for one in curves:
        _check(one)
    legend, top = _legend(curves, width)
    values = [v for one in curves for v in one.values if v is not None]
    steps = [float(step) for one in curves for step in one.steps]
    is_odd = any(_edge(v, is_log) is not None for v in values)
    top += 14.0 if is_odd else 0.0
    bottom = top + height
    x = scale_of(steps, _LEFT, width - _RIGHT)
    x = Scale(min(steps, default=0.0), max(steps, default=1.0), x.start, x.stop)
    if x.low == x.high:
        x = Scale(x.low - 0.5, x.high + 0.5, x.start, x.stop)
    y = scale_of(values, bottom, top, is_log=is_log)
    foot = bottom + (14.0 if is_odd else 0.0)
    parts = [
        *legend,
        *_grid(x, y, foot, width, height, y_title),
        *(part for i, one in enumerate(curves) for part in _drawn(one, i, x, y)),
        text_at(x_title, (x.start + x.stop) / 2, foot + 36, anchor="middle", muted=True),
    ]
    total = foot + (44 if x_title else 24)
    drawing = element(
        "svg", joined(parts), xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {total:.0f}", role="img", aria_label=description or y_title,
    )  # fmt: skip
    return element("figure", drawing, class_="plot")


def _check(one: Curve) -> None:
    if len(one.steps) != len(one.values):
        raise ValueError(
            f"curve {one.label!r} has {len(one.values)} values for {len(one.steps)} steps"
        )
    if any(b < a for a, b in zip(one.steps, one.steps[1:], strict=False)):
        raise ValueError(f"the steps of curve {one.label!r} must ascend")


def _grid(
    x: Scale, y: Scale, foot: float, width: float, height: float, y_title: str
) -> list[Markup]:
    parts = []
    for value in y.ticks(max(2, int(height // 36))):
        at = y.px(value)
        parts.append(line(x.start, at, x.stop, at, "--grid", "#e6eaee"))
        parts.append(text_at(tick_text(value), x.start - 8, at + 4, anchor="end", muted=True))
    parts.append(line(x.start, foot, x.stop, foot, "--line", "#d1d9e0"))
    longest = max(len(tick_text(v)) for v in (x.low, x.high))
    room = max(48.0, longest * CHAR + 20)
    for value in x.ticks(max(2, int((width - _LEFT - _RIGHT) // room))):
        at = x.px(value)
        parts.append(line(at, foot, at, foot + 4, "--line", "#d1d9e0"))
        parts.append(text_at(tick_text(value), at, foot + 17, anchor="middle", muted=True))
    middle = (y.start + y.stop) / 2
    title = element(
        "text", y_title, class_="muted", text_anchor="middle",
        transform=f"translate(14 {middle:.1f}) rotate(-90)",
    )  # fmt: skip
    return [*parts, title]


def _edge(value: float, is_log: bool) -> Literal["top", "bottom"] | None:
    """At which edge a value stands that has no place on the axis."""
    if not math.isfinite(value):
        return "bottom" if value == -math.inf else "top"
    return "bottom" if is_log and value <= 0 else None


def _drawn(one: Curve, index: int, x: Scale, y: Scale) -> list[Markup]:
    points = [(float(s), v) for s, v in zip(one.steps, one.values, strict=True)]
    shown = _thinned(points)
    d, before = "", False
    dots, odd = [], []
    for step, value in shown:
        if value is None:
            before = False
            continue
        at = x.px(step)
        edge = _edge(value, y.is_log)
        title = element("title", f"{one.label}\n{tick_text(step)}: {number(float(value))}")
        if edge is not None:
            height = y.stop - 8 if edge == "top" else y.start + 8
            odd.append(_cross(at, height, title))
            before = False
            continue
        d += f"{'L' if before else 'M'}{at:.1f} {y.px(value):.1f}"
        dots.append((at, y.px(value), title))
        before = True
    colour, dashes = _colour(one, index)
    style = f"fill:none;stroke:{colour};stroke-width:1.6;stroke-linejoin:round"
    parts = [
        element("path", element("title", one.label), d=d, style=style, stroke_dasharray=dashes)
    ]
    if len(dots) <= _DOTTED:
        parts += [_dot(*dot, colour) for dot in dots]
    return parts + odd


def _thinned(points: list[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """The same shape in fewer points: of each stretch its gaps, extremes and odd values."""
    size = -(-2 * len(points) // _POINTS)
    if size <= 2:
        return points
    kept = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        finite = [p for p in stretch if p[1] is not None and math.isfinite(p[1])]
        chosen = [p for p in stretch if p[1] is None or not math.isfinite(p[1])][:2]
        if finite:
            chosen += [
                min(finite, key=lambda p: p[1] or 0.0),
                max(finite, key=lambda p: p[1] or 0.0),
            ]
        kept += sorted(set(chosen), key=lambda p: p[0])
    return kept


def _dot(x: float, y: float, title: Markup, colour: str) -> Markup:
    return element("circle", title, cx=f"{x:.1f}", cy=f"{y:.1f}", r="2.6", style=f"fill:{colour}")


def _cross(x: float, y: float, title: Markup) -> Markup:
    d = f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8"
    return element("path", title, d=d, style="stroke:var(--bad,#c6202b);stroke-width:2;fill:none")


def _legend(curves: Sequence[Curve], width: int) -> tuple[list[Markup], float]:
    parts: list[Markup] = []
    left, y = _LEFT, 14.0
    for index, one in enumerate(curves):
        need = 26 + len(one.label) * CHAR + 16
        if left + need > width and left > _LEFT:
            left, y = _LEFT, y + 18
        colour, dashes = _colour(one, index)
        style = f"fill:none;stroke:{colour};stroke-width:2.4"
        parts.append(element("path", d=f"M{left} {y}h20", style=style, stroke_dasharray=dashes))
        parts.append(text_at(one.label, left + 26, y + 4))
        left += need
    return parts, y + 18


def _colour(one: Curve, index: int) -> tuple[str, str | None]:
    if one.tone != "own":
        colour = "var(--bad,#c6202b)" if one.tone == "limit" else "var(--muted,#59636e)"
        return colour, "5 3"
    slot = index % len(_COLOURS)
    dashes = _DASHES[index // len(_COLOURS) % len(_DASHES)]
    return f"var(--s{slot},{_COLOURS[slot]})", dashes
