"""What of a score matrix one call of Ascend's operator computes, and how a mask becomes that.

The operator has no masks by row intervals, but it has bands: `lower <= j - i <= upper` within a
rectangle, in constant memory. Row intervals of the masks that people use are few bands: a causal
mask, a window or a document is one each, sinks and prefixes add one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from accel_kernels.masks import Sizes, Visibility
from accel_kernels.segmented_attention.tiles import Tile, tiles_of

Range = tuple[int, int]
# Bands of fewer rows than this, on average, are worth less than tiles with masks of their own;
# those that begin where another ends, which share a call, do not count.
_ROWS_OF_A_BAND, _FEW_BANDS = 64, 8


class Piece(NamedTuple):
    """Query rows `q0:q1` against keys `k0:k1`, visible where `lower <= j - i <= upper`.

    Attributes:
        q0: First query.
        q1: Past the last query.
        k0: First key.
        k1: Past the last key.
        batch: First entry of the batch and past the last.
        heads: First head of the query and past the last.
        lower: Least `j - i`, in the coordinates of the whole; None: no limit.
        upper: Greatest `j - i`; None: no limit.
        masked: What is visible, the call's mask tells; then there is no lower and no upper, and a
            row may see nothing. In every other piece each row sees a key.
    """

    q0: int
    q1: int
    k0: int
    k1: int
    batch: Range
    heads: Range
    lower: int | None = None
    upper: int | None = None
    masked: bool = False

    @property
    def rows(self) -> slice:
        """Its queries."""
        return slice(self.q0, self.q1)

    @property
    def keys(self) -> slice:
        """Its keys."""
        return slice(self.k0, self.k1)

    @property
    def tile(self) -> Tile:
        """Its rectangle, for what knows tiles of a whole batch or of one entry."""
        single = self.batch[0] if self.batch[1] - self.batch[0] == 1 else None
        return Tile(self.q0, self.q1, self.k0, self.k1, batch=single)

    @property
    def visible_keys(self) -> int:
        """The greatest number of keys that one of its rows may see."""
        count = self.k1 - self.k0
        if self.lower is not None and self.upper is not None:
            count = min(count, self.upper - self.lower + 1)
        return count

    def seen(self, device: torch.device) -> Tensor | None:
        """What of the rectangle is visible, bool `[rows, keys]`; None: all. Not if `masked`."""
        if self.lower is None and self.upper is None:
            return None
        rows = torch.arange(self.q0, self.q1, device=device).unsqueeze(1)
        distance = torch.arange(self.k0, self.k1, device=device) - rows
        seen = torch.ones_like(distance, dtype=torch.bool)
        if self.lower is not None:
            seen &= distance >= self.lower
        if self.upper is not None:
            seen &= distance <= self.upper
        return seen


def tightened(piece: Piece) -> Piece | None:
    """The same visible pairs in the smallest rectangle, without limits that limit nothing."""
    q0, q1, k0, k1, lower, upper = *piece[:4], piece.lower, piece.upper
    if upper is not None:
        q0 = max(q0, k0 - upper)
    if lower is not None:
        k0 = max(k0, q0 + lower)
        q1 = min(q1, k1 - lower)
    if upper is not None:
        k1 = min(k1, q1 + upper)
    if q0 >= q1 or k0 >= k1 or (lower is not None and upper is not None and lower > upper):
        return None
    if upper is not None and upper >= k1 - 1 - q0:
        upper = None
    if lower is not None and lower <= k0 - (q1 - 1):
        lower = None
    return piece._replace(q0=q0, q1=q1, k0=k0, k1=k1, lower=lower, upper=upper)


def cut(piece: Piece, rows: int, keys: int) -> Iterator[Piece]:
    """The piece in parts of at most so many rows and keys, without those where nothing is seen."""
    for k0 in range(piece.k0, piece.k1, keys):
        strip = tightened(piece._replace(k0=k0, k1=min(k0 + keys, piece.k1)))
        if strip is None:
            continue
        for q0 in range(strip.q0, strip.q1, rows):
            part = tightened(strip._replace(q0=q0, q1=min(q0 + rows, strip.q1)))
            if part is not None:
                yield part


def pieces_of(seen: Visibility, sizes: Sizes, side: int) -> list[Piece]:
    """Cover what is visible, each visible pair once.

    Args:
        seen: The mask, resolved; row intervals on the CPU, or a wait for the device.
        sizes: Of the call, none of them 0.
        side: Of tiles with masks of their own, where it comes to that.
    """
    whole = Piece(0, sizes.query_length, 0, sizes.key_length, (0, sizes.batch), (0, sizes.heads))
    if seen.causal:
        found = tightened(whole._replace(upper=sizes.key_length - sizes.query_length))
        return [] if found is None else [found]
    if seen.dense is None:
        if seen.intervals is None:
            return [whole]
        bands = _bands(seen.intervals.cpu(), whole)
        if bands is not None:
            return bands
    return _tiles(seen, sizes, whole, side)


def _tiles(seen: Visibility, sizes: Sizes, whole: Piece, side: int) -> list[Piece]:
    """Tiles; full ones beside one another become one piece."""
    found: list[Piece] = []
    for tile in tiles_of(seen, sizes, side):
        batch = whole.batch if tile.batch is None else (tile.batch, tile.batch + 1)
        piece = Piece(*tile[:4], batch, whole.heads, masked=tile.partial)
        last = found[-1] if found else None
        beside = (
            last is not None
            and not (last.masked or piece.masked)
            and (last.q0, last.k1, last.batch) == (piece.q0, piece.k0, piece.batch)
        )
        if last is not None and beside:
            found[-1] = last._replace(k1=piece.k1)
        else:
            found.append(piece)
    return found


def _bands(bounds: Tensor, whole: Piece) -> list[Piece] | None:
    """Row intervals `[m, 2, B or 1, T]` as bands; None if they are too many."""
    entries = bounds.shape[2]
    if entries > 1 and bool((bounds == bounds[:, :, :1]).all()):
        entries = 1
    most = entries * max(_FEW_BANDS, whole.q1 // _ROWS_OF_A_BAND)
    found: list[Piece] = []
    alone = 0
    for entry in range(entries):
        batch = whole.batch if entries == 1 else (entry, entry + 1)
        for low, high in bounds[:, :, entry].unbind(0):
            for piece in _runs(low, high, whole._replace(batch=batch)):
                joined = _joined(found[-1], piece) if found else None
                if joined is not None:
                    found[-1] = joined
                    continue
                alone += not (found and (found[-1].q1, found[-1].k1) == (piece.q0, piece.k0))
                found.append(piece)
                if alone > most:
                    return None
    return found


def _runs(low: Tensor, high: Tensor, whole: Piece) -> Iterator[Piece]:
    """Bands of one interval a row: rows whose two bounds each stay or move on by one."""
    some = high > low
    steps = torch.stack([low.diff(), high.diff()])
    linked = ((steps == 0) | (steps == 1)).all(0) & some[1:] & some[:-1]
    kinds = torch.where(linked, 2 * steps[0] + steps[1], -1)
    values, counts = torch.unique_consecutive(kinds, return_counts=True)
    at, free = 0, 0  # the step at which a run of equal steps begins, the first row in no band yet
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        first, last = max(free, at), at + count  # a step links two rows
        if value < 0:
            yield from _singles(first, last, low, high, whole)
            free = last
        elif last > first:
            yield _band(first, last, value, low, high, whole)
            free = last + 1
        at = last
    yield from _singles(free, len(low), low, high, whole)


def _singles(first: int, last: int, low: Tensor, high: Tensor, whole: Piece) -> Iterator[Piece]:
    """Rows by themselves; those that see nothing are none."""
    rows = (high[first:last] > low[first:last]).nonzero().squeeze(1) + first
    for row in rows.tolist():
        yield whole._replace(q0=row, q1=row + 1, k0=int(low[row]), k1=int(high[row]))


def _band(first: int, last: int, steps: int, low: Tensor, high: Tensor, whole: Piece) -> Piece:
    k0 = int(low[first])
    lower = k0 - first if steps & 2 else None
    upper = int(high[first]) - 1 - first if steps & 1 else None
    piece = whole._replace(
        q0=first, q1=last + 1, k0=k0, k1=int(high[last]), lower=lower, upper=upper
    )
    found = tightened(piece)
    assert found is not None  # noqa: S101 - its rows see keys
    return found


def _joined(one: Piece, other: Piece) -> Piece | None:
    """Both as one band, where the rectangle's edge makes the bends; None where that is not so.

    Bounds of a row are piecewise linear in it, so agreeing at the ends of each part is enough.
    """
    if one.q1 != other.q0 or one.batch != other.batch:
        return None
    both = one._replace(
        q1=other.q1,
        k0=min(one.k0, other.k0),
        k1=max(one.k1, other.k1),
        lower=other.lower if one.lower is None else one.lower,
        upper=other.upper if one.upper is None else one.upper,
    )
    ends = [(one, one.q0), (one, one.q1 - 1), (other, other.q0), (other, other.q1 - 1)]
    if any(_keys_of(both, row) != _keys_of(part, row) for part, row in ends):
        return None
    return tightened(both)


def _keys_of(piece: Piece, row: int) -> Range:
    low = piece.k0 if piece.lower is None else max(piece.k0, row + piece.lower)
    high = piece.k1 if piece.upper is None else min(piece.k1, row + piece.upper + 1)
    return low, high
