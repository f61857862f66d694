"""Tiles of the score matrix: which are visible in whole, in part, or not at all.

An empty tile is in no list: nobody touches it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from accel_kernels.masks import Sizes, Visibility, row_bounds

EMPTY, PARTIAL, FULL = 0, 1, 2
# Elements of the largest intermediate tensor: within the CPU's cache; elsewhere in few launches.
_AT_ONCE_ON_CPU, _AT_ONCE = 1 << 17, 1 << 24


class Tile(NamedTuple):
    """A rectangle of the score matrix: query rows `q0:q1` against keys `k0:k1`.

    Attributes:
        q0: First query.
        q1: Past the last query.
        k0: First key.
        k1: Past the last key.
        diagonal: The tile is square and row `i` sees only its keys up to `i`.
        partial: What is visible in it, the mask tells. If neither, every row sees every key.
        batch: The entry of the batch it belongs to; None: all.
    """

    q0: int
    q1: int
    k0: int
    k1: int
    diagonal: bool = False
    partial: bool = False
    batch: int | None = None

    @property
    def rows(self) -> slice:
        """Its queries."""
        return slice(self.q0, self.q1)

    @property
    def keys(self) -> slice:
        """Its keys."""
        return slice(self.k0, self.k1)

    @property
    def batches(self) -> slice:
        """Its entries of the batch."""
        return slice(None) if self.batch is None else slice(self.batch, self.batch + 1)


def tiles_of(seen: Visibility, sizes: Sizes, segment_size: int) -> list[Tile]:
    """Cover what is visible, each visible score once, with tiles of at most `segment_size` a side.

    Tiles follow one another by keys within the same rows, so that a running softmax meets the keys
    of a row in ascending order.
    """
    if sizes.query_length == 0 or sizes.key_length == 0 or sizes.batch == 0 or sizes.heads == 0:
        return []
    if seen.causal:
        return _causal_tiles(sizes.query_length, sizes.key_length, segment_size)
    kinds = tile_kinds(seen, sizes, segment_size, segment_size)
    known = kinds.tolist()  # once: an element of a tensor takes microseconds
    found = []
    for batch, row, key in kinds.nonzero().tolist():
        q0, k0 = row * segment_size, key * segment_size
        found.append(
            Tile(
                q0,
                min(q0 + segment_size, sizes.query_length),
                k0,
                min(k0 + segment_size, sizes.key_length),
                partial=known[batch][row][key] == PARTIAL,
                batch=batch if kinds.shape[0] > 1 else None,
            )
        )
    return found


def tile_kinds(seen: Visibility, sizes: Sizes, rows: int, keys: int) -> Tensor:
    """`EMPTY`, `PARTIAL` or `FULL` for each tile of a grid.

    Exact, but that a tile which intervals and a dense mask each leave in part is called `PARTIAL`
    even if they have nothing in common there.

    Args:
        seen: What is visible.
        sizes: Of the call.
        rows: Queries of a tile.
        keys: Keys of a tile.

    Returns:
        uint8 `[B or 1, ceil(T / rows), ceil(S / keys)]`, on the device of the mask (the CPU for one
        without tensors). A dense mask counts over all heads: a tile is full if it is for each.
    """
    device = torch.device("cpu")
    if seen.dense is not None:
        device = seen.dense.device
    elif seen.intervals is not None:
        device = seen.intervals.device
    bounds = row_bounds(seen, sizes, device)
    kinds = _interval_kinds(bounds, sizes, rows, keys)
    if seen.dense is None:
        return kinds
    return torch.minimum(*torch.broadcast_tensors(kinds, _dense_kinds(seen, sizes, rows, keys)))


def _interval_kinds(bounds: Tensor, sizes: Sizes, rows: int, keys: int) -> Tensor:
    """By how many keys of a tile its rows see: none in any row, or all in every row."""
    device = bounds.device
    starts = torch.arange(0, sizes.key_length, keys, dtype=torch.int32, device=device)
    ends = (starts + keys).clamp(max=sizes.key_length)
    blocks = -(-sizes.query_length // rows)
    # The last row stands for those beyond the end: it changes neither the least nor the most.
    places = torch.arange(blocks * rows, device=device).clamp(max=sizes.query_length - 1)
    low, high = bounds[..., places].unflatten(-1, (blocks, rows)).unsqueeze(-1).unbind(1)
    most = _AT_ONCE_ON_CPU if device.type == "cpu" else _AT_ONCE
    step = max(1, most // max(1, low[:, :, 0].numel() * len(starts)))
    found = []
    for part in range(0, blocks, step):
        some = slice(part, part + step)
        # [m, B, blocks, rows, tiles]: intervals are disjoint, so their overlaps add up.
        upper, lower = torch.minimum(high[:, :, some], ends), torch.maximum(low[:, :, some], starts)
        count = (upper - lower).clamp(min=0).sum(0)
        full = (count.amin(2) == ends - starts).to(torch.uint8)
        found.append((count.amax(2) > 0).to(torch.uint8) + full)
    return torch.cat(found, 1)


def _dense_kinds(seen: Visibility, sizes: Sizes, rows: int, keys: int) -> Tensor:
    dense = seen.dense
    assert dense is not None  # noqa: S101
    by_rows = dense.split(rows, 2) if dense.shape[2] > 1 else (dense,)
    return torch.stack(
        [
            torch.stack(
                [
                    tile.any(3).any(2).any(1).to(torch.uint8)
                    + tile.all(3).all(2).all(1).to(torch.uint8)
                    for tile in (block.split(keys, 3) if dense.shape[3] > 1 else (block,))
                ],
                1,
            )
            for block in by_rows
        ],
        1,
    )


def _causal_tiles(query_length: int, key_length: int, segment_size: int) -> list[Tile]:
    """Tiles for a causal mask aligned at the bottom right, whatever the lengths.

    Keys that all queries see come first, in full tiles; the rest is a square, cut into diagonal
    tiles and the full ones below them. Query rows that see no key are in no tile.
    """
    shared = max(key_length - query_length, 0)
    first_row = max(query_length - key_length, 0)
    covering = [
        Tile(0, query_length, k0, min(k0 + segment_size, shared))
        for k0 in range(0, shared, segment_size)
    ]
    side = min(query_length, key_length)
    for start in range(0, side, segment_size):
        end = min(start + segment_size, side)
        q0, q1, k0, k1 = first_row + start, first_row + end, shared + start, shared + end
        covering.append(Tile(q0, q1, k0, k1, diagonal=True))
        if end < side:
            covering.append(Tile(q1, query_length, k0, k1))
    return covering
