"""The table of every value, and that of the modules."""

from __future__ import annotations

from collections.abc import Sequence

from accel.numerics.comparing.comparison import Comparison, ModuleRow, Row
from accel.numerics.comparing.presentation import by_urgency
from accel.numerics.pages.drill import details
from accel.numerics.pages.words import MOST_ROWS, VALUES, is_faulty, tone_of_status, worse
from accel.report import Markup, html
from accel.report.explorer import Cell, Column, Labelled, explorer

_MOST_RICH = 500  # rows with a histogram of their own


def values(comparison: Comparison) -> Markup:
    """Every value, sortable and filterable, each with its drill-down."""
    rows = comparison.rows[:MOST_ROWS]
    rich = {row.order for row in by_urgency(comparison.rows)[:_MOST_RICH]}
    columns = _columns(comparison)
    table = explorer(
        columns,
        [_cells(row)[: len(columns)] for row in rows],
        name=VALUES,
        caption="Every aligned value",
        details=[details(comparison, row, is_rich=row.order in rich) for row in rows],
        marked=[i for i, row in enumerate(rows) if is_faulty(row) or row.status == "diverges"],
    )
    said = (
        "In execution order. Distances are relative L2; R, M and misrounded are of the less "
        "accurate run. A heading sorts, a name opens its details."
    )
    return html.section("Every value", said, *_limits(comparison), table, anchor="values")


def _limits(comparison: Comparison) -> list[str]:
    count, said = len(comparison.rows), []
    if count > MOST_ROWS:
        said.append(f"The first {MOST_ROWS} of {count} values; the JSON has all.")
    if count > _MOST_RICH:
        said.append(
            f"The {_MOST_RICH} most urgent of {count} values have histograms and worst elements "
            "here; the JSON has all."
        )
    return said


_SHORT = (
    Column("Value", "code", "phase:module/operator#count"),
    Column("#", "number", "place in execution order"),
    Column("Status", "label", has_choices=True),
    Column("Phase", "text", has_choices=True, hidden=True),
    Column("Module", "code"),
    Column("Dtype", "text"),
    Column("Distance", "number", "relative L2 distance of candidate and reference"),
    Column("Of inputs", "number", "the largest such distance among its inputs"),
)
_REPLAYED = (
    Column("R", "number", "rms error over the yardstick, of the less accurate run"),
    Column("M", "number", "largest error over the yardstick, of the less accurate run"),
    Column("Misrounded", "number", "share of elements that are not the float64 result rounded"),
    Column("Loss", "number", "what it adds to the loss difference"),
)


def _columns(comparison: Comparison) -> Sequence[Column]:
    replayed = any(worse(row) is not None for row in comparison.rows)
    return (*_SHORT, *_REPLAYED) if replayed else _SHORT


def _cells(row: Row) -> list[Cell]:
    left, right = row.dtypes
    found = worse(row)
    status = Labelled("faulty", "bad") if is_faulty(row) else Labelled(
        row.status, tone_of_status(row.status)
    )  # fmt: skip
    return [
        row.name,
        row.order,
        status,
        row.phase,
        row.module,
        left if left == right else f"{left} / {right}",
        row.distance,
        row.input_distance,
        None if found is None else found.rms,
        None if found is None else found.worst,
        None if found is None else found.misrounding,
        row.contribution,
    ]


def modules(comparison: Comparison) -> list[Markup]:
    """The modules, in execution order."""
    if not comparison.modules:
        return []
    headers = (
        "module", "class", "status", "operators", "unmatched", "faulty", "forward", "backward",
    )  # fmt: skip
    rows = [_module(one) for one in comparison.modules]
    table = html.table(headers, rows, sortable=True, row_headings=True, caption="Modules")
    said = "Forward and backward are the largest distances of the runs in it (relative L2)."
    return [html.section("Modules", said, table, anchor="modules")]


def _module(one: ModuleRow) -> tuple[object, ...]:
    status = html.label(one.status, tone_of_status(one.status))
    counts = one.operators, one.unmatched, one.faulty
    name = one.module or "(the model itself)"
    return name, one.module_class, status, *counts, one.forward, one.backward
