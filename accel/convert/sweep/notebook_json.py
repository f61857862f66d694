"""The source strings of a notebook with their places in the file, and how to write changed ones."""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

_DECODER = json.JSONDecoder()
_BLANK = re.compile(r"[ \t\r\n]*")
_AFTER = " \t\r\n,]}"
# Two escapes that make one character.
_PAIR = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")


class Literal(NamedTuple):
    """A JSON string: its value, and where it is, quotes included; in characters."""

    value: str
    start: int
    end: int


@dataclass
class Cell:
    """One cell.

    Attributes:
        kind: `code`, `markdown`, …
        sources: The strings of its source; one, or one for each line.
        is_list: Whether they are in a list.
    """

    kind: str = ""
    sources: list[Literal] = field(default_factory=list)
    is_list: bool = False

    @property
    def text(self) -> str:
        """The whole source."""
        return "".join(one.value for one in self.sources)


def cells_of(chars: str) -> tuple[list[Cell], str]:
    """Read a notebook's cells, and the language of its kernel ("" if it names none).

    Raises:
        ValueError: It is no notebook of format 4.
    """
    content = json.loads(chars)  # its message says where the text breaks off
    if not isinstance(content, dict) or not isinstance(content.get("cells"), list):
        raise ValueError("it has no list of cells: convert it to notebook format 4 first")
    reader = _Reader(chars)
    reader.value(())
    return reader.cells, _language(content.get("metadata"))


def _language(metadata: Any) -> str:
    if not isinstance(metadata, dict):
        return ""
    for key, name in (("kernelspec", "language"), ("language_info", "name")):
        part = metadata.get(key)
        if isinstance(part, dict) and isinstance(part.get(name), str):
            return str(part[name]).lower()
    return ""


class _Reader:
    """A JSON reader that remembers where the sources are; the text is known to be right."""

    def __init__(self, chars: str) -> None:
        self.chars = chars
        self.at = 0
        self.cells: list[Cell] = []

    def value(self, path: tuple[str, ...]) -> None:
        """Read one value; `path` is where it is, `*` for any index."""
        self._skip()
        char = self.chars[self.at]
        if char == "{":
            if path == ("cells", "*"):
                self.cells.append(Cell())
            self._object(path)
        elif char == "[":
            self._array(path)
        elif char == '"':
            start = self.at
            text, self.at = _DECODER.raw_decode(self.chars, start)
            self._string(path, Literal(text, start, self.at))
        else:
            while self.at < len(self.chars) and self.chars[self.at] not in _AFTER:
                self.at += 1

    def _object(self, path: tuple[str, ...]) -> None:
        self.at += 1
        self._skip()
        while self.chars[self.at] != "}":
            key, self.at = _DECODER.raw_decode(self.chars, self.at)
            self._skip()
            self.at += 1  # the colon
            self.value((*path, key))
            self._next()
        self.at += 1

    def _array(self, path: tuple[str, ...]) -> None:
        self.at += 1
        self._skip()
        while self.chars[self.at] != "]":
            self.value((*path, "*"))
            self._next()
        self.at += 1

    def _next(self) -> None:
        self._skip()
        if self.chars[self.at] == ",":
            self.at += 1
            self._skip()

    def _skip(self) -> None:
        match = _BLANK.match(self.chars, self.at)
        self.at = match.end() if match else self.at

    def _string(self, path: tuple[str, ...], literal: Literal) -> None:
        if path == ("cells", "*", "cell_type"):
            self.cells[-1].kind = literal.value
        elif path in (("cells", "*", "source"), ("cells", "*", "source", "*")):
            self.cells[-1].sources.append(literal)
            self.cells[-1].is_list = path[-1] == "*"


def offsets(chars: str, literal: Literal) -> list[int]:
    """Where each character of a string begins in the file, and where the last one ends."""
    found = []
    at, end = literal.start + 1, literal.end - 1
    while at < end:
        found.append(at)
        if chars[at] != "\\":
            at += 1
            continue
        is_pair = _PAIR.match(chars, at) is not None
        at += 12 if is_pair else 6 if chars[at + 1] == "u" else 2
    return [*found, end]


def rewritten(chars: str, cell: Cell, text: str) -> list[tuple[int, int, str]]:
    """The changes of the file that give a cell another source: start, end and new characters."""
    old = [one.value for one in cell.sources]
    if not cell.is_list:
        return [_inner(chars, cell.sources[0], text)]
    if old != cell.text.splitlines(keepends=True):
        whole = _separator(chars, cell).join(map(_quoted(chars), text.splitlines(keepends=True)))
        return [(cell.sources[0].start, cell.sources[-1].end, whole)]
    changes = []
    new = text.splitlines(keepends=True)
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        if tag != "equal":
            changes += _block(chars, cell, (i1, i2), new[j1:j2])
    return changes


def _block(
    chars: str, cell: Cell, lines: tuple[int, int], new: list[str]
) -> list[tuple[int, int, str]]:
    """Replace some lines by others, not always as many."""
    first, last = lines
    sources, quoted, between = cell.sources, _quoted(chars), _separator(chars, cell)
    skipped = _alignment([one.value for one in sources[first:last]], new)
    before, rest = new[:skipped], new[skipped:]
    both = min(last - first, len(rest))
    changes = [_inner(chars, sources[first + k], rest[k]) for k in range(both)]
    # Whole lines go in front of a string that stays, or behind one.
    if before:
        at = sources[first].start
        changes.append((at, at, "".join(quoted(line) + between for line in before)))
    if rest[both:] and first + both == 0:
        at = sources[0].start
        changes.append((at, at, "".join(quoted(line) + between for line in rest[both:])))
    elif rest[both:]:
        at = sources[first + both - 1].end
        changes.append((at, at, "".join(between + quoted(line) for line in rest[both:])))
    elif first + both < last and first + both == 0:
        changes.append((sources[0].start, sources[last].start, ""))
    elif first + both < last:
        changes.append((sources[first + both - 1].end, sources[last - 1].end, ""))
    return changes


def _alignment(old: list[str], new: list[str]) -> int:
    """How many new lines come before those that the old ones became."""
    spare = len(new) - len(old) if old else 0
    return max(
        range(max(spare, 0) + 1),
        key=lambda skip: sum(map(_alike, old, new[skip:])),
    )


def _alike(old: str, new: str) -> int:
    """How many characters two lines begin and end with alike."""
    return _common(old, new) + _common(old[::-1], new[::-1])


def _common(one: str, other: str) -> int:
    """The length of what two texts begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((k for k, (a, b) in pairs if a != b), min(len(one), len(other)))


def _inner(chars: str, literal: Literal, new: str) -> tuple[int, int, str]:
    """Change the part of a string that differs; the escapes of the rest stay as they are."""
    old, places = literal.value, offsets(chars, literal)
    head = _common(old, new)
    tail = _common(old[head:][::-1], new[head:][::-1])
    middle = _quoted(chars)(new[head : len(new) - tail])[1:-1]
    return places[head], places[len(old) - tail], middle


def _separator(chars: str, cell: Cell) -> str:
    """What stands between two lines of a source: the comma and the blanks."""
    if len(cell.sources) > 1:
        return chars[cell.sources[0].end : cell.sources[1].start]
    start = cell.sources[0].start
    blank = chars[:start][len(chars[:start].rstrip()) :]
    # Of a list on one line, the style of the file's other commas is told by its colons.
    return "," + (blank or (" " if '": ' in chars else ""))


def _quoted(chars: str) -> Callable[[str], str]:
    """How this file writes strings."""
    return functools.partial(json.dumps, ensure_ascii=chars.isascii())
