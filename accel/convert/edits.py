"""Edits of a file: replacements that may hold pieces of the original, with the edits in them."""

from __future__ import annotations

from collections.abc import Iterable

from accel.convert.finding import Edit, Span


class ConflictError(ValueError):
    """Two edits overlap, neither within a piece that the other keeps."""


def arrange(edits: Iterable[Edit]) -> list[Edit]:
    """Edits in order of place, outer before inner; of two on one span, the first that came.

    Raises:
        ConflictError: Two spans overlap without one holding the other.
    """
    unique: dict[Span, Edit] = {}
    for edit in edits:
        unique.setdefault(edit.span, edit)
    ordered = sorted(unique.values(), key=_order)
    open_spans: list[Span] = []
    for edit in ordered:
        while open_spans and open_spans[-1].end <= edit.span.start:
            open_spans.pop()
        if open_spans and not open_spans[-1].contains(edit.span):
            raise ConflictError(f"edits overlap at bytes {open_spans[-1]} and {edit.span}")
        open_spans.append(edit.span)
    return ordered


def _order(edit: Edit) -> tuple[int, bool, int]:
    """By place; what is inserted at a place comes before what is replaced there."""
    return edit.span.start, edit.span.start < edit.span.end, -edit.span.end


def _is_within(outer: Span, inner: Span) -> bool:
    """Whether an edit is inside another; insertions at its ends are beside it."""
    if inner.start == inner.end:
        return outer.start < inner.start < outer.end
    return outer.contains(inner)


def apply(utf8: bytes, edits: Iterable[Edit]) -> tuple[bytes, set[Span]]:
    """Apply edits.

    Args:
        utf8: The original.
        edits: Any number, in any order.

    Returns:
        The new text, and the spans of the edits that are in it. An edit within another one, but not
        within a piece that it keeps, is not: what it would change is gone.

    Raises:
        ConflictError: Two edits overlap.
    """
    ordered = arrange(edits)
    applied: set[Span] = set()
    return _render(utf8, Span(0, len(utf8)), ordered, applied), applied


def _render(utf8: bytes, span: Span, edits: list[Edit], applied: set[Span]) -> bytes:
    """The text of a span with the edits (all within it, in order) done."""
    out: list[bytes] = []
    position, index = span.start, 0
    while index < len(edits):
        edit = edits[index]
        index += 1
        inner: list[Edit] = []
        while index < len(edits) and _is_within(edit.span, edits[index].span):
            inner.append(edits[index])
            index += 1
        out.append(utf8[position : edit.span.start])
        applied.add(edit.span)
        new = _replacement(utf8, edit, inner, applied)
        out.append(_apart(utf8, edit.span, new))
        position = edit.span.end
    out.append(utf8[position : span.end])
    return b"".join(out)


def _replacement(utf8: bytes, edit: Edit, inner: list[Edit], applied: set[Span]) -> bytes:
    pieces: list[bytes] = []
    for part in edit.parts:
        if isinstance(part, str):
            pieces.append(part.encode("utf-8"))
        else:
            within = [other for other in inner if part.contains(other.span)]
            pieces.append(_render(utf8, part, within, applied))
    return b"".join(pieces)


def _apart(utf8: bytes, span: Span, new: bytes) -> bytes:
    """A replacement with the spaces that it needs: what takes the string's place in `in'cuda'`."""
    old = utf8[span.start : span.end]
    before, after = utf8[: span.start][-1:], utf8[span.end :][:1]
    left = old and _join(before, new[:1]) and not _join(before, old[:1])
    right = old and _join(new[-1:], after) and not _join(old[-1:], after)
    return (b" " if left else b"") + new + (b" " if right else b"")


def _join(left: bytes, right: bytes) -> bool:
    """Whether two bytes side by side are of one word."""
    return _is_of_a_word(left) and _is_of_a_word(right)


def _is_of_a_word(byte: bytes) -> bool:
    return byte.isalnum() or byte == b"_" or byte > b"\x7f"
