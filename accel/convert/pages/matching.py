"""Which lines of two texts belong together, in time that grows with their length.

`difflib` alone takes the square of it. Lines that are in both texts once are anchors (Cohen's
patience diff); what is between two of them is short, and left to `difflib`.
"""

from __future__ import annotations

import difflib
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence

# Kind, start and stop in the first text, start and stop in the second.
Opcode = tuple[str, int, int, int, int]
Group = list[Opcode]
_MOST = 100_000  # pairs of lines that are worth a comparison each


def groups(before: Sequence[bytes], after: Sequence[bytes], context: int = 3) -> Iterator[Group]:
    """Changes with a few equal lines around them.

    Args:
        before: Lines of the first text.
        after: Lines of the second.
        context: How many equal lines are shown around a change.
    """
    matcher = _Matcher(None, (), (), autojunk=False)
    matcher.opcodes = list(_opcodes(before, after))
    yield from matcher.get_grouped_opcodes(context)


def _opcodes(before: Sequence[bytes], after: Sequence[bytes]) -> Iterator[Opcode]:
    """What turns one text into the other; equal stretches are as long as they can be."""
    a, b = 0, 0
    start = (0, 0)  # of the equal stretch that ends at (a, b)
    for i, j in [*_pairs(before, after), (len(before), len(after))]:
        if (i, j) != (a, b):
            if start != (a, b):
                yield "equal", start[0], a, start[1], b
            kind = "replace" if i > a and j > b else "delete" if i > a else "insert"
            yield kind, a, i, b, j
            start = i, j
        a, b = i + 1, j + 1
    if start != (len(before), len(after)):
        yield "equal", start[0], len(before), start[1], len(after)


def _pairs(before: Sequence[bytes], after: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Lines that belong together, in order."""
    a, b = 0, 0
    for i, j in [*_anchors(before, after), (len(before), len(after))]:
        yield from _between(before, after, (a, i), (b, j))
        if i < len(before):
            yield i, j
        a, b = i + 1, j + 1


def _anchors(before: Sequence[bytes], after: Sequence[bytes]) -> list[tuple[int, int]]:
    """The longest run of lines that are once in each text, and in the same order in both."""
    once_before, once_after = _once(before), _once(after)
    common = [(once_before[line], once_after[line]) for line in once_before if line in once_after]
    tails: list[int] = []  # the least end, in the second text, of a run of each length
    ends: list[int] = []  # its index in `common`
    previous: list[int] = []
    for index, (_, j) in enumerate(common):
        length = bisect_left(tails, j)
        previous.append(ends[length - 1] if length else -1)
        tails[length : length + 1] = [j]
        ends[length : length + 1] = [index]
    run = []
    at = ends[-1] if ends else -1
    while at >= 0:
        run.append(common[at])
        at = previous[at]
    return run[::-1]


def _once(lines: Sequence[bytes]) -> dict[bytes, int]:
    """Positions of the lines that are there once, in order."""
    counts = Counter(lines)
    return {line: index for index, line in enumerate(lines) if counts[line] == 1}


def _between(
    before: Sequence[bytes], after: Sequence[bytes], one: tuple[int, int], two: tuple[int, int]
) -> Iterator[tuple[int, int]]:
    """Pairs within two stretches: equal starts and ends, and what `difflib` finds between them."""
    (a, a_end), (b, b_end) = one, two
    while a < a_end and b < b_end and before[a] == after[b]:
        yield a, b
        a, b = a + 1, b + 1
    tail = 0
    while a < a_end - tail and b < b_end - tail and (
        before[a_end - 1 - tail] == after[b_end - 1 - tail]
    ):  # fmt: skip
        tail += 1
    inner_a, inner_b = before[a : a_end - tail], after[b : b_end - tail]
    if 0 < len(inner_a) * len(inner_b) <= _MOST:
        matcher = difflib.SequenceMatcher(None, inner_a, inner_b, autojunk=False)
        for i, j, size in matcher.get_matching_blocks():
            yield from ((a + i + k, b + j + k) for k in range(size))
    elif len(inner_a) == len(inner_b):  # most edits keep the number of lines
        yield from ((a + k, b + k) for k, line in enumerate(inner_a) if line == inner_b[k])
    yield from ((a_end - tail + k, b_end - tail + k) for k in range(tail))


class _Matcher(difflib.SequenceMatcher[bytes]):
    """`difflib`'s grouping of opcodes that were found otherwise."""

    opcodes: list[Opcode]

    def get_opcodes(self) -> list[Opcode]:  # type: ignore[override]  # kinds are plain text here
        return self.opcodes
