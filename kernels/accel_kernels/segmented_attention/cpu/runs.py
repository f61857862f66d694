"""What the cpu backend computes, as runs: equal tiles at equal distances, one call of aten each.

A structured mask is a few *pieces*: stretches of query rows whose interval of keys `[low, high)`
stays, or moves by one key a row, at either end. A piece of constant ends is a rectangle; one whose
upper end moves, a rectangle and a triangle; one with both moving, a band. Pieces end where
intervals do, so a document is one tile of its own size, whatever its length.

A plan depends on lengths, heads and mask, and on neither batch size nor number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from accel_kernels.masks import Mask, Sizes, Visibility
from accel_kernels.segmented_attention.tiles import EMPTY, FULL, tile_kinds

# Queries of a tile of a band, whose keys are those and the window's; of a tile of another mask.
BAND_ROWS = 128
GRID = 512
# A band wider than this many keys is cut into triangles and rectangles instead of masked tiles.
WIDE = 1024


class Run(NamedTuple):
    """`tiles` tiles of `rows` queries against `keys` keys, each `*_step` after the one before.

    Attributes:
        kind: `full`: every row sees every key. `diagonal`: row `i` of a tile sees its keys up to
            `i`. `band`: row `i` sees the keys from `i` on, up to, not including, `width + i` if
            `rises`, else all. `masked`: the mask tells; then `tiles` is 1.
        q0: First query of the first tile.
        rows: Queries of a tile.
        k0: First key of the first tile.
        keys: Keys of a tile.
        tiles: How many.
        q_step: From one tile's first query to the next one's; no two tiles share a query.
        k_step: From one tile's first key to the next one's.
        width: Of a band.
        rises: Of a band.
        batch: The entry of the batch it belongs to; None: all.
    """

    kind: str
    q0: int
    rows: int
    k0: int
    keys: int
    tiles: int = 1
    q_step: int = 0
    k_step: int = 0
    width: int = 0
    rises: bool = False
    batch: int | None = None


class Piece(NamedTuple):
    """Rows `r0:r1`; the first sees keys `low:high`, and each end moves by its slope a row."""

    r0: int
    r1: int
    low: int
    high: int
    low_slope: int
    high_slope: int


_plans: dict[tuple[Any, ...], tuple[Run, ...]] = {}
_PLANS = 64


def plan(mask: Mask | None, seen: Visibility, sizes: Sizes, limit: int | None) -> tuple[Run, ...]:
    """Runs that cover each visible score once; remembered for masks without tensors.

    Args:
        mask: Of the call.
        seen: What it lets see.
        sizes: Of the call.
        limit: Most queries and keys of a tile; None: as large as they come.
    """
    key = None if mask is None else mask.key()
    if mask is not None and key is None:
        return tuple(_plan(seen, sizes, limit))
    place = (key, sizes, limit)
    found = _plans.get(place)
    if found is None:
        if len(_plans) >= _PLANS:
            _plans.clear()
        found = _plans[place] = tuple(_plan(seen, sizes, limit))
    return found


def _plan(seen: Visibility, sizes: Sizes, limit: int | None) -> Iterator[Run]:
    queries, keys = sizes.query_length, sizes.key_length
    if min(sizes) == 0:
        return
    if seen.dense is not None:
        yield from _grid(seen, sizes, limit)
    elif seen.causal:
        first, side = max(queries - keys, 0), min(queries, keys)
        yield from _cover(Piece(first, queries, 0, keys - side + 1, 0, 1), limit, None)
    elif seen.intervals is None:
        yield from _cover(Piece(0, queries, 0, keys, 0, 0), limit, None)
    else:
        yield from _cover_intervals(seen, sizes, limit)


def _cover_intervals(seen: Visibility, sizes: Sizes, limit: int | None) -> Iterator[Run]:
    bounds = seen.intervals
    assert bounds is not None  # noqa: S101
    for entry in range(bounds.shape[2]):
        batch = entry if bounds.shape[2] > 1 else None
        pieces: list[Piece] = []
        for low, high in bounds[:, :, entry].unbind(0):
            part = _pieces(low, high)
            if part is None:
                break
            pieces += part
        else:
            for piece in pieces:
                yield from _cover(piece, limit, batch)
            continue
        alone = Visibility(bounds[:, :, entry : entry + 1], None)
        for run in _grid(alone, sizes, limit):
            yield run._replace(batch=batch)


def _pieces(low: Tensor, high: Tensor) -> list[Piece] | None:
    """The pieces of one interval a row, int32 `[T]` each; None if they are too many to be worth."""
    empty = high <= low
    low, high = low.masked_fill(empty, -2), high.masked_fill(empty, -2)
    rises, tops = low.diff(), high.diff()
    moves = (rises >= 0) & (rises <= 1) & (tops >= 0) & (tops <= 1)
    moves &= empty[1:] == empty[:-1]
    codes = torch.where(moves, rises * 2 + tops, -1)
    changes = ((codes.diff() != 0) & (codes[:-1] != -1)).nonzero().flatten()
    breaks = int((codes == -1).sum())
    length = len(low)
    if len(changes) + breaks > max(256, length // 16):
        return None
    cuts = {0, length}
    for stop in (changes + 2).tolist():  # a row belongs to the stretch that it ends
        cuts.add(stop)
    for stop in ((codes == -1).nonzero().flatten() + 1).tolist():
        cuts.add(stop)
    starts = sorted(cuts)
    first = torch.tensor(starts[:-1], device="cpu")
    table = zip(starts, starts[1:], low[first].tolist(), high[first].tolist(), strict=False)
    found = []
    for r0, r1, bottom, top in table:
        if top <= bottom:
            continue
        code = int(codes[r0]) if r1 - r0 > 1 else 0
        found.append(Piece(r0, r1, bottom, top, code // 2, code % 2))
    return found


def _cover(piece: Piece, limit: int | None, batch: int | None) -> Iterator[Run]:
    r0, r1, low, high, low_slope, high_slope = piece
    if r1 - r0 == 1:
        low_slope = high_slope = 0
    if low_slope == 0 and high_slope == 0:
        runs = _rectangle(r0, r1, low, high, limit)
    elif low_slope == 0:
        runs = _rising(r0, r1, low, high, limit)
    elif high_slope == 0:
        runs = _falling(r0, r1, low, high, limit)
    else:
        runs = _band(r0, r1, low, high, limit)
    for run in runs:
        yield run._replace(batch=batch)


def _rectangle(r0: int, r1: int, low: int, high: int, limit: int | None) -> Iterator[Run]:
    rows, keys = block(r1 - r0, limit), block(high - low, limit)
    count, rest = divmod(r1 - r0, rows)
    for k0 in range(low, high, keys):
        width = min(keys, high - k0)
        yield Run("full", r0, rows, k0, width, count, rows)
        if rest:
            yield Run("full", r0 + count * rows, rest, k0, width)


def _rising(r0: int, r1: int, low: int, high: int, limit: int | None) -> Iterator[Run]:
    """A rectangle of the keys that the first row's predecessor would see, and a triangle."""
    if high - 1 > low:
        yield from _rectangle(r0, r1, low, high - 1, limit)
    side, k0 = block(r1 - r0, limit), high - 1
    count, rest = divmod(r1 - r0, side)
    yield Run("diagonal", r0, side, k0, side, count, side, side)
    end = r0 + count * side
    if rest:
        yield Run("diagonal", end, rest, k0 + count * side, rest)
    for n in range(count):
        below = r0 + (n + 1) * side
        if n + 1 < count:
            yield Run("full", below, side, k0 + n * side, side, count - n - 1, side)
        if rest:
            yield Run("full", end, rest, k0 + n * side, side)


def _falling(r0: int, r1: int, low: int, high: int, limit: int | None) -> Iterator[Run]:
    """Triangles whose rows see from their own place on, and the rectangles right of them."""
    side = block(r1 - r0, min(limit or GRID, GRID))
    for start in range(r0, r1, side):
        rows, k0 = min(side, r1 - start), low + start - r0
        if start == r0 or rows < side:
            count = (r1 - r0) // side if rows == side else 1
            yield Run("band", start, rows, k0, rows, count, side, side, rows)
        if k0 + rows < high:
            yield from _rectangle(start, start + rows, k0 + rows, high, limit)


def _band(r0: int, r1: int, low: int, high: int, limit: int | None) -> Iterator[Run]:
    """Row `i` sees `width` keys from `low + i` on."""
    width = high - low
    narrow = width <= WIDE and (limit is None or width + BAND_ROWS <= limit)
    if not narrow:
        yield from _wide_band(r0, r1, low, high, limit)
        return
    side = block(r1 - r0, BAND_ROWS)
    count, rest = divmod(r1 - r0, side)
    yield Run("band", r0, side, low, side + width - 1, count, side, side, width, True)
    if rest:
        moved = count * side
        yield Run("band", r0 + moved, rest, low + moved, rest + width - 1, width=width, rises=True)


def _wide_band(r0: int, r1: int, low: int, high: int, limit: int | None) -> Iterator[Run]:
    """Of each block of rows a falling triangle, a rectangle and a rising triangle, in this order.

    The block is at most as high as the band is wide, less one, so that the triangles do not meet.
    """
    width = high - low
    side = block(r1 - r0, min(limit or GRID, GRID, max(width - 1, 1)))
    side = min(side, max(width - 1, 1))
    if width == 1:
        for row in range(r0, r1):
            yield Run("full", row, 1, low + row - r0, 1)
        return
    count, rest = divmod(r1 - r0, side)
    for start, rows, tiles in ((0, side, count), (count * side, rest, 1)):
        if rows == 0 or tiles == 0:
            continue
        q0, k0 = r0 + start, low + start
        yield Run("band", q0, rows, k0, rows, tiles, side, side, rows)
        middle = width - 1 - rows
        keys = block(middle, limit) if middle else 1
        for at in range(0, middle, keys):
            wide = min(keys, middle - at)
            yield Run("full", q0, rows, k0 + rows + at, wide, tiles, side, side)
        yield Run("diagonal", q0, rows, k0 + width - 1, rows, tiles, side, side)


def _grid(seen: Visibility, sizes: Sizes, limit: int | None) -> Iterator[Run]:
    """Tiles of a fixed grid, for masks that no few pieces describe; full neighbours joined."""
    side = min(GRID, limit or GRID)
    kinds = tile_kinds(seen, sizes, side, side)
    widest = max(1, (limit or 4 * GRID) // side)
    for entry in range(kinds.shape[0]):
        batch = entry if kinds.shape[0] > 1 else None
        for row, line in enumerate(kinds[entry].tolist()):
            q0 = row * side
            rows = min(side, sizes.query_length - q0)
            column = 0
            while column < len(line):
                k0, last = column * side, column + 1
                while line[column] == FULL and last < min(len(line), column + widest):
                    if line[last] != FULL:
                        break
                    last += 1
                keys = min(last * side, sizes.key_length) - k0
                if line[column] != EMPTY:
                    kind = "full" if line[column] == FULL else "masked"
                    yield Run(kind, q0, rows, k0, keys, batch=batch)
                column = last


def block(length: int, limit: int | None) -> int:
    """The size of equal blocks of at most `limit` that cover a length, in steps of 64."""
    if limit is None or length <= limit:
        return max(length, 1)
    parts = -(-length // limit)
    even = -(-length // parts)
    return min(limit, -(-even // 64) * 64)
