"""A table of many rows that sorts, filters, shows itself in parts, and opens each row.

The rows travel as JSON inside the page, so that thousands of them cost no elements until they are
looked at. Where scripts do not run, the first rows are an ordinary table.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from accel.report.html import Tone
from accel.report.html import label as coloured
from accel.report.markup import Markup, breakable, element, escaped, joined, number, void

SCRIPT = Path(__file__).with_name("explorer.js").read_text(encoding="utf-8")
STYLE = """
.explorer form{display:flex;flex-wrap:wrap;gap:8px 14px;align-items:center;margin:8px 0;
font-size:.88rem}
.explorer label{color:var(--muted)}.explorer input{min-width:0;width:220px;max-width:100%}
.explorer:not(.live) form,.explorer:not(.live) .more{display:none}
.explorer .shown{color:var(--muted);font-size:.86rem;margin:4px 0}
.explorer thead button{all:unset;cursor:pointer;font-weight:600}
.explorer thead button:focus-visible{outline:2px solid var(--s0)}
.explorer th[aria-sort=ascending] button::after{content:" \\2191"}
.explorer th[aria-sort=descending] button::after{content:" \\2193"}
.explorer>.scroll{container-type:inline-size}
.explorer>.scroll>table>tbody>tr>th{min-width:260px;overflow-wrap:anywhere}
.explorer td.code{min-width:110px;overflow-wrap:anywhere}
.explorer button.open{all:unset;cursor:pointer;color:var(--s0)}
.explorer button.open:focus-visible{outline:2px solid var(--s0)}
.explorer button.open::before{content:"\\25b8\\00a0";color:var(--muted)}
.explorer button.open[aria-expanded=true]::before{content:"\\25be\\00a0"}
.explorer tr.detail>td{background:var(--panel);padding:6px 16px 14px}
.explorer tr.detail>td>div{position:sticky;left:16px;width:calc(100cqw - 34px)}
.explorer tr:target>th{box-shadow:inset 4px 0 var(--s0)}
.explorer .more{margin:10px 0}
@media print{.explorer form,.explorer .more{display:none}}
"""


class Labelled(NamedTuple):
    """A cell with a coloured label."""

    text: str
    tone: Tone


Cell = str | int | float | None | Labelled


class Column(NamedTuple):
    """One column.

    Attributes:
        title: Its heading.
        kind: How its cells are shown and sorted.
        hint: What it means, shown where the pointer rests on the heading.
        has_choices: Whether the reader can choose one of its values to see only those rows.
        hidden: Whether it is only there to be searched and chosen by.
    """

    title: str
    kind: Literal["text", "code", "number", "label"] = "text"
    hint: str = ""
    has_choices: bool = False
    hidden: bool = False


def explorer(
    columns: Sequence[Column],
    rows: Sequence[Sequence[Cell]],
    *,
    name: str,
    caption: str,
    details: Sequence[Markup | None] = (),
    marked: Collection[int] = (),
    first: int = 100,
) -> Markup:
    """The table; the page needs `SCRIPT` and `STYLE`.

    Args:
        columns: The first one names the rows and must not be hidden.
        rows: A cell per column each.
        name: Its id in the page; row 7 is linked to as `#name-7`.
        caption: What it shows.
        details: What opens under each row; empty for nothing.
        marked: Rows to point out.
        first: How many rows are shown at first, and without scripts.

    Raises:
        ValueError: A row does not fit the columns, or the details not the rows.
    """
    wrong = next((row for row in rows if len(row) != len(columns)), None)
    if wrong is not None or (details and len(details) != len(rows)):
        raise ValueError(
            f"{len(columns)} columns and {len(rows)} rows need as many cells and details, got "
            f"{len(wrong) if wrong is not None else len(details)}"
        )
    data = {
        "columns": [{"kind": one.kind, "hidden": one.hidden} for one in columns],
        "rows": [[_plain(cell) for cell in row] for row in rows],
        "details": list(details) or [None] * len(rows),
        "marked": sorted(marked),
        "first": first,
    }
    said = f"The first {min(first, len(rows))} of {len(rows)}; with scripts it sorts and filters."
    return element(
        "div", _filters(columns, rows, caption),
        element("p", said, class_="shown", role="status"),
        _static(columns, rows[:first], caption, marked),
        element("button", "Show more", type="button", class_="more"),
        element("script", _embedded(data), type="application/json"),
        class_="explorer", id=name,
    )  # fmt: skip


def _plain(cell: Cell) -> object:
    if isinstance(cell, Labelled):
        return {"sort": _text(cell.text), "tone": cell.tone}
    if isinstance(cell, float):
        return float(f"{cell:.6g}") if math.isfinite(cell) else str(cell)
    return _text(cell) if isinstance(cell, str) else cell


def _text(cell: str) -> str:
    """The text without characters that no page can carry; the script puts it in as text."""
    return cell if cell.isascii() and cell.isprintable() else html.unescape(escaped(cell))


def _embedded(data: object) -> Markup:
    """JSON that holds nothing an HTML parser could take for the end of the script."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("</", "<\\/").replace("<!", "<\\u0021"))


def _filters(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], caption: str) -> Markup:
    search = element(
        "label", "Filter ",
        void("input", type="search", placeholder="words, all must be there", autocomplete="off"),
    )  # fmt: skip
    chosen = (_choice(i, one, rows) for i, one in enumerate(columns) if one.has_choices)
    clear = element("button", "Clear", type="reset")
    return element("form", search, *chosen, clear, role="search", aria_label=caption)


def _choice(column: int, one: Column, rows: Sequence[Sequence[Cell]]) -> Markup:
    values = sorted({_sorted_by(row[column]) for row in rows} - {""})
    options = [element("option", "any", value="")]
    options += [element("option", value, value=value) for value in values]
    return element(
        "label",
        f"{one.title} ",
        element("select", *options, data_column=column, autocomplete="off"),
    )


def _sorted_by(cell: Cell) -> str:
    if cell is None:
        return ""
    return cell.text if isinstance(cell, Labelled) else str(cell)


def _static(
    columns: Sequence[Column], rows: Sequence[Sequence[Cell]], caption: str, marked: Collection[int]
) -> Markup:
    """The table without a script, whose rows the script replaces."""
    visible = [i for i, one in enumerate(columns) if not one.hidden]
    head = element("tr", *(_heading(columns[i]) for i in visible))
    body = (
        element(
            "tr", *(_cell(row[i], columns[i], is_name=i == 0) for i in visible),
            class_="bad" if position in marked else None,
        )
        for position, row in enumerate(rows)
    )  # fmt: skip
    inner = element("caption", caption) + element("thead", head) + element("tbody", joined(body))
    return element("div", element("table", Markup(inner)), class_="scroll")


def _heading(column: Column) -> Markup:
    button = element("button", column.title, type="button", title=column.hint or None)
    kind = "number" if column.kind == "number" else None
    return element("th", button, scope="col", class_=kind)


def _cell(cell: Cell, column: Column, *, is_name: bool) -> Markup:
    shown = coloured(*cell) if isinstance(cell, Labelled) else number(cell)
    shown = breakable(shown) if column.kind == "code" else shown
    if is_name:
        return element("th", shown, scope="row", class_=column.kind)
    return element("td", shown, class_=column.kind)
