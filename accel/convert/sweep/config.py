"""ACC120 to ACC127 in YAML, JSON, TOML and INI files, line by line."""

from __future__ import annotations

import re
from collections.abc import Iterator

from accel.convert.finding import Finding, Span
from accel.convert.sweep import requirements, shell
from accel.convert.sweep.shell_words import Command, UnclearError, Word, split
from accel.convert.sweep.text import Text
from accel.convert.sweep.words import (
    about_device,
    about_image,
    about_runtime,
    about_variable,
    about_word,
)
from accel.convert.tables.environment import variable

_PAIR = re.compile(
    r"""\s*(?:-\s+)?(?P<key>"[^"]*"|'[^']*'|[\w./-]+)\s*(?P<sign>[:=])(?:\s+|$|(?=["'\[{\w]))"""
)
_DEVICE = re.compile(r"cuda(?::\d+)?|nccl")
_COMMANDS = re.compile(r"\b(?:pip3?|conda|mamba|apt(?:-get)?|uv)\b.*\b(?:install|add|create)\b")
_QUOTED_DEVICE = re.compile(r"""["'](?:cuda(?::\d+)?|nccl)["']""")
# How commands begin or go on; a value of several words without any of it is prose.
_COMMAND_LIKE = re.compile(
    r"(?:^|\s)(?:-{1,2}[A-Za-z]|python|torchrun|bash|sh\b|make\b|docker|\w+=)"
)
_WORD = re.compile(r"""[^\s"'\[\],{}()]+""")
_LONGEST = 4000  # characters of a line that a person wrote
_QUOTES = "\"', \t[]"


def find(text: Text, *, comment: str | None) -> Iterator[Finding]:
    """Every line.

    Args:
        text: The file.
        comment: What begins a comment; None where there are none.
    """
    for _, span in text.lines():
        if span.end - span.start > _LONGEST:
            yield from _data(text, span)
            continue
        if next(text.hits(span), None) is None and not _COMMANDS.search(text.get(span)):
            continue
        at = _comment(text.get(span), comment)
        if at is not None:
            for hit in text.hits(Span(span.start + at, span.end)):
                yield text.keep(hit.span, "ACC139", "a comment; none is ever changed")
            span = Span(span.start, span.start + at)
        yield from _line(text, span)


def _data(text: Text, span: Span) -> Iterator[Finding]:
    """A long line, as machines write: one finding for all of it."""
    if _QUOTED_DEVICE.search(text.get(span)):
        yield text.flag(
            span, "ACC127", "a long line of data with a device's or a backend's name as a value",
            "Look where it is read.", subject=text.path,
        )  # fmt: skip
    elif next(text.hits(span), None) is not None:
        yield text.keep(span, "ACC139", "a long line of data; none is ever changed")


def _comment(line: str, sign: str | None) -> int | None:
    if sign is None:
        return None
    quote = ""
    for index, char in enumerate(line):
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'" and (index == 0 or not line[index - 1].isalnum()):
            quote = char
        elif char == sign and (index == 0 or line[index - 1].isspace()):
            return index
    return None


def _line(text: Text, span: Span) -> Iterator[Finding]:
    line = text.get(span)
    match = _PAIR.match(line)
    if match is None:
        yield from _value(text, span, "")
        return
    key = match["key"].strip("\"'")
    at = Span(span.start + match.start("key"), span.start + match.end("key"))
    value = Span(span.start + match.end(), span.end)
    known = variable(key)
    if known:
        yield about_variable(text, Span(at.start, span.end), known, text.get(value).strip(_QUOTES))
        return
    if key == "nvidia.com/gpu":
        yield about_runtime(text, at)
    elif next(text.hits(at), None) is not None:
        yield text.keep(at, "ACC139", "a key of the project's own; none is ever renamed")
    yield from _value(text, value, key)


def _value(text: Text, span: Span, key: str) -> Iterator[Finding]:
    value = text.get(span)
    bare = value.strip(_QUOTES + "\r\n").removeprefix("- ").strip(_QUOTES)
    if not bare:
        return
    if _DEVICE.fullmatch(bare):
        yield about_device(text, text.stripped(span), bare, "ACC127")
    elif bare == "nvidia" and key in ("runtime", "driver", "default-runtime"):
        yield about_runtime(text, text.stripped(span))
    elif key == "image" and next(text.hits(span), None):
        yield about_image(text, text.stripped(span), bare)
    elif _COMMANDS.search(value):
        yield from _command(text, span)
    else:
        is_list = value.lstrip().startswith("[")
        is_prose = " " in bare and not is_list and not _COMMAND_LIKE.search(bare)
        for word in _WORD.finditer(value):
            at = Span(span.start + word.start(), span.start + word.end())
            yield from about_word(text, at, is_prose=is_prose)


def _command(text: Text, span: Span) -> Iterator[Finding]:
    """A command in a configuration, such as a step of continuous integration."""
    try:
        pieces = list(split(text.chars, span))
    except UnclearError:
        # A value that is quoted as a whole, or prose: its words are looked at one by one.
        words = re.finditer(r"""[^\s"']+""", text.get(span))
        found = [
            Word(one[0], Span(span.start + one.start(), span.start + one.end())) for one in words
        ]
        yield from requirements.installed(text, found)
        return
    if any(isinstance(piece, Command) for piece in pieces):
        yield from shell.find_in(text, span, converts=False)
