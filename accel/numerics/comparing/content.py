"""Aligning by content what could not be aligned by name: the same numbers are the same value."""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from accel.numerics.comparing.alignment import Alignment, Paths, ValuePair
from accel.numerics.comparing.contents import Contents, distance, is_float
from accel.numerics.storage.entries import Operator

_NEAR = 1e-2  # relative distance: the largest rounding of bfloat16 is 4e-3, other values are at 1
_PHASES = ("forward", "recompute", "backward")
_SLACK = 2.0  # the distance is an estimate
_LEAST = 16  # elements: fewer may agree by chance


def by_content(a: Contents, b: Contents, alignment: Alignment) -> list[ValuePair]:
    """Pairs of outputs of unmatched operators with the same contents, in the reference's order.

    Only values of one phase are paired, each at most once, the nearest first; those of the same
    module before others. What optimizers make is left out: a parameter is always near itself.
    """
    left, right = _outputs(a, alignment.only_a), _outputs(b, alignment.only_b)
    taken: tuple[set[int], set[int]] = (set(), set())
    found: list[tuple[int, ValuePair]] = []
    for *_, ours, theirs in sorted(_near(a, b, left, right), key=lambda n: n[:2]):
        if ours.value in taken[0] or theirs.value in taken[1]:
            continue
        taken[0].add(ours.value)
        taken[1].add(theirs.value)
        key = ours.operator.key
        pair = ValuePair(
            f"{key} (content)", key.phase, key.module, key.op, ours.value, theirs.value, "content",
            key,
        )  # fmt: skip
        found.append((ours.operator.id, pair))
    return [pair for _, pair in sorted(found, key=lambda each: each[0])]


class _Output(NamedTuple):
    operator: Operator
    value: int
    module: str
    size: int
    norm: float


def _outputs(contents: Contents, operators: Sequence[Operator]) -> list[_Output]:
    paths, found = Paths(contents.step), []
    for one in operators:
        if one.key.phase not in _PHASES:
            continue
        for value in one.produced:
            described = contents.value(value)
            digest = described.sketch
            if digest is not None and digest.count >= _LEAST and is_float(described.dtype):
                found.append(
                    _Output(one, value, paths.of(one.key.module), digest.count, digest.norm)
                )
    return found


def _near(
    a: Contents, b: Contents, left: Sequence[_Output], right: Sequence[_Output]
) -> Iterator[tuple[bool, float, _Output, _Output]]:
    """Pairs of outputs that are near: whether in other modules, how near, and the two."""
    places: dict[tuple[str, int], list[tuple[float, int, _Output]]] = defaultdict(list)
    for number, one in enumerate(right):
        places[one.operator.key.phase, one.size].append((one.norm, number, one))
    for known in places.values():
        known.sort(key=lambda each: each[:2])
    for ours in left:
        known = places[ours.operator.key.phase, ours.size]
        # Norms differ by no more than the tensors do.
        begin = bisect.bisect_left(known, ours.norm * (1 - _SLACK * _NEAR), key=lambda k: k[0])
        for norm, _, theirs in known[begin:]:
            if norm > ours.norm * (1 + _SLACK * _NEAR):
                break
            apart = distance(a.sketch(ours.value), b.sketch(theirs.value))
            if apart is not None and apart <= _NEAR:
                yield ours.module != theirs.module, apart, ours, theirs
