"""Tables for a terminal or a log: plain text, aligned, no colour."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

from accel.report.markup import number


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """An aligned table.

    Args:
        headers: One name per column.
        rows: One value per column; floats are shown with three digits, None as a dash.

    Returns:
        Lines without trailing blanks, joined by newlines; no newline at the end. Columns that hold
        only numbers (and dashes) are right-aligned.

    Raises:
        ValueError: A row has more or fewer values than there are headers.
    """
    kept = [list(row) for row in rows]
    for row in kept:
        if len(row) != len(headers):
            raise ValueError(f"a row of {len(row)} values under {len(headers)} headers: {row}")
    cells = [[_one_line(number(value)) for value in row] for row in kept]
    columns = range(len(headers))
    widths = [max(map(_width, [headers[i], *(row[i] for row in cells)])) for i in columns]
    right = [_is_numeric(row[i] for row in kept) for i in columns]
    lines = [list(headers), ["-" * width for width in widths], *cells]
    return "\n".join(_line(line, widths, right) for line in lines)


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    padded = []
    for cell, width, to_right in zip(cells, widths, right, strict=True):
        blank = " " * (width - _width(cell))
        padded.append(blank + cell if to_right else cell + blank)
    return "  ".join(padded).rstrip()


def _is_numeric(values: Iterable[object]) -> bool:
    kept = [value for value in values if value is not None]
    return bool(kept) and all(
        isinstance(value, (int, float)) and not isinstance(value, bool) for value in kept
    )


def _one_line(text: str) -> str:
    # A cell comes from data: a newline or an escape sequence in it must not reach the terminal.
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
