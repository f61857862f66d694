"""Errors against depth: forward and backward, in units of the unit roundoff."""

from __future__ import annotations

import math
from collections.abc import Sequence

from accel.numerics.comparing.comparison import Accuracy, Comparison, Row
from accel.numerics.comparing.contents import rounding
from accel.numerics.pages.plots import regions, thinned
from accel.numerics.storage.entries import Phase
from accel.report import Markup, html, svg
from accel.report.markup import joined, number

_MOST_POINTS = 500


def depth(comparison: Comparison) -> Markup:
    """Both runs' distance from float64, or from each other, over execution order."""
    plots = [
        plot
        for phase, name in (("forward", "Forward"), ("backward", "Backward"))
        for plot in _plot(comparison, "forward" if phase == "forward" else "backward", name)
    ]
    if not plots:
        plots = [html.paragraph("No distance of a floating-point value is known.")]
    return html.section("Error against depth", _said(comparison), *plots, anchor="depth")


def has_truth(comparison: Comparison) -> bool:
    """Whether the distance from a chained float64 run is known of most operators.

    Where only a window was kept, the chain begins anew at its every gap and is no truth.
    """
    rows = [row for row in comparison.rows if row.phase == "forward" and is_operator(row)]
    known = sum(_strayed(row) is not None for row in rows)
    return known > 0 and 2 * known >= len(rows)


def is_operator(row: Row) -> bool:
    """Whether a row is of an operator's floating-point output."""
    return row.key is not None and is_real(row)


def _said(comparison: Comparison) -> str:
    unit = "u is the unit roundoff of each value's dtype (the coarser one where the runs differ)"
    if has_truth(comparison):
        return (
            "How far each run has strayed from the same graph computed in float64 throughout, as "
            f"relative L2 distance in units of u; {unit}. The line at 1 u is the float64 floor: "
            "what rounding the float64 result once can cost. Each run is held against float64 of "
            "its own program, so a wrong weight or argument shows only between the runs."
        )
    why = (
        "the recordings hold no elements"
        if "full" not in comparison.levels
        else "the elements of most operators were not kept, or not replayed"
    )
    return (
        f"How far the runs are apart, as relative L2 distance in units of u; {unit}. There is no "
        f"curve of each run against float64 because {why}. What inputs and rounding explain is "
        "drawn beside it; the line at 1 u is the floor that one rounding of a float64 result "
        "can cost."
    )


def _plot(comparison: Comparison, phase: Phase, name: str) -> list[Markup]:
    truth = has_truth(comparison)
    height = _furthest if truth else _distance
    rows = [row for row in _of_phase(comparison.rows, phase) if height(row) is not None]
    if not rows:
        return []
    shown, every = thinned(rows, height, _MOST_POINTS)
    mark = next((i for i, row in enumerate(shown) if row.name == comparison.divergence), None)
    series = _against_truth(shown) if truth else _apart(shown)
    floor = svg.Series("floor: one rounding of float64, 1 u", [1.0] * len(shown), "steps",
                       tone="muted")  # fmt: skip
    series.insert(2, floor)
    thinning = f"; of every {every} values the furthest" if every > 1 else ""
    plot = svg.error_plot(
        series,
        x_labels=[row.name for row in shown],
        x_title=f"{name.lower()}, {len(rows)} values in execution order{thinning}",
        y_title=f"distance{'' if truth else ' between the runs'} in u",
        mark=mark,
        mark_label="first divergence",
        regions=regions([row.module for row in shown]),
        description=_described(name, shown, series),
        height=300,
    )  # fmt: skip
    return [joined([Markup(f"<h3>{name}</h3>"), plot])]


def _of_phase(rows: Sequence[Row], phase: Phase) -> list[Row]:
    real = [row for row in rows if row.phase == phase and is_real(row)]
    # Boundaries of modules repeat operators' outputs, where operators are aligned.
    return [row for row in real if row.key is not None] or real


def is_real(row: Row) -> bool:
    """Whether a row is of floating-point values."""
    return all("float" in dtype for dtype in row.dtypes)


def _strayed(row: Row) -> float | None:
    """How far the worse run is from float64."""
    known = (_accumulated(row.reference), _accumulated(row.candidate))
    return max((one for one in known if one is not None), default=None)


def _furthest(row: Row) -> float | None:
    """The highest of the curves where there is a float64 truth."""
    strayed = _strayed(row)
    return None if strayed is None else max(strayed, _distance(row) or 0.0)


def _distance(row: Row) -> float | None:
    return None if row.distance is None else row.distance / unit(row)


def _accumulated(accuracy: Accuracy | None) -> float | None:
    return None if accuracy is None else accuracy.accumulated


def _against_truth(rows: Sequence[Row]) -> list[svg.Series]:
    notes = [_note(row) for row in rows]
    return [
        svg.Series("reference", [_accumulated(row.reference) for row in rows], "line", notes),
        svg.Series("candidate", [_accumulated(row.candidate) for row in rows], "line", notes),
        svg.Series("candidate - reference", [_distance(row) for row in rows], "line", notes),
    ]


def _apart(rows: Sequence[Row]) -> list[svg.Series]:
    def in_units(row: Row, value: float | None) -> float | None:
        return None if value is None else value / unit(row)

    expected = [in_units(row, row.expected) for row in rows]
    finite = [one if one is not None and math.isfinite(one) else None for one in expected]
    apart = [_distance(row) for row in rows]
    notes = [_note(row) for row in rows]
    return [
        svg.Series("explained by inputs and rounding", finite, "steps"),
        svg.Series("candidate - reference", apart, "line", notes),
    ]


def unit(row: Row) -> float:
    """The unit roundoff of a row's coarser dtype."""
    return max(map(rounding, row.dtypes))


def _note(row: Row) -> str:
    said = f"{row.status}; apart by {number(row.distance)}"
    return f"{said}, its inputs by {number(row.input_distance)}"


def _described(name: str, rows: Sequence[Row], series: Sequence[svg.Series]) -> str:
    """The plot in words: where each curve is at its highest."""
    said = [f"{name}: distances of {len(rows)} values in execution order, logarithmic axis."]
    for one in (one for one in series if one.kind == "line"):
        known = [(value, i) for i, value in enumerate(one.values) if value is not None]
        if known:
            value, at = max(known)
            said.append(f"{one.label}: at most {number(value)} u, at {rows[at].name}.")
    return " ".join(said)
