"""Shell scripts split into commands and words, with the place of each: as much as a sweep needs.

Quotes, comments, here-documents and expansions are understood so far that no word is taken for
something that it is not; what is within an expansion stays a part of its word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from accel.convert.finding import Span

_BLANK = " \t"
_ENDS = ";&|()\r\n"
_HEREDOC = re.compile(r"<<(-?)[ \t]*(?:'([^'\n]*)'|\"([^\"\n]*)\"|([^\s;&|<>()]+))")
# Words after which another command begins.
_OPENERS = frozenset({"if", "then", "else", "elif", "while", "until", "do", "{", "!", "time"})


class Word(NamedTuple):
    """One word of a command, quotes included."""

    text: str
    span: Span


class Command(NamedTuple):
    """One simple command."""

    words: tuple[Word, ...]


class Rest(NamedTuple):
    """A stretch that is no command: `comment` or `document` (the body of a here-document)."""

    kind: str
    span: Span


class UnclearError(ValueError):
    """A quote or a parenthesis that is never closed."""


def split(chars: str, span: Span) -> Iterator[Command | Rest]:
    """Split a stretch of a script.

    Raises:
        UnclearError: It does not read as a script.
    """
    return _Reader(chars, span).read()


class _Reader:
    def __init__(self, chars: str, span: Span) -> None:
        self.chars = chars
        self.at = span.start
        self.end = span.end
        self.words: list[Word] = []
        self.documents: list[tuple[str, bool]] = []  # delimiters that the next lines must close

    def read(self) -> Iterator[Command | Rest]:
        while self.at < self.end:
            char = self.chars[self.at]
            if char in _BLANK:
                self.at += 1
            elif char == "\\" and (length := self._newline(self.at + 1)):
                self.at += 1 + length
            elif char == "#":
                start = self.at
                self.at = self._line_end(start)
                yield Rest("comment", Span(start, self.at))
            elif char in "<>":
                self._redirect()
            elif char in _ENDS:
                yield from self._finish()
                length = self._newline(self.at)
                self.at += length or 1
                if length:
                    yield from self._bodies()
            else:
                yield from self._word()
        yield from self._finish()
        if self.documents:
            raise UnclearError(f"the here-document {self.documents[0][0]} is never closed")

    def _finish(self) -> Iterator[Command]:
        if self.words:
            yield Command(tuple(self.words))
            self.words = []

    def _word(self) -> Iterator[Command]:
        start = self.at
        while self.at < self.end and self.chars[self.at] not in _BLANK + _ENDS + "<>":
            if self.chars[self.at] == "\\" and self._newline(self.at + 1):
                break
            self.at = self._piece(self.at)
        word = Word(self.chars[start : self.at], Span(start, self.at))
        if not self.words and word.text in _OPENERS:
            return
        self.words.append(word)
        if word.text == "{":
            yield from self._finish()

    def _piece(self, at: int) -> int:
        """The end of the character, quote or expansion that begins here."""
        char = self.chars[at]
        if char == "\\":
            return min(at + 2, self.end)
        if char == "'":
            return self._closing("'", at + 1)
        if char == '"':
            return self._quoted(at + 1)
        if char == "`":
            return self._closing("`", at + 1)
        if char == "$" and at + 1 < self.end and self.chars[at + 1] in "({":
            return self._nested(at + 1)
        return at + 1

    def _quoted(self, at: int) -> int:
        while at < self.end and self.chars[at] != '"':
            # A single quote means nothing within double ones.
            at = at + 1 if self.chars[at] == "'" else self._piece(at)
        if at >= self.end:
            raise UnclearError('a " is never closed')
        return at + 1

    def _nested(self, at: int) -> int:
        closing = {"(": ")", "{": "}"}[self.chars[at]]
        opening = self.chars[at]
        at += 1
        while at < self.end and self.chars[at] != closing:
            at = self._nested(at) if self.chars[at] == opening else self._piece(at)
        if at >= self.end:
            raise UnclearError(f"a {opening} is never closed")
        return at + 1

    def _closing(self, char: str, at: int) -> int:
        found = self.chars.find(char, at, self.end)
        if found < 0:
            raise UnclearError(f"a {char} is never closed")
        return found + 1

    def _redirect(self) -> None:
        if self.chars.startswith("<<<", self.at):
            self.at += 3
            return
        match = _HEREDOC.match(self.chars, self.at, self.end)
        if match:
            name = next(group for group in match.groups()[1:] if group is not None)
            self.documents.append((name.replace("\\", ""), bool(match[1])))
            self.at = match.end()
            return
        self.at += 1
        while self.at < self.end and self.chars[self.at] in "<>&|":
            self.at += 1

    def _bodies(self) -> Iterator[Rest]:
        while self.documents:
            name, is_indented = self.documents.pop(0)
            start = self.at
            while True:
                if self.at >= self.end:
                    raise UnclearError(f"the here-document {name} is never closed")
                line_end = self._line_end(self.at)
                line = self.chars[self.at : line_end]
                self.at = line_end + self._newline(line_end)
                if (line.lstrip("\t") if is_indented else line) == name:
                    break
            yield Rest("document", Span(start, self.at))

    def _newline(self, at: int) -> int:
        """How long the line end here is; 0 if there is none."""
        if self.chars.startswith("\r\n", at):
            return 2
        return 1 if at < self.end and self.chars[at] in "\r\n" else 0

    def _line_end(self, at: int) -> int:
        while at < self.end and self.chars[at] not in "\r\n":
            at += 1
        return at
