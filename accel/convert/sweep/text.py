"""A file that is not Python, as bytes with lines, and how the sweep says what it found there."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from accel.convert import keeping
from accel.convert.edits import apply
from accel.convert.finding import Action, Edit, Effort, Entry, FileResult, Finding, Span
from accel.convert.options import Options
from accel.convert.tokens import pattern, speaks

_NEWLINE = re.compile(rb"\r\n|\r|\n")
_LONGEST = 160  # characters of a snippet


class Hit(NamedTuple):
    """One word of the platform's in a file."""

    text: str
    span: Span
    line: int


class Text:
    """One file.

    Every byte is a character of `chars`, so that the positions of matches are those of bytes;
    what is looked for is ASCII in any case.

    Attributes:
        data: The bytes.
        path: As the run names it.
        options: What the run is asked to do.
        chars: The bytes as characters.
        starts: Where each line begins.
    """

    def __init__(self, data: bytes, path: str, options: Options) -> None:
        self.data = data
        self.path = path
        self.options = options
        self.chars = data.decode("latin-1")
        self.starts = [0, *(match.end() for match in _NEWLINE.finditer(data))]
        if len(self.starts) > 1 and self.starts[-1] == len(data):
            self.starts.pop()

    @property
    def count(self) -> int:
        """How many lines the file has."""
        return len(self.starts) if self.data else 0

    def hits(self, span: Span | None = None) -> Iterator[Hit]:
        """The words of the platform that is converted from, in order."""
        start, end = span or (0, len(self.chars))
        for match in pattern(self.options.source).finditer(self.chars, start, end):
            at = Span(match.start(), match.end())
            yield Hit(match.group(), at, self.line_of(at.start))

    def speaks(self, text: str) -> bool:
        """Whether a text has a word of the platform that is converted from."""
        return speaks(text, self.options.source)

    def lines(self) -> Iterator[tuple[int, Span]]:
        """Each line's number, from 1, and its bytes without the line end."""
        for number in range(1, len(self.starts) + 1):
            yield number, self.line_span(number)

    def line_of(self, offset: int) -> int:
        """The line, from 1, that a byte is in."""
        return bisect_right(self.starts, offset)

    def line_span(self, line: int) -> Span:
        """The bytes of a line, without its end."""
        start = self.starts[line - 1]
        end = self.starts[line] if line < len(self.starts) else len(self.data)
        return Span(start, start + len(self.chars[start:end].rstrip("\r\n")))

    def get(self, span: Span) -> str:
        """The text of a span, as characters of one byte."""
        return self.chars[span.start : span.end]

    def stripped(self, span: Span) -> Span:
        """A span without the blanks at its ends."""
        text = self.get(span)
        start = span.start + len(text) - len(text.lstrip())
        return Span(start, start + len(text.strip()))

    def find(self, span: Span, rule: str, action: Action, message: str, **more: object) -> Finding:
        """A finding; `more` are its further fields."""
        line = self.line_of(span.start)
        start = self.line_span(line).start
        shown = self.data[slice(*self.line_span(line))].decode("utf-8", "replace").strip()
        finding = Finding(
            rule=rule,
            action=action,
            span=span,
            line=line,
            column=len(self.data[start : span.start].decode("utf-8", "replace")) + 1,
            message=message,
            snippet=shown if len(shown) <= _LONGEST else shown[:_LONGEST] + " …",
            **more,  # type: ignore[arg-type]
        )
        return self.restrained(finding)

    def restrained(self, finding: Finding) -> Finding:
        """A finding as the user wants it; see `keeping`."""
        marks = keeping.marks_of(self.data)
        return keeping.restrained(finding, self.options, marks, self.line_of)

    def keep(self, span: Span, rule: str, message: str, subject: str = "") -> Finding:
        """A finding that says why a place is right as it is."""
        return self.find(span, rule, "keep", message, subject=subject)

    def flag(
        self,
        span: Span,
        rule: str,
        message: str,
        advice: str,
        *,
        effort: Effort = "review",
        blocker: bool = False,
        subject: str = "",
    ) -> Finding:
        """A finding for a human."""
        return self.find(
            span, rule, "flag", message, advice=advice, effort=effort, blocker=blocker,
            subject=subject,
        )  # fmt: skip

    def convert(self, span: Span, rule: str, message: str, edit: Edit, subject: str) -> Finding:
        """A finding with an edit."""
        return self.find(span, rule, "convert", message, edits=(edit,), subject=subject)


def result_of(text: Text, language: str, findings: Iterable[Finding]) -> FileResult:
    """Apply the edits and write the ledger.

    Args:
        text: The file.
        language: What it is.
        findings: In any order; a word that is in none of them shows as missing in the ledger.
    """
    # Again, for a handler may have widened a finding over lines with a comment.
    ordered = sorted((text.restrained(f) for f in findings), key=lambda f: (f.span, f.rule))
    # Edits that overlap raise: a handler looks at each place once.
    changed, _ = apply(text.data, [edit for finding in ordered for edit in finding.edits])
    return FileResult(
        path=text.path,
        language=language,
        before=text.data,
        after=changed,
        findings=tuple(ordered),
        ledger=tuple(ledger_of(text, ordered)),
        lines=text.count,
    )


def ledger_of(text: Text, findings: list[Finding]) -> Iterator[Entry]:
    """One entry for each word, with the narrowest finding around it."""
    by_line: dict[int, list[Finding]] = {}
    wide: list[Finding] = []
    for finding in sorted(findings, key=lambda finding: finding.span.end - finding.span.start):
        line = text.line_of(finding.span.start)
        if text.line_of(max(finding.span.start, finding.span.end - 1)) == line:
            by_line.setdefault(line, []).append(finding)
        else:
            wide.append(finding)
    for hit in text.hits():
        near = [*by_line.get(hit.line, ()), *wide]
        about = next((one for one in near if one.span.contains(hit.span)), None)
        if about is None:
            yield Entry(hit.text, "text", hit.span, hit.line, "missing", "", "no rule saw it")
        else:
            yield Entry(
                hit.text, "text", hit.span, hit.line, about.action, about.rule, about.message
            )
