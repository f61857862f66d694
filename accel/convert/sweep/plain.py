"""ACC132 and ACC139: build files, scripts of other shells, and prose."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from accel.convert.finding import Finding, Span
from accel.convert.sweep.text import Text
from accel.convert.sweep.words import about_variable, about_word
from accel.convert.tables.environment import variable

_SET = re.compile(
    r"(?i)^\s*(?:set(?:env)?|export|\$env:)\s*(?:-\w+\s+)*\"?(\w+)\"?\s*[= ]\s*(.*?)\s*$"
)
_SCRIPT_COMMENTS = ("#", "::", "rem ", "REM ")


def find_build(text: Text) -> Iterator[Finding]:
    """One finding for a Makefile, CMake or Bazel file; none of these is converted."""
    spans = [span for span in _spans(text) if not text.get(span).lstrip().startswith("#")]
    whole = Span(0, len(text.chars))
    if spans:
        first = text.flag(
            spans[0], "ACC132", f"a build for CUDA, in {len(spans)} lines",
            "Build it only where CUDA is; on Ascend the sources need another build, or a plain "
            "torch version in their place.",
            effort="rewrite", subject=text.path,
        )  # fmt: skip
        yield replace(first, span=whole)
    elif next(text.hits(), None) is not None:
        yield text.keep(whole, "ACC139", "comments; none is ever changed")


def find_script(text: Text) -> Iterator[Finding]:
    """Scripts of shells whose assignments are not converted."""
    for span in _spans(text):
        line = text.get(span)
        match = _SET.match(line)
        known = variable(match[1]) if match else None
        if line.lstrip().startswith(_SCRIPT_COMMENTS):
            yield text.keep(span, "ACC139", "a comment; none is ever changed")
        elif match and known:
            yield about_variable(text, span, known, match[2])
        else:
            for word in re.finditer(r"\S+", line):
                at = Span(span.start + word.start(), span.start + word.end())
                yield from about_word(text, at, is_command=word.start() == 0)


def find_prose(text: Text) -> Iterator[Finding]:
    """Documents are for people: counted, never changed."""
    if next(text.hits(), None) is not None:
        whole = Span(0, len(text.chars))
        yield text.keep(whole, "ACC139", "a document; none is ever changed")


def find_foreign(text: Text) -> Iterator[Finding]:
    """Words of another vendor's: counted and shown, since only Python is taken back from them."""
    for span in _spans(text):
        if text.get(span).lstrip().startswith(("#", "//", *_SCRIPT_COMMENTS)):
            yield text.keep(span, "ACC139", "a comment; none is ever changed")
        else:
            yield text.flag(
                span, "ACC138", f"this is meant for {text.options.source} devices",
                "Only Python code is taken back from a vendor's: read this line and decide.",
            )  # fmt: skip


def _spans(text: Text) -> Iterator[Span]:
    for number in sorted({hit.line for hit in text.hits()}):
        yield text.line_span(number)
