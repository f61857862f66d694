"""The axes of a plot: where data lies on the page, grid lines, ticks and their labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from accel.report.markup import Markup, element

CHAR = 6.4  # width of an average character of the 12 px label font, in px
ZERO_ROW = 26.0  # px under the axis for values that are zero
NONFINITE_ROW = 26.0  # px above it for values that are NaN or infinite
_ANGLE = 40.0  # degrees by which x labels are turned


@dataclass(frozen=True)
class Frame:
    """Where data lies on the page, in px."""

    left: float
    top: float
    right: float
    bottom: float
    count: int
    low: int  # decades
    high: int
    has_zero: bool
    has_nonfinite: bool

    def x(self, index: float) -> float:
        """The px of a position; whole numbers are the middles of their slots."""
        return self.left + (self.right - self.left) * (index + 0.5) / max(self.count, 1)

    def y(self, value: float) -> float:
        """The px of a value; zero lies under the axis, NaN and infinity above it."""
        if not math.isfinite(value):
            return self.top - NONFINITE_ROW + 8
        if value <= 0.0:
            return self.bottom + ZERO_ROW - 8
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return self.bottom - share * (self.bottom - self.top)


def frame_of(
    values: Iterable[float], count: int, names: Sequence[str], width: int, height: int, *, top: int
) -> Frame:
    """The frame that holds `values` over `count` positions, in whole decades."""
    values = list(values)
    logs = [math.log10(v) for v in values if math.isfinite(v) and v > 0.0]
    low, high = (math.floor(min(logs)), min(308, math.ceil(max(logs)))) if logs else (-8, 0)
    has_nonfinite = any(not math.isfinite(v) for v in values)
    # A turned label ends at its tick and begins far to the left: the first one needs room.
    lean = len(names[0]) * CHAR * math.cos(math.radians(_ANGLE)) if names else 0.0
    return Frame(
        left=max(78.0, lean - (width - 78.0) / max(count, 1) / 2 + 8),
        top=top + (NONFINITE_ROW if has_nonfinite else 0.0),
        right=width - 16.0,
        bottom=float(height),
        count=count,
        low=low,
        high=max(high, low + 1),
        has_zero=any(v <= 0.0 for v in values),
        has_nonfinite=has_nonfinite,
    )


def label_room(names: Sequence[str]) -> float:
    """Height of the tallest turned label."""
    longest = max((len(name) for name in names), default=0)
    return 18 + longest * CHAR * math.sin(math.radians(_ANGLE))


def grid(frame: Frame, y_title: str) -> list[Markup]:
    """Horizontal lines at decades, their labels and the title of the axis."""
    decades = range(frame.low, frame.high + 1)
    every = max(1, math.ceil(len(decades) * 18 / (frame.bottom - frame.top)))
    parts = []
    for decade in decades[::every]:
        y = frame.y(10.0**decade)
        parts += [line(frame.left, y, frame.right, y, "--grid", "#e6eaee")]
        parts += [text_at(f"1e{decade:+03d}", frame.left - 8, y + 4, anchor="end", muted=True)]
    if frame.has_zero:
        parts += [
            text_at("0", frame.left - 8, frame.bottom + ZERO_ROW - 4, anchor="end", muted=True)
        ]
    if frame.has_nonfinite:
        parts += [
            text_at(
                "∞, NaN", frame.left - 8, frame.top - NONFINITE_ROW + 12, anchor="end", muted=True
            )
        ]
    middle = (frame.top + frame.bottom) / 2
    parts += [
        element(
            "text", y_title, class_="muted", text_anchor="middle",
            transform=f"translate(14 {middle:.1f}) rotate(-90)",
        )
    ]  # fmt: skip
    return parts


def x_axis(frame: Frame, names: Sequence[str], *, turned: bool) -> list[Markup]:
    """The horizontal axis; names are thinned to those that do not overlap."""
    longest = max((len(name) for name in names), default=1)
    need = 13 / math.sin(math.radians(_ANGLE)) if turned else longest * CHAR + 14
    step = (frame.right - frame.left) / max(frame.count, 1)
    every = _round_up(max(1, math.ceil(need / step))) if not turned else math.ceil(need / step)
    base = frame.bottom + (ZERO_ROW if frame.has_zero else 0)
    parts = [line(frame.left, base, frame.right, base, "--line", "#d1d9e0")]
    for index in range(0, frame.count, max(1, every)):
        x = frame.x(index)
        parts.append(line(x, base, x, base + 4, "--line", "#d1d9e0"))
        turn = f"translate({x + 3:.1f} {base + 15:.1f}) rotate(-{_ANGLE:g})" if turned else None
        at = {} if turned else {"x": f"{x:.1f}", "y": f"{base + 17:.1f}"}
        anchor = "end" if turned else "middle"
        parts.append(
            element("text", names[index], class_="muted", text_anchor=anchor, transform=turn, **at)
        )
    return parts


def _round_up(n: int) -> int:
    scale = int(10 ** (len(str(n)) - 1))
    return next(step * scale for step in (1, 2, 5, 10) if step * scale >= n)


def line(x1: float, y1: float, x2: float, y2: float, variable: str, colour: str) -> Markup:
    """A thin line in a colour of the page (`variable`), or `colour` outside a page."""
    return element(
        "line", x1=f"{x1:.1f}", y1=f"{y1:.1f}", x2=f"{x2:.1f}", y2=f"{y2:.1f}",
        style=f"stroke:var({variable},{colour})",
    )  # fmt: skip


def text_at(text: str, x: float, y: float, *, anchor: str = "start", muted: bool = False) -> Markup:
    """Text, escaped; `y` is its base line."""
    kind = "muted" if muted else None
    return element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, class_=kind)
