"""The operators to look at, opened out on the page itself."""

from __future__ import annotations

from accel.numerics.comparing.comparison import Comparison, Row
from accel.numerics.pages.drill import details
from accel.numerics.pages.words import is_faulty, tone_of_status
from accel.report import Markup, html
from accel.report.markup import element, joined

_MOST = 12


def flagged_rows(comparison: Comparison) -> list[Row]:
    """In order: the verdict's operator, the first divergence, what is faulty, what diverges."""
    named = str(comparison.verdict.operator)
    first = [row for row in comparison.rows if row.key is not None and str(row.key) == named]
    rest = [row for row in comparison.rows if row.name == comparison.divergence]
    rest += [row for row in comparison.rows if is_faulty(row)]
    rest += [row for row in comparison.rows if row.status == "diverges"]
    return list({row.order: row for row in [*first, *rest]}.values())


def flagged(comparison: Comparison) -> list[Markup]:
    """The first of them, the very first opened."""
    rows = flagged_rows(comparison)
    if not rows:
        return []
    shown = [_opened(comparison, row, is_open=i == 0) for i, row in enumerate(rows[:_MOST])]
    said = "The verdict's operator first, then faulty and diverging ones in execution order."
    if len(rows) > len(shown):
        said += f" The first {len(shown)} of {len(rows)}; all are in the table of values."
    return [html.section("Operators to look at", said, joined(shown), anchor="flagged")]


def _opened(comparison: Comparison, row: Row, *, is_open: bool) -> Markup:
    label = html.label("faulty", "bad") if is_faulty(row) else html.label(
        row.status, tone_of_status(row.status)
    )  # fmt: skip
    summary = joined([label, " ", element("code", row.name)])
    return html.disclosure(summary, details(comparison, row), is_open=is_open)
