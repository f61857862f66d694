"""The strip of isolated errors: R and M of every replayed operator, with their limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from accel.numerics.comparing.comparison import Accuracy, Comparison, Row
from accel.numerics.pages.plots import Measure, Spot, strip_plot, thinned_by_phase
from accel.numerics.pages.words import worse
from accel.report import Markup, html
from accel.report.markup import joined, number

_MOST_POINTS = 700
_Measure = Callable[[Accuracy], float | None]


def strip(comparison: Comparison) -> Markup:
    """R and M over execution order, or why there is none."""
    rows = [row for row in comparison.rows if row.key is not None and _worst(row) is not None]
    if not rows:
        return html.section("Isolated errors", _absent(comparison), anchor="isolated")
    shown, thinning = thinned_by_phase(rows, lambda row: row.phase, _share, _MOST_POINTS)
    said = (
        "Every replayed operator by itself: its error against float64 from its own recorded "
        "inputs, over what rounding its output and the noise of its inputs must cost. R is the "
        "root mean square, M the largest element. Where a dashed line is drawn, what is above it "
        "is a fault; 16-bit outputs are held to what rounding cannot explain and to how many are "
        "misrounded instead of M."
    )
    plots = joined([
        _plot("R", shown, thinning, lambda one: one.rms, lambda one: one.limit_rms),
        _plot("M", shown, thinning, lambda one: one.worst, lambda one: one.limit_worst),
    ])  # fmt: skip
    return html.section("Isolated errors", said, plots, anchor="isolated")


def _absent(comparison: Comparison) -> str:
    if comparison.levels == ("sketch", "sketch"):
        return (
            "No operator was replayed: both recordings hold sketches, which have no elements. "
            "Record at level full or check to have them."
        )
    return "No operator was replayed: comparing was asked not to, or nothing was kept."


def _worst(row: Row) -> float | None:
    found = worse(row)
    return None if found is None else found.worst


def _share(row: Row) -> float | None:
    """How near the worse run is to a limit: 1 is at one."""
    found = worse(row)
    if found is None:
        return None
    pairs = (found.rms, found.limit_rms), (found.worst, found.limit_worst)
    return max((a / b for a, b in pairs if a is not None and b), default=None)


def _plot(
    name: str, rows: Sequence[Row], thinning: str, measure: _Measure, limit: _Measure
) -> Markup:
    runs = {
        "reference": _of_run([row.reference for row in rows], measure, limit),
        "candidate": _of_run([row.candidate for row in rows], measure, limit),
    }
    return strip_plot(
        name,
        [Spot(row.name, row.module, _note(row)) for row in rows],
        {run: found for run, found in runs.items() if any(v is not None for v in found.values)},
        f"operators in execution order{thinning}" if name == "M" else "",
    )


def _of_run(accuracies: Sequence[Accuracy | None], measure: _Measure, limit: _Measure) -> Measure:
    return Measure(
        [None if one is None else measure(one) for one in accuracies],
        [None if one is None else limit(one) for one in accuracies],
        [one is not None and one.verdict == "faulty" for one in accuracies],
    )


def _note(row: Row) -> str:
    parts = []
    for name, one in (("reference", row.reference), ("candidate", row.candidate)):
        if one is not None and one.rms is not None:
            parts.append(f"{name} {one.verdict}: R {number(one.rms)}, M {number(one.worst)}")
    return "\n".join(parts)
