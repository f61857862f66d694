"""Names that differ only in the numbers of layers, as one."""

from __future__ import annotations

import math
from collections.abc import Sequence


def grouped(
    names: Sequence[str], rows: Sequence[tuple[str, ...]]
) -> list[tuple[str, tuple[str, ...]]]:
    """Join equal rows whose names differ in numbers only.

    `layers.0.fc`, `layers.1.fc` and `layers.3.fc` become `layers.0-1,3.fc`.

    Args:
        names: Dotted names, one per row.
        rows: Cells.

    Returns:
        Pairs of a name, which may stand for several, and its cells, in the order of the first ones.
    """
    found: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for name, row in zip(names, rows, strict=True):
        pattern = tuple("#" if part.isdecimal() else part for part in name.split("."))
        found.setdefault((pattern, row), []).append(name)
    return [(name, row) for (_, row), alike in found.items() for name in _join(alike)]


def listed(names: Sequence[str], most: int = 6) -> str:
    """Names in words, joined where they differ in numbers, and no more than some."""
    joined = [name for name, _ in grouped(names, [()] * len(names))]
    more = len(joined) - most
    return ", ".join(joined[:most]) + (f" and {more} more" if more > 0 else "")


def _join(names: list[str]) -> list[str]:
    """One name for all if they are every combination of their numbers; else the names."""
    columns = list(zip(*(name.split(".") for name in names), strict=True))
    choices = [sorted(set(column), key=_natural) for column in columns]
    if math.prod(map(len, choices)) != len(names):
        return names
    return [".".join(one[0] if len(one) == 1 else _ranges(list(map(int, one))) for one in choices)]


def _natural(part: str) -> tuple[int, str]:
    return (int(part) if part.isdecimal() else 0, part)


def _ranges(numbers: list[int]) -> str:
    """`0-2,5` for 0, 1, 2 and 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
