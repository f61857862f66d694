"""Positions of what is inside f-strings, the same on every Python.

Before 3.12 the parser places the expressions of an f-string by guess, and wrongly where the literal
has several lines or pieces. Here the literal is scanned again and each expression is given the
place where it stands.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator

from accel.convert.source import Source

_PIECE = re.compile(rb"""([A-Za-z]*)('''|\"""|'|")""")
_BETWEEN = re.compile(rb"(?:\s|\\\r?\n|#[^\r\n]*)*")
NEEDED = sys.version_info < (3, 12)


def fix_positions(source: Source, joined: ast.JoinedStr) -> None:
    """Give every node within an f-string its true place, those within inner f-strings excepted.

    Outer f-strings must be done before the ones within them.

    Raises:
        ValueError: The scan and the parser disagree about the expressions; a bug.
    """
    span = source.span(joined)
    fields = list(_fields(source.utf8, span.start, span.end))
    values = list(_formatted(joined))
    if len(fields) != len(values):
        raise ValueError(
            f"line {joined.lineno}: {len(values)} expressions in an f-string, {len(fields)} found"
        )
    for (start, end), value in zip(fields, values, strict=True):
        _move(source, value.value, start, end)


def forbidden_quotes(source: Source, joined: ast.JoinedStr) -> frozenset[str]:
    """Quotes that an expression of an f-string cannot have before 3.12: those around its pieces.

    Both, where the pieces cannot be told: 3.12 allows the outer quotes within.
    """
    try:
        quotes = set(_quotes(source.utf8, *source.span(joined)))
    except ValueError:
        return frozenset("'\"")
    return frozenset(quote for quote in quotes if len(quote) == 1)  # in three of them one may stand


def _quotes(text: bytes, position: int, end: int) -> Iterator[str]:
    while position < end:
        match = _PIECE.match(text, position)
        if match is None:
            raise ValueError(f"no string literal at byte {position}")
        quote = match.group(2)
        yield quote.decode()
        between = _BETWEEN.match(text, _closing(text, match.end(), quote) + len(quote))
        position = between.end() if between else end


def requoted(text: str, forbidden: frozenset[str]) -> str:
    """A replacement's text with quotes that may stand in an f-string, where there are such."""
    for quote, other in ("\"'", "'\""):
        if quote in forbidden and quote in text and other not in forbidden and other not in text:
            return text.replace(quote, other)
    return text


def _formatted(joined: ast.JoinedStr) -> Iterator[ast.FormattedValue]:
    """The expressions in the order of the text, those of format specifications included."""
    for part in joined.values:
        if isinstance(part, ast.FormattedValue):
            yield part
            if isinstance(part.format_spec, ast.JoinedStr):
                yield from _formatted(part.format_spec)


def _move(source: Source, node: ast.expr, start: int, end: int) -> None:
    text = source.utf8[start:end]
    wrapped = b"(" + text + b"\n)"
    again = ast.parse(wrapped, mode="eval").body
    lines = [0, *(match.end() for match in re.finditer(rb"\r\n|\r|\n", wrapped))]
    for old, new in zip(_outside(node), _outside(again), strict=True):
        if type(old) is not type(new):
            raise ValueError(f"line {node.lineno}: an f-string's expression reads differently")
        if not hasattr(new, "lineno"):
            continue
        for line, column in (("lineno", "col_offset"), ("end_lineno", "end_col_offset")):
            at = start - 1 + lines[getattr(new, line) - 1] + getattr(new, column)
            at = min(max(at, start), end)  # a tuple takes the parentheses for its own
            number = source.line_of(at)
            setattr(old, line, number)
            setattr(old, column, at - source.starts[number - 1])


def _outside(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that are not within another f-string: its turn comes, from its own place."""
    yield node
    if not isinstance(node, ast.JoinedStr):
        for child in ast.iter_child_nodes(node):
            yield from _outside(child)


def _fields(text: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The bytes of each replacement field's expression in a run of string literals."""
    position = start
    while position < end:
        match = _PIECE.match(text, position)
        if match is None:
            raise ValueError(f"no string literal at byte {position}")
        prefix, quote = match.group(1).lower(), match.group(2)
        body = match.end()
        close = _closing(text, body, quote)
        if b"f" in prefix:
            yield from _body_fields(text, body, close, b"r" in prefix)
        between = _BETWEEN.match(text, close + len(quote))
        position = between.end() if between else end


def _closing(text: bytes, position: int, quote: bytes) -> int:
    while not text.startswith(quote, position):
        position += 2 if text[position : position + 1] == b"\\" else 1
        if position >= len(text):
            raise ValueError("a string literal does not end")
    return position


def _body_fields(text: bytes, position: int, end: int, raw: bool) -> Iterator[tuple[int, int]]:
    while position < end:
        two = text[position : position + 2]
        if two in (b"{{", b"}}"):
            position += 2
        elif two == b"\\N" and not raw and text[position + 2 : position + 3] == b"{":
            position = text.index(b"}", position) + 1  # a character by name
        elif two[:1] == b"{":
            stop, nested, position = _field(text, position + 1, end)
            yield stop
            yield from nested
        else:
            position += 1


def _field(text: bytes, start: int, end: int) -> tuple[tuple[int, int], list[tuple[int, int]], int]:
    """One field from behind its brace: its expression, the fields of its format, what follows."""
    position = _expression_end(text, start, end)
    expression = (start, position)
    if text[position : position + 1] == b"=":
        position += 1
        while text[position : position + 1].isspace():
            position += 1
    if text[position : position + 1] == b"!":
        position += 2
        while text[position : position + 1].isspace():
            position += 1
    nested: list[tuple[int, int]] = []
    if text[position : position + 1] == b":":
        position += 1
        while text[position : position + 1] != b"}":
            if position >= end:
                raise ValueError("a replacement field does not end")
            if text[position : position + 1] == b"{":
                inner, deeper, position = _field(text, position + 1, end)
                nested += [inner, *deeper]
            else:
                position += 1
    return expression, nested, position + 1


def _expression_end(text: bytes, position: int, end: int) -> int:
    depth = 0
    while position < end:
        byte = text[position : position + 1]
        if byte in b"'\"":
            quote = byte * 3 if text.startswith(byte * 3, position) else byte
            position = _closing(text, position + len(quote), quote) + len(quote)
            continue
        if byte in b"([{":
            depth += 1
        elif byte in b")]" or (byte == b"}" and depth):
            depth -= 1
        elif not depth and _ends(text, position, byte):
            return position
        position += 1
    raise ValueError("a replacement field does not end")


def _ends(text: bytes, position: int, byte: bytes) -> bool:
    """Whether a byte outside all brackets ends the expression: `}`, `:`, `!r` or the `=` behind."""
    if byte == b"!":
        return text[position + 1 : position + 2] != b"="
    return byte in b"}:" or (byte == b"=" and _is_debug(text, position))


def _is_debug(text: bytes, position: int) -> bool:
    """Whether an equals sign is the one of `{value=}` and no comparison."""
    if text[position + 1 : position + 2] == b"=" or text[position - 1 : position] in b"=!<>":
        return False
    return text[position + 1 :].lstrip()[:1] in (b"}", b"!", b":")
