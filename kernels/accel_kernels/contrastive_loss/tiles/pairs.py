"""Pairs of rows and columns with equal keys: a list of all, or those of a tile."""

from __future__ import annotations

import torch
from torch import Tensor

Pairs = tuple[Tensor, Tensor]
"""int64 vectors of one length: rows, and the column of each."""

# A list of so many pairs for each row and column; more are looked for tile by tile.
_LISTED = 4


def equal_pairs(x_key: Tensor, y_key: Tensor) -> Pairs | None:
    """All (i, j) with `x_key[i] == y_key[j]`, by row; None if they are too many to list.

    Args:
        x_key: int64 `[N]`, on the CPU.
        y_key: int64 `[M]`, on the CPU.
    """
    order = y_key.argsort(stable=True)
    ordered = y_key[order]
    first = torch.searchsorted(ordered, x_key)
    counts = torch.searchsorted(ordered, x_key, right=True) - first
    total = int(counts.sum())
    if total > _LISTED * (len(x_key) + len(y_key)):
        return None
    rows = torch.arange(len(x_key), device="cpu").repeat_interleave(counts)
    before = (counts.cumsum(0) - counts)[rows]
    return rows, order[first[rows] + torch.arange(total, device="cpu") - before]


class KeyedPairs:
    """Pairs with equal keys, for asking tile by tile in memory linear in the rows.

    Args:
        x_key: int64 `[N]`.
        y_key: int64 `[M]`.
        sizes: Rows and columns of a tile.
    """

    def __init__(self, x_key: Tensor, y_key: Tensor, sizes: tuple[int, int]) -> None:
        self._keys, self._sizes = (x_key, y_key), sizes
        found = equal_pairs(x_key.cpu(), y_key.cpu())
        self._listed = None if found is None else self._by_tile(found, x_key.device)

    def _by_tile(self, pairs: Pairs, device: torch.device) -> dict[tuple[int, int], Pairs]:
        high, wide = self._sizes
        rows, columns = pairs
        across = -(-len(self._keys[1]) // wide)
        tiles, order = (rows // high * across + columns // wide).sort(stable=True)
        numbers, counts = torch.unique_consecutive(tiles, return_counts=True)
        parts = [
            (place[order] % size).to(device).split(counts.tolist())
            for place, size in zip(pairs, self._sizes, strict=True)
        ]
        return {
            divmod(number, across): (one, other)
            for number, one, other in zip(numbers.tolist(), *parts, strict=True)
        }

    def of_tile(self, rows: slice, columns: slice) -> Pairs | None:
        """Places within a tile; None if there are none."""
        if self._listed is not None:
            return self._listed.get((rows.start // self._sizes[0], columns.start // self._sizes[1]))
        x_key, y_key = self._keys
        found = (x_key[rows, None] == y_key[columns]).nonzero()
        return (found[:, 0], found[:, 1]) if len(found) else None
