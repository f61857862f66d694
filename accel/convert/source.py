"""A Python file as bytes, with the line table that positions need.

Everything inside the converter counts in bytes of UTF-8, which is what `ast` columns are. A file in
another encoding is decoded, worked on as UTF-8, and written back in its own.
"""

from __future__ import annotations

import ast
import codecs
import io
import re
import tokenize
from bisect import bisect_right

from accel.convert.finding import Span

_NEWLINE = re.compile(rb"\r\n|\r|\n")


class Source:
    """One file's text.

    Attributes:
        utf8: The text in UTF-8, without a byte-order mark, newlines as they are.
        encoding: What the file is in.
        bom: The byte-order mark, or nothing.
    """

    def __init__(self, data: bytes) -> None:
        """Decode a file as Python does: byte-order mark, coding line, UTF-8.

        Raises:
            SyntaxError: The coding line names no encoding that Python has.
            UnicodeDecodeError: The bytes are not in the encoding.
        """
        self.bom = codecs.BOM_UTF8 if data.startswith(codecs.BOM_UTF8) else b""
        body = data[len(self.bom) :]
        self.encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        if self.encoding in ("utf-8", "utf-8-sig"):
            body.decode("utf-8")
            self.utf8 = body
        else:
            self.utf8 = body.decode(self.encoding).encode("utf-8")
        self.starts = [0, *(match.end() for match in _NEWLINE.finditer(self.utf8))]

    def encode(self, utf8: bytes) -> bytes:
        """A text as the file's bytes."""
        if self.encoding in ("utf-8", "utf-8-sig"):
            return self.bom + utf8
        return self.bom + utf8.decode("utf-8").encode(self.encoding)

    @property
    def newline(self) -> str:
        """The file's own line end: that of its first line."""
        match = _NEWLINE.search(self.utf8)
        return match.group().decode() if match else "\n"

    def offset(self, line: int, column: int) -> int:
        """The byte at a line from 1 and a column of bytes from 0."""
        return self.starts[line - 1] + column

    def span(self, node: ast.AST) -> Span:
        """The bytes of a node that has a position."""
        return Span(
            self.starts[node.lineno - 1] + node.col_offset,  # type: ignore[attr-defined]
            self.starts[node.end_lineno - 1] + node.end_col_offset,  # type: ignore[attr-defined]
        )

    def text(self, span: Span) -> str:
        """The text of a span."""
        return self.utf8[span.start : span.end].decode("utf-8")

    def line_of(self, offset: int) -> int:
        """The line, from 1, that a byte is in."""
        return bisect_right(self.starts, offset)

    def column_of(self, offset: int) -> int:
        """The column, in characters from 1, of a byte."""
        start = self.starts[self.line_of(offset) - 1]
        return len(self.utf8[start:offset].decode("utf-8", "replace")) + 1

    def line_text(self, line: int) -> str:
        """A line without its end, from 1."""
        end = self.starts[line] if line < len(self.starts) else len(self.utf8)
        return self.utf8[self.starts[line - 1] : end].decode("utf-8", "replace").strip("\r\n")
