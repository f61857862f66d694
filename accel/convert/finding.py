"""What the converter says about one place of a file, and what it changes there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

Action = Literal["convert", "keep", "flag"]
# auto: a machine's work; review: a person looks at it; rewrite: a person writes something new.
Effort = Literal["auto", "review", "rewrite"]


class Span(NamedTuple):
    """A half-open range of bytes in the UTF-8 form of a file."""

    start: int
    end: int

    def contains(self, other: Span) -> bool:
        """Whether the other lies within this one."""
        return self.start <= other.start and other.end <= self.end


# A replacement: literal text, and spans of the original that are kept, with the edits within them.
Parts = tuple["str | Span", ...]


class Edit(NamedTuple):
    """Replace a span by parts."""

    span: Span
    parts: Parts

    def keeps(self, span: Span) -> bool:
        """Whether a span is within a piece of the original that stays."""
        return any(isinstance(part, Span) and part.contains(span) for part in self.parts)


@dataclass(frozen=True)
class Finding:
    """One place, what is done there, and why.

    Attributes:
        rule: The rule's id, e.g. `ACC012`.
        action: `convert` (there are edits), `keep` (right as it is) or `flag` (for a human).
        span: The bytes that this finding accounts for.
        line: From 1.
        column: Of characters, from 1.
        message: What is there and why it is converted, kept or flagged; one sentence.
        advice: What to do; for flags.
        edits: Empty unless `action` is `convert`.
        imports: Modules that the edited text needs, e.g. `accel`.
        effort: Who has work with it.
        blocker: It decides whether the program can be moved at all.
        snippet: The line, stripped.
        subject: What it is about, to group by: an operator, a package, a function.
    """

    rule: str
    action: Action
    span: Span
    line: int
    column: int
    message: str
    advice: str = ""
    edits: tuple[Edit, ...] = ()
    imports: frozenset[str] = frozenset()
    effort: Effort = "auto"
    blocker: bool = False
    snippet: str = ""
    subject: str = ""


class Entry(NamedTuple):
    """One token of the ledger and how it is accounted for.

    Attributes:
        token: The token's text, shortened.
        kind: `name`, `string`, `comment`, or `text` in files that are not Python.
        span: Where it is.
        line: From 1.
        action: As the finding's, or `missing`: a bug of the converter.
        rule: The finding's rule; "" if missing.
        reason: The finding's message.
    """

    token: str
    kind: Literal["name", "string", "comment", "text"]
    span: Span
    line: int
    action: Literal["convert", "keep", "flag", "missing"]
    rule: str
    reason: str


@dataclass(frozen=True)
class FileResult:
    """Everything about one file.

    Attributes:
        path: Relative to the root that was given, with forward slashes.
        language: `python`, `notebook`, `shell`, `docker`, `requirements`, `yaml`, `json`, `c++`, …
        before: The file's bytes.
        after: The same with the edits; equal to `before` where there are none.
        findings: In the order of the file.
        ledger: Every token, in the order of the file.
        error: Why the file could not be read or parsed; it is kept as it is. "" otherwise.
        lines: How many it has.
    """

    path: str
    language: str
    before: bytes
    after: bytes
    findings: tuple[Finding, ...] = ()
    ledger: tuple[Entry, ...] = ()
    error: str = ""
    lines: int = 0

    @property
    def is_changed(self) -> bool:
        """Whether the conversion changes it."""
        return self.before != self.after


@dataclass(frozen=True)
class TreeResult:
    """All files of a run.

    Attributes:
        roots: The paths that were given.
        files: By path.
        target: `accel`, `torch` or `npu`.
        chip: The Ascend chip whose limits were asked, e.g. `910B2`.
        seconds: Wall time of the scan.
        conflicts: What stands against writing at all, e.g. a package named `accel` in the tree.
    """

    roots: tuple[str, ...]
    files: tuple[FileResult, ...]
    target: str = "accel"
    chip: str = "910B2"
    seconds: float = 0.0
    conflicts: tuple[str, ...] = ()
