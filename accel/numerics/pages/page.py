"""A comparison as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from accel.numerics.entries import Phase
from accel.numerics.judgement import Judged
from accel.numerics.presentation import HEADERS, by_share, counts, row
from accel.report import Markup, html, svg
from accel_kernels.budgets import Budget, Deviation

if TYPE_CHECKING:
    from accel.numerics.comparison import Comparison

_MOST_ROWS, _MOST_POINTS = 2000, 600


def as_html(comparison: Comparison) -> str:
    """See `Comparison.to_html`."""
    body = [
        html.verdict(comparison.verdict, good=comparison.ok),
        html.paragraph(f"Tensors: {counts(comparison)}."),
        *_plot("Forward: error against depth", comparison.entries, "forward"),
        *_plot("Backward: gradients of the outputs", comparison.entries, "gradient"),
        *_plot("Gradients of the parameters", comparison.entries, "parameter_gradient"),
        _environment(comparison),
        _notes(comparison.notes),
        _table(comparison.entries),
    ]
    subtitle = f"reference {comparison.reference}, candidate {comparison.candidate}"
    return html.page("Comparison of two recordings", body, subtitle=subtitle)


def _plot(heading: str, entries: Sequence[Judged], phase: Phase) -> list[Markup]:
    plotted = [one for one in entries if one.measured.key.phase == phase]
    shown, every = _thinned([one for one in plotted if one.measured.error_candidate is not None])
    if not shown:
        return []
    notes = [f"path {one.measured.key.path}, {one.status}" for one in shown]
    series = [
        svg.Series(
            "reference against its float64",
            [_rms(one.measured.error_reference) for one in shown],
            notes=notes,
        ),
        svg.Series(
            "candidate against its float64",
            [_rms(one.measured.error_candidate) for one in shown],
            notes=notes,
        ),
        svg.Series("allowed", [_rms(one.allowed) for one in shown], "steps"),
    ]
    mark = next((i for i, one in enumerate(shown) if one.status == "out"), None)
    plot = svg.error_plot(
        series,
        x_labels=[_label(one) for one in shown],
        x_title="execution order" + (f"; the worst of every {every}" if every > 1 else ""),
        y_title="relative rms error",
        mark=mark,
        mark_label="first out of budget",
    )
    return [html.section(heading, plot)]


def _rms(errors: Deviation | Budget | None) -> float | None:
    return None if errors is None else errors.rms


def _thinned(entries: Sequence[Judged]) -> tuple[list[Judged], int]:
    """At most so many that points can be told apart: of each run of neighbours the worst."""
    every = -(-len(entries) // _MOST_POINTS) or 1
    runs = (entries[i : i + every] for i in range(0, len(entries), every))
    return [by_share(tuple(run))[0] for run in runs], every


def _label(one: Judged) -> str:
    key = one.measured.key
    path = f".{key.path}" if key.phase == "parameter_gradient" else ""
    call = f" #{key.call}" if key.call else ""
    return f"{key.module or '(the model)'}{path}{call}"


def _environment(comparison: Comparison) -> Markup:
    if not comparison.environment:
        return html.section("Environment", "No difference in versions, chip, switches or seed.")
    rows = [(name, str(a), str(b)) for name, (a, b) in comparison.environment.items()]
    table = html.table(("differs", "reference", "candidate"), rows)
    return html.section("Environment", table)


def _notes(notes: Sequence[str]) -> Markup:
    return html.section("Notes", *notes) if notes else Markup("")


def _table(entries: tuple[Judged, ...]) -> Markup:
    shown = by_share(entries)[:_MOST_ROWS]
    rows = [(*row(one), one.reason) for one in shown]
    table = html.table(
        (*HEADERS, "reason"), rows, sortable=True, bad=lambda cells: cells[0] == "out"
    )
    said = "Errors are relative rms against float64. A click on a heading sorts."
    if len(shown) < len(entries):
        said += f" The {len(shown)} tensors nearest to their budgets, of {len(entries)}."
    return html.section("Every tensor", said, table)
