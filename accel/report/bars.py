"""Bars: how often values occur, and how parts add up to a whole."""

from __future__ import annotations

import math
from collections.abc import Sequence

from accel.report.axes import CHAR, line, text_at
from accel.report.markup import Markup, element, joined, number

_LABEL = 44  # longest name of a part in characters; the tail says more than the head


def histogram(
    bins: Sequence[tuple[str, int]], *, title: str, width: int = 520, height: int = 130
) -> Markup:
    """How often values fall into bins, on a logarithmic scale of counts.

    Args:
        bins: The bins' names and counts, in order.
        title: What is counted; written under the bins.
        width: Of the drawing, in px; the page scales it down where it must.
        height: Of the tallest bar, in px.
    """
    most = math.log10(1 + max((count for _, count in bins), default=0)) or 1.0
    slot = width / max(len(bins), 1)
    base = 16.0 + height
    parts: list[Markup] = []
    bars = ""  # one path, since a page may hold thousands of these
    every = math.ceil((max((len(name) for name, _ in bins), default=1) * CHAR + 6) / slot)
    for index, (name, count) in enumerate(bins):
        tall = height * math.log10(1 + count) / most
        middle = slot * (index + 0.5)
        wide = max(1.0, slot - 2)
        bars += f"M{slot * index + 1:.0f} {base:.0f}v-{tall:.0f}h{wide:.0f}v{tall:.0f}"
        if count and len(_short(count)) * CHAR <= slot + 2:
            parts.append(text_at(_short(count), middle, base - tall - 4, anchor="middle"))
        if index % every == 0:
            parts.append(text_at(name, middle, base + 15, anchor="middle", muted=True))
    parts += [
        element("path", d=bars, style="fill:var(--s1,#d1590a);fill-opacity:.8"),
        line(0, base, width, base, "--line", "#d1d9e0"),
        text_at(title, width / 2, base + 33, anchor="middle", muted=True),
    ]
    said = f"{title}: " + ", ".join(f"{name}: {count}" for name, count in bins if count)
    return _drawing(parts, width, base + 40, said, "bars")


def _short(count: int) -> str:
    for size, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.3g}{name}"
    return str(count)


def waterfall(
    parts: Sequence[tuple[str, float]],
    *,
    title: str,
    total: str,
    actual: float | None = None,
    actual_name: str = "",
    width: int = 1080,
) -> Markup:
    """How parts add up: each bar begins where the one above it ends.

    Args:
        parts: Names and values of any sign, in the order they are added; one that is not finite
            is named and adds nothing.
        title: What is added, with its unit.
        total: What the sum is called.
        actual: What the sum should be, drawn as a line; None if unknown.
        actual_name: What that is called.
        width: Of the drawing, in px; the page scales it.
    """
    sums = [0.0]
    for _, value in parts:
        sums.append(sums[-1] + (value if math.isfinite(value) else 0.0))
    known = [*sums, *([actual] if actual is not None and math.isfinite(actual) else [])]
    low, high = min(known), max(known)
    left = 24.0 + min(_LABEL, max(len(name) for name, _ in [*parts, (total, 0.0)])) * CHAR
    right = width - 90.0

    def x(value: float) -> float:
        return left + (value - low) / ((high - low) or 1.0) * (right - left)

    rows = [(name, value, sums[i], sums[i + 1]) for i, (name, value) in enumerate(parts)]
    rows.append((total, sums[-1], 0.0, sums[-1]))
    bottom = 34.0 + 22 * len(rows)
    drawn = [line(x(0.0), 24, x(0.0), bottom, "--line", "#d1d9e0")]
    for index, (name, value, start, end) in enumerate(rows):
        is_total = index == len(rows) - 1
        drawn += _bar(name, value, x(start), x(end), 30.0 + 22 * index, is_total=is_total)
    if actual is not None and math.isfinite(actual):
        drawn += _actual(x(actual), f"{actual_name} {number(actual)}", bottom, width)
    said = f"{title}: " + ", ".join(f"{name} {number(value)}" for name, value, *_ in rows)
    return _drawing(drawn, width, bottom + 8, said, "drawing")


def _bar(
    name: str, value: float, start: float, end: float, top: float, *, is_total: bool
) -> list[Markup]:
    low, high = sorted((start, end))
    colour = "--s2,#59636e" if is_total else "--s1,#d1590a" if value > 0 else "--s0,#0969da"
    shown = name if len(name) <= _LABEL else "…" + name[-(_LABEL - 1) :]
    return [
        element("text", shown, element("title", name), x="8", y=f"{top + 12:.1f}"),
        element(
            "rect", element("title", f"{name}: {number(value)}"), x=f"{low:.1f}", y=f"{top:.1f}",
            width=f"{max(1.5, high - low):.1f}", height="16", style=f"fill:var({colour})",
        ),
        text_at(number(value), high + 6, top + 12, muted=True),
    ]  # fmt: skip


def _actual(x: float, said: str, bottom: float, width: float) -> list[Markup]:
    mark = element(
        "line", x1=f"{x:.1f}", x2=f"{x:.1f}", y1="22", y2=f"{bottom:.1f}",
        style="stroke:var(--text,#1c2128)", stroke_dasharray="4 4",
    )  # fmt: skip
    is_right = x > width / 2
    return [mark, text_at(said, x, 14, anchor="end" if is_right else "start")]


def _drawing(parts: Sequence[Markup], width: float, height: float, said: str, kind: str) -> Markup:
    drawing = element(
        "svg", joined(parts), viewBox=f"0 0 {width:.0f} {height:.0f}", role="img", aria_label=said,
    )  # fmt: skip
    return element("figure", drawing, class_=kind)
