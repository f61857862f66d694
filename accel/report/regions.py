"""Named ranges of positions of a plot: bands behind the data, their names under the axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from accel.report.axes import CHAR, ZERO_ROW, Frame, line
from accel.report.markup import Markup, element

REGION_ROOM = 38.0  # px under the axis: two rows of names
_ROW = 15.0


class Region(NamedTuple):
    """A range of positions.

    Attributes:
        start: The first position.
        stop: One past the last.
        name: What is written under it, if there is room.
    """

    start: int
    stop: int
    name: str


def regions_of(frame: Frame, regions: Sequence[Region]) -> list[Markup]:
    """The bands and names of `regions`; a name is left out where it would touch another."""
    if not regions:
        return []
    base = frame.bottom + (ZERO_ROW if frame.has_zero else 0.0)
    parts = [line(frame.left, base, frame.right, base, "--line", "#d1d9e0")]
    ends = [frame.left - 40.0] * 2  # where the last name of each row ends, in px
    for index, one in enumerate(regions):
        left, right = frame.x(one.start - 0.5), frame.x(one.stop - 0.5)
        if index % 2 == 0:
            parts.insert(0, _band(left, right, frame.top, base))
        width, middle = len(one.name) * CHAR, (left + right) / 2
        at = min(max(middle, width / 2), frame.right + 16.0 - width / 2)
        row = next((row for row in (0, 1) if at - width / 2 > ends[row] + 8), None)
        if row is None:
            continue
        ends[row] = at + width / 2
        parts.append(
            element(
                "text", one.name, class_="muted", text_anchor="middle",
                x=f"{at:.1f}", y=f"{base + 15 + _ROW * row:.1f}",
            )
        )  # fmt: skip
    return parts


def _band(left: float, right: float, top: float, bottom: float) -> Markup:
    return element(
        "rect", x=f"{left:.1f}", y=f"{top:.1f}",
        width=f"{max(0.0, right - left):.1f}", height=f"{bottom - top:.1f}",
        style="fill:var(--panel,#f6f8fa)",
    )  # fmt: skip
