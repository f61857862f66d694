"""The account of every token: what became of it and by which rule, or that nothing knows it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

from accel.convert.finding import Action, Edit, Entry, Finding, Span
from accel.convert.tokens import Token

T = TypeVar("T")

_ORDER = {"convert": 0, "flag": 1, "keep": 2}
COMMENT_RULE = "ACC140"


class Enclosing(Generic[T]):
    """What lies around places that are asked for in the order of the file; one pass for all."""

    def __init__(self, items: Iterable[tuple[Span, T]]) -> None:
        """Take items and where they are, in any order."""
        self._waiting = sorted(items, key=lambda pair: pair[0].start)[::-1]
        self._open: list[tuple[Span, T]] = []

    def around(self, span: Span) -> list[tuple[Span, T]]:
        """All items that contain a span, the innermost first."""
        while self._waiting and self._waiting[-1][0].start <= span.start:
            self._open.append(self._waiting.pop())
        self._open = [pair for pair in self._open if pair[0].end > span.start]
        within = [pair for pair in self._open if pair[0].contains(span)]
        return sorted(within, key=lambda pair: pair[0].end - pair[0].start)


def account(
    tokens: Sequence[Token], findings: Iterable[Finding], applied: set[Span]
) -> tuple[Entry, ...]:
    """One entry for each token.

    A token that an edit took away is converted, by the innermost finding that did it. One that is
    still there belongs to the innermost finding around it. One without a finding is missing, unless
    it is in a comment, which the converter never changes.

    Args:
        tokens: Of the file, in order.
        findings: All that the rules said.
        applied: The spans of the edits that are in the output.
    """
    ordered = sorted(findings, key=lambda f: _ORDER[f.action])
    said = Enclosing((finding.span, finding) for finding in ordered)
    edited = Enclosing(
        (edit.span, (edit, finding))
        for finding in ordered
        for edit in finding.edits
        if edit.span in applied
    )
    return tuple(
        _entry(token, said.around(token.span), edited.around(token.span)) for token in tokens
    )


def _entry(
    token: Token,
    findings: list[tuple[Span, Finding]],
    edits: list[tuple[Span, tuple[Edit, Finding]]],
) -> Entry:
    for _, (edit, finding) in edits:
        if not edit.keeps(token.span):
            return _as(token, "convert", finding)
    if token.kind == "comment":
        reason = "a comment; none is ever changed"
        return Entry(token.text, token.kind, token.span, token.line, "keep", COMMENT_RULE, reason)
    for _, finding in findings:
        return _as(token, finding.action, finding)
    return Entry(token.text, token.kind, token.span, token.line, "missing", "", "no rule saw it")


def _as(token: Token, action: Action, finding: Finding) -> Entry:
    return Entry(
        token.text,
        token.kind,
        token.span,
        token.line,
        action,
        finding.rule,
        finding.message,
    )
