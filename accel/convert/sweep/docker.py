"""ACC123 to ACC125 in files that build container images."""

from __future__ import annotations

import re
from collections.abc import Iterator

from accel.convert.finding import Finding, Span
from accel.convert.sweep import shell
from accel.convert.sweep.text import Text
from accel.convert.sweep.words import about_image, about_variable, about_word
from accel.convert.tables.environment import variable

_INSTRUCTION = re.compile(r"\s*([A-Za-z]+)\s+")
_OTHERS = ("ADD", "COPY", "EXPOSE", "LABEL", "ONBUILD", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR")
_ENV = re.compile(r"([A-Za-z_]\w*)(?:=|\s+)(\S*)")
_IMAGE = re.compile(r"cuda|nvidia|nvcr", re.IGNORECASE)


def find(text: Text) -> Iterator[Finding]:
    """Every instruction."""
    for span in _instructions(text):
        line = text.get(span)
        if line.lstrip().startswith("#"):
            for hit in text.hits(span):
                yield text.keep(hit.span, "ACC139", "a comment; none is ever changed")
            continue
        match = _INSTRUCTION.match(line)
        name = match[1].upper() if match else ""
        rest = Span(span.start + (match.end() if match else 0), span.end)
        if name == "FROM":
            yield from _from(text, rest)
        elif name in ("ENV", "ARG"):
            yield from _settings(text, rest)
        elif name in ("RUN", "CMD", "ENTRYPOINT", "SHELL", "HEALTHCHECK"):
            yield from shell.find_in(text, rest, converts=False)
        elif name in _OTHERS:
            yield from _words(text, rest)
        else:
            yield from _words(text, span)  # no instruction, so no word of it is skipped


def _instructions(text: Text) -> Iterator[Span]:
    """Lines, with those that a backslash continues."""
    start: int | None = None
    for _, span in text.lines():
        line = text.get(span)
        begin = span.start if start is None else start
        if line.rstrip().endswith("\\") and not line.lstrip().startswith("#"):
            start = begin
        elif start is not None and line.lstrip().startswith("#"):
            continue  # a comment within a continued instruction
        else:
            start = None
            yield Span(begin, span.end)
    if start is not None:
        yield Span(start, len(text.chars))


def _from(text: Text, span: Span) -> Iterator[Finding]:
    for match in re.finditer(r"\S+", text.get(span)):
        at = Span(span.start + match.start(), span.start + match.end())
        if _IMAGE.search(match[0]) and re.search(r"[:/]", match[0]):
            yield about_image(text, at, match[0])
        else:
            yield from about_word(text, at)


def _settings(text: Text, span: Span) -> Iterator[Finding]:
    match = _ENV.match(text.get(span))
    known = variable(match[1]) if match else None
    if match and known and re.fullmatch(r"\w+\s+.*", text.get(span), re.DOTALL):
        yield about_variable(text, span, known, match[2])
        return
    yield from _words(text, span)


def _words(text: Text, span: Span) -> Iterator[Finding]:
    for match in re.finditer(r"\S+", text.get(span)):
        at = Span(span.start + match.start(), span.start + match.end())
        yield from about_word(text, at)
