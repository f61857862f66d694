"""Which blocks of keys a block of queries must visit, from row intervals, with no wait for it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

ENTRIES = 4
"""Numbers of an entry: first block, first full one, past the last full one, past the last."""


def block_table(bounds: Tensor, key_length: int, rows: int, keys: int) -> Tensor:
    """For each block of queries, ranges of blocks of keys that hold all it sees.

    A block of keys is full if one interval covers it in every row of the block of queries. Ranges
    of one block of queries do not overlap, so that a block of keys is visited once.

    Args:
        bounds: Row intervals, int32 `[m, 2, B or 1, T]`.
        key_length: `S`.
        rows: Queries of a block.
        keys: Keys of a block.

    Returns:
        int32 `[m, B or 1, ceil(T / rows), 4]`, on the device of the bounds: see `ENTRIES`.
    """
    low, high = bounds[:, 0], bounds[:, 1]
    empty = high <= low
    low_seen, high_seen = low.masked_fill(empty, key_length), high.masked_fill(empty, 0)
    beyond = -bounds.shape[-1] % rows

    def by_block(bound: Tensor, filling: int) -> Tensor:
        padded: Tensor = F.pad(bound, (0, beyond), value=filling)
        return padded.reshape(*bound.shape[:-1], -1, rows)

    start = by_block(low_seen, key_length).amin(-1) // keys
    end = (by_block(high_seen, 0).amax(-1) + (keys - 1)) // keys
    full_start = (by_block(low_seen, 0).amax(-1) + (keys - 1)) // keys
    full_end = by_block(high_seen, key_length).amin(-1) // keys
    return _disjoint(torch.minimum(start, end), full_start, full_end, end)


def _disjoint(start: Tensor, full_start: Tensor, full_end: Tensor, end: Tensor) -> Tensor:
    """Sort ranges by where they begin and let each begin no earlier than all before it end."""
    start, order = torch.sort(start, dim=0, stable=True)
    full_start, full_end, end = (t.gather(0, order) for t in (full_start, full_end, end))
    reached = torch.zeros_like(start[0])
    ranges = []
    for first, full, past_full, past in zip(start, full_start, full_end, end, strict=True):
        first = torch.maximum(first, reached)
        past = torch.maximum(past, first)
        full = torch.minimum(torch.maximum(full, first), past)
        past_full = torch.minimum(torch.maximum(past_full, full), past)
        ranges.append(torch.stack((first, full, past_full, past), -1))
        reached = past
    return torch.stack(ranges).to(torch.int32).contiguous()
