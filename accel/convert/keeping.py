"""What stays because the user says so: by a comment beside a place, or by rules switched off.

One reading of the comment for all kinds of files. It stands on a line of the place, or alone on the
line above, since some files have no comments behind code; a line that a backslash continues is one
with the next.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache

from accel.convert.finding import Finding
from accel.convert.options import Options

COMMENTED = "a comment says to keep it"
SWITCHED_OFF = "the rule that converts it is switched off in this run"

_NEWLINE = re.compile(rb"\r\n|\r|\n")
_MARK = re.compile(
    rb"(?:#|//|/\*|<!--|--|;|::|\b[Rr][Ee][Mm]\s)\s*accel:\s*keep\b(?:\[([A-Z0-9,\s]*)\])?"
)
_COMMENT = re.compile(rb"\s*(?:#|//|[Rr][Ee][Mm]\s)")  # a line that holds nothing else


class Marks:
    """The comments of one file that keep places."""

    def __init__(self, data: bytes) -> None:
        """Look for them.

        Args:
            data: The file, in an encoding that has ASCII in it.
        """
        # By line: the rules that a comment names, or None for all.
        self._by_line: dict[int, list[frozenset[str] | None]] = defaultdict(list)
        found = list(_MARK.finditer(data)) if b"accel:" in data else []
        lines = _NEWLINE.split(data) if found else []
        starts = [0, *(match.end() for match in _NEWLINE.finditer(data))] if found else []
        for match in found:
            named = None if match[1] is None else frozenset(re.split(r"[,\s]+", match[1].decode()))
            at = bisect_right(starts, match.start()) - 1
            for row in _covered(lines, at, data[starts[at] : match.start()]):
                self._by_line[row + 1].append(named)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._by_line)

    def keep(self, rule: str, lines: Iterable[int]) -> bool:
        """Whether a comment keeps a place on one of these lines, from 1, from a rule."""
        marks = (mark for line in lines for mark in self._by_line.get(line, ()))
        return any(mark is None or rule in mark for mark in marks)

    def any(self, lines: Iterable[int]) -> bool:
        """Whether a comment keeps anything on one of these lines."""
        return any(line in self._by_line for line in lines)


def _covered(lines: list[bytes], at: int, before: bytes) -> Iterator[int]:
    """The lines, from 0, that a comment on one of them speaks for."""
    yield at
    if before.strip() and not _COMMENT.match(before):
        while at and _goes_on(lines[at - 1]):
            at -= 1
            yield at
        return
    # Within a command that goes on over lines it speaks for the next of them alone.
    is_inside = at > 0 and _goes_on(lines[at - 1])
    for row in range(at + 1, len(lines)):
        yield row
        if is_inside or not _goes_on(lines[row]):
            return


def _goes_on(line: bytes) -> bool:
    return line.rstrip().endswith(b"\\")


@lru_cache(maxsize=8)  # rules ask about a file once for each use of a name
def marks_of(data: bytes) -> Marks:
    """The comments of a file; see `Marks`."""
    return Marks(data)


def restrained(
    finding: Finding,
    options: Options,
    marks: Marks,
    line_of: Callable[[int], int],
    ends: Mapping[int, int] | None = None,
) -> Finding:
    """A finding as the user wants it.

    A comment settles whatever was said of a place: somebody has looked at it. A rule that is
    switched off only converts nothing: what it flags, and what blocks, is true all the same.

    Args:
        finding: What a rule said.
        options: Of the run.
        marks: The file's comments.
        line_of: The line, from 1, of a byte.
        ends: The last line of the statement that a line is in, where that is another one.
    """
    if finding.action == "keep":
        return finding
    span = finding.span
    lines = {finding.line, line_of(span.start), line_of(max(span.start, span.end - 1))}
    lines |= {ends[line] for line in lines if line in ends} if ends else set()
    if marks.keep(finding.rule, lines):
        return _kept(finding, COMMENTED)
    if finding.action == "convert" and not options.allows(finding.rule):
        return _kept(finding, SWITCHED_OFF)
    return finding


def is_switched_off(finding: Finding) -> bool:
    """Whether a place would be converted if its rule were not switched off."""
    return finding.action == "keep" and finding.message == SWITCHED_OFF


def is_commented(finding: Finding) -> bool:
    """Whether a comment in the file keeps a place."""
    return finding.action == "keep" and finding.message == COMMENTED


def _kept(finding: Finding, why: str) -> Finding:
    return replace(
        finding, action="keep", edits=(), imports=frozenset(), message=why, advice="",
        effort="auto", blocker=False,
    )  # fmt: skip
