"""The tokens that a file must account for, found without its syntax tree.

This pass shares nothing with the rules, so that what they overlook shows as missing; of packages it
takes the names from the table that the rules read, but finds them by itself. It only has to
know strings and comments from code, which is a fraction of a tokenizer's work, and it reads
f-strings alike on every Python: their text is string, their expressions are code. A test compares
it with `tokenize`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal, NamedTuple

from accel.convert.finding import Span
from accel.convert.options import SourceName
from accel.convert.source import Source
from accel.convert.tables.packages import Within, known_packages

# What NVIDIA's platform is called in programs. `nvtx` and `cutlass` are here in their own right:
# torch and C++ call parts of CUDA so, whether or not the packages of these names are there.
_PLATFORM = (
    "cuda|nccl|cudnn|nvidia|nvtx|nvml|nvcc|cublas|cufft|cusparse|cusolver|curand|cupti|cutlass"
)
_WITHIN: dict[Within, str] = {
    "anywhere": "{}", "begins": "(?<![a-z]){}", "alone": "(?<![a-z]){}(?![a-z])"
}  # fmt: skip
_PACKAGES = [
    _WITHIN[within].format(name) for package in known_packages() for name, within in package.words
]
# Short enough to be parts of other words (`input`, `cannot`): they begin where no letter is before.
_VENDORS = {
    "npu": r"(?<![A-Za-z])(?:npu|NPU)|NPU|Npu|hccl|HCCL|Hccl|"
    r"(?:(?<![A-Za-z])ascend|Ascend|ASCEND)(?!ing|ed|ant|s\b)|(?<![A-Za-z])(?:cann|CANN)(?![A-Za-z])",
    "musa": r"(?<![A-Za-z])(?:musa|MUSA|mccl|MCCL)|MUSA|Musa",
    "mlu": r"(?<![A-Za-z])(?:mlu|MLU)|MLU|Mlu|cncl|CNCL|cnnl|CNNL",
}
PATTERN = re.compile("|".join([_PLATFORM, *_PACKAGES]), re.IGNORECASE)

Kind = Literal["name", "string", "comment"]

_NOT_CODE = re.compile(rb"#[^\r\n]*|\"\"\"|'''|\"|'")
# Behind the quote up to the closing one. A backslash takes the next byte with it, also in raw ones.
_ENDS = {
    b'"': re.compile(rb'[^"\\\r\n]*(?:\\(?:\r\n|[\s\S])[^"\\\r\n]*)*"'),
    b"'": re.compile(rb"[^'\\\r\n]*(?:\\(?:\r\n|[\s\S])[^'\\\r\n]*)*'"),
    b'"""': re.compile(rb'[^"\\]*(?:(?:\\[\s\S]|"(?!""))[^"\\]*)*"""'),
    b"'''": re.compile(rb"[^'\\]*(?:(?:\\[\s\S]|'(?!''))[^'\\]*)*'''"),
}
_IN_FIELD = re.compile(rb"[#\"'(){}\[\]:]")
_BRACE = re.compile(rb"[{}]")
_IN_TEXT = re.compile(rb"[\\{}\"']")
_WORD = re.compile(rb"[A-Za-z0-9_\x80-\xff]+")
_FORMATTED = {b"f", b"fr", b"rf", b"t", b"tr", b"rt"}
_PREFIXES = _FORMATTED | {b"r", b"b", b"u", b"br", b"rb"}


class Token(NamedTuple):
    """One match within one token of the language.

    Attributes:
        text: What matched.
        kind: What the token is.
        span: The match, in bytes.
        line: From 1.
        whole: The token that it is in: a name, a comment, a string, or a stretch of an f-string.
    """

    text: str
    kind: Kind
    span: Span
    line: int
    whole: Span


class Stretch(NamedTuple):
    """What is no code."""

    span: Span
    kind: Literal["string", "comment"]


@lru_cache
def pattern(source: SourceName) -> re.Pattern[str]:
    """What counts as a token of this platform."""
    return PATTERN if source == "cuda" else re.compile(_VENDORS[source])


def speaks(text: str, source: SourceName) -> bool:
    """Whether a text has a word of this platform's in it."""
    return pattern(source).search(text) is not None


@lru_cache
def _in_bytes(matcher: re.Pattern[str]) -> re.Pattern[bytes]:
    return re.compile(matcher.pattern.encode(), matcher.flags & re.IGNORECASE)


def find(source: Source, matcher: re.Pattern[str] = PATTERN) -> list[Token]:
    """All tokens of a Python file.

    Raises:
        SyntaxError: A string or a field of an f-string does not end.
    """
    matches = list(_in_bytes(matcher).finditer(source.utf8))
    if not matches:
        return []
    stretches = iter(not_code(source.utf8))
    found = []
    at = next(stretches, None)
    for match in matches:
        start, end = match.span()
        while at is not None and at.span.end <= start:
            at = next(stretches, None)
        inside = at is not None and at.span.start <= start
        kind: Kind = at.kind if at is not None and inside else "name"
        whole = at.span if at is not None and inside else _word(source.utf8, start)
        text = match.group().decode("utf-8")
        found.append(Token(text, kind, Span(start, end), source.line_of(start), whole))
    return found


def _word(text: bytes, position: int) -> Span:
    """The name that a byte of code is in."""
    start = position
    while start and _WORD.match(text, start - 1, start):
        start -= 1
    match = _WORD.match(text, start)
    return Span(start, match.end() if match else position)


def not_code(text: bytes) -> list[Stretch]:
    """The strings and comments of a program, in order; of f-strings their text without the fields.

    Raises:
        SyntaxError: A string or a field of an f-string does not end.
    """
    found: list[Stretch] = []
    position = 0
    while (match := _NOT_CODE.search(text, position)) is not None:
        position = _one(text, match, found)
    return found


def _one(text: bytes, match: re.Match[bytes], found: list[Stretch]) -> int:
    """Note the comment or string that a match begins; where it ends."""
    mark = match.group()
    if mark.startswith(b"#"):
        found.append(Stretch(Span(*match.span()), "comment"))
        return match.end()
    prefix = _prefix(text, match.start())
    start = match.start() - len(prefix)
    if prefix in _FORMATTED:
        return _formatted(text, start, match.end(), mark, b"r" in prefix, found)
    end = _ENDS[mark].match(text, match.end())
    if end is None:
        raise SyntaxError(f"a string literal does not end: byte {start}")
    found.append(Stretch(Span(start, end.end()), "string"))
    return end.end()


def _prefix(text: bytes, quote: int) -> bytes:
    """The letters before a quote if they are one word that strings may have, in lower case."""
    start = quote
    while start and quote - start < 3 and _WORD.match(text, start - 1, start):
        start -= 1
    prefix = text[start:quote].lower()
    return prefix if prefix in _PREFIXES else b""


def _formatted(
    text: bytes, start: int, body: int, quote: bytes, is_raw: bool, found: list[Stretch]
) -> int:
    """Note the pieces of an f-string; where it ends."""
    position, piece = body, start
    while True:
        match = _IN_TEXT.search(text, position)
        if match is None:
            raise SyntaxError(f"an f-string does not end: byte {start}")
        position = match.start()
        mark = text[position : position + 1]
        if text[position : position + 2] in (b"{{", b"}}"):
            position += 2
        elif mark == b"{":
            found.append(Stretch(Span(piece, position), "string"))
            position = piece = _field(text, position + 1, found)
        elif mark == b"\\":
            position = _escape(text, position, is_raw)
        elif text.startswith(quote, position):
            found.append(Stretch(Span(piece, position + len(quote)), "string"))
            return position + len(quote)
        else:
            position += 1


def _escape(text: bytes, position: int, is_raw: bool) -> int:
    """Behind a backslash in an f-string: braces after one still are fields."""
    following = text[position + 1 : position + 3]
    if following == b"N{" and not is_raw:
        return text.index(b"}", position) + 1
    return position + (1 if following[:1] in (b"{", b"}") else 2)


def _field(text: bytes, position: int, found: list[Stretch]) -> int:
    """Note what is no code within the braces of a field; where the text goes on."""
    depth = 0
    while (match := _IN_FIELD.search(text, position)) is not None:
        mark = match.group()
        position = match.end()
        literal = _NOT_CODE.match(text, match.start())
        if literal is not None:
            position = _one(text, literal, found)
        elif mark in b"([{":
            depth += 1
        elif mark in b")]" or (mark == b"}" and depth):
            depth -= 1
        elif mark == b"}":
            return position
        elif mark == b":" and not depth:
            return _format(text, position, found)
    raise SyntaxError("a field of an f-string does not end")


def _format(text: bytes, position: int, found: list[Stretch]) -> int:
    """Note the pieces of a format specification; behind its brace."""
    piece = position
    while (match := _BRACE.search(text, position)) is not None:
        position = match.end()
        if match.start() > piece:
            found.append(Stretch(Span(piece, match.start()), "string"))
        if match.group() == b"}":
            return position
        position = piece = _field(text, position, found)
    raise SyntaxError("a field of an f-string does not end")
