"""In which line of a TOML or JSON file each key stands; the parsers do not tell."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

Place = tuple[str | int, ...]

_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:,]|[^\s{}\[\]:,"]+')
_TOML_TABLE = re.compile(r"\s*(\[\[?)\s*([\w-]+)\s*\]\]?\s*(?:#.*)?")
_TOML_KEY = re.compile(r"\s*(?:([\w-]+)|\"([^\"]*)\"|'([^']*)')\s*=")


def json_lines(text: str) -> Iterator[tuple[Place, int]]:
    """Every key of a valid JSON text with its line, and every object in a list with its first one.

    `("rules", 2, "format")` is the key `format` in the third object of the list `rules`. A key that
    is given twice comes twice.
    """
    stack: list[str | int] = []
    before = ""
    for token in _JSON_TOKEN.finditer(text):
        word = token[0]
        line = text.count("\n", 0, token.start()) + 1
        if word == "{":
            if stack and isinstance(stack[-1], int):
                yield tuple(stack), line
            stack.append("")
        elif word == "[":
            stack.append(0)
        elif word in "}]":
            stack.pop()
        elif word == "," and isinstance(stack[-1], int):
            stack[-1] += 1
        elif word == ":":
            stack[-1] = json.loads(before)
            yield tuple(stack), line
        before = word


def toml_lines(text: str) -> Iterator[tuple[Place, int]]:
    """The keys of a valid TOML text that stand at the beginning of a line, with their lines."""
    table: Place = ()
    counts: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        header = _TOML_TABLE.fullmatch(line)
        if header is not None:
            table = (header[2],)
            if header[1] == "[[":
                counts[header[2]] = counts.get(header[2], -1) + 1
                table = (header[2], counts[header[2]])
            yield table, number
            continue
        key = _TOML_KEY.match(line)
        if key is not None:
            yield (*table, next(word for word in key.groups() if word is not None)), number
