"""What every kernel does with a tile: load it, mask it, score it, drop from it.

A tile's rows and keys are given as index tensors `[R, 1]` and `[1, K]`, or `[1, R]` and `[K, 1]`
for a transposed tile: everything here follows by broadcasting.
"""
# ruff: noqa: N803 - what is compiled in is in capitals, as is the custom in Triton

from __future__ import annotations

from typing import Any

from accel_kernels.segmented_attention.triton.language import (
    LARGEST,
    LARGEST_BFLOAT,
    LARGEST_HALF,
    LOG2E,
    constexpr,
    jit,
    tensor,
    tl,
)


@jit
def load_rows(
    pointer: tensor, first: tensor, count: tensor, stride_row: tensor, stride_column: tensor,
    COLUMNS: constexpr, ROWS: constexpr, WIDTH: constexpr, WHOLE: constexpr,
) -> Any:  # fmt: skip
    """`[ROWS, WIDTH]` of a matrix from row `first` on; zeros past `count` rows and `COLUMNS`."""
    rows = tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, WIDTH)[None, :]
    base = pointer + first.to(tl.int64) * stride_row
    at = base + rows * stride_row + columns * stride_column
    if WHOLE and COLUMNS == WIDTH:
        tile = tl.load(at)
    else:
        tile = tl.load(at, mask=(rows + first < count) & (columns < COLUMNS), other=0.0)
    return tile


@jit
def store_rows(
    pointer: tensor, tile: tensor, first: tensor, count: tensor,
    COLUMNS: constexpr, ROWS: constexpr, WIDTH: constexpr,
) -> None:  # fmt: skip
    """Store a tile to a contiguous matrix of `COLUMNS` columns and `count` rows."""
    rows = tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, WIDTH)[None, :]
    at = pointer + first.to(tl.int64) * COLUMNS + rows * COLUMNS + columns
    inside = (rows + first < count) & (columns < COLUMNS)
    tl.store(at, tile.to(pointer.dtype.element_ty), mask=inside)


@jit
def product(a: tensor, b: tensor, UPCAST: constexpr, PRECISION: constexpr) -> Any:
    """`a @ b` in float32. Triton's interpreter multiplies bfloat16 as integers: upcast there."""
    if UPCAST:
        result = tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    else:
        result = tl.dot(a, b, input_precision=PRECISION)
    return result


@jit
def any_of(tile: tensor) -> Any:
    """Whether one of a tile's elements is true."""
    return tl.max(tl.max(tile.to(tl.int32), 1), 0) > 0


@jit
def selected_product(
    weights: tensor, seen: tensor, items: tensor,
    SPARSE: constexpr, UPCAST: constexpr, PRECISION: constexpr,
) -> Any:  # fmt: skip
    """`weights @ items` over what is seen: `0 * NaN` must not reach a row that does not see it.

    Items that are not finite become the largest that is, harmless under a weight of zero; products
    of indicators then tell which rows do see one, and their sums are replaced. With a dense mask
    (`SPARSE`) an item seen under a weight of exactly zero does not count: Triton 3.9 cannot compile
    a product of indicators that come from the loaded mask.
    """
    largest = LARGEST
    if items.dtype == tl.float16:
        largest = LARGEST_HALF
    if items.dtype == tl.bfloat16:
        largest = LARGEST_BFLOAT
    bounded = tl.minimum(tl.maximum(items, -largest), largest).to(items.dtype)  # NaN is dropped
    total = product(weights, bounded, UPCAST, PRECISION)
    if any_of((tl.abs(items) < float("inf")) == 0):
        # 0 times an infinity is NaN, as is whatever meets a NaN: such a pair counts 256 at least,
        # and there are fewer keys than that in a tile. float16 holds these numbers exactly.
        sign = tl.where(weights > 0, 1.0, tl.where(weights < 0, -1.0, 0.0))
        if SPARSE:
            meeting = tl.where(sign == 0.0, tl.where(weights == weights, 0.0, 256.0), 1.0)
        else:
            meeting = tl.where(seen, tl.where(sign == 0.0, 256.0, 1.0), 0.0)
        endless = tl.where(items > largest, 1.0, tl.where(items < -largest, -1.0, 0.0))
        kind = tl.abs(endless) + tl.where(items != items, 256.0, 0.0)
        met = tl.dot(meeting.to(tl.float16), kind.to(tl.float16))
        surplus = tl.dot(sign.to(tl.float16), endless.to(tl.float16))
        limit = tl.where(surplus > 0.0, float("inf"), float("-inf"))
        # Infinities of both signs make NaN too.
        lost = (met >= 256.0) | ((met > 0.0) & (tl.abs(surplus) < met))
        total = tl.where(lost, float("nan"), tl.where(met > 0.0, limit, total))
    return total


@jit
def key_range(
    table: tensor, interval: tensor, block: tensor, stride_interval: tensor, queries: tensor,
    keys: tensor,
    MASK: constexpr, SPARSE: constexpr, ROWS: constexpr, COLUMNS: constexpr,
) -> Any:  # fmt: skip
    """Blocks of keys that a block of queries visits: first, first full, past full, past the last.

    `SPARSE`: a dense mask leaves no block certainly full.
    """
    if MASK == 2:
        at = table + interval * stride_interval + block * 4
        start, full_start = tl.load(at), tl.load(at + 1)
        full_end, end = tl.load(at + 2), tl.load(at + 3)
    else:
        start = block * 0
        full_start = block * 0
        by_all = block * 0 + keys
        by_some = block * 0 + keys
        if MASK == 1:
            first = block * ROWS
            last = tl.minimum(first + ROWS, queries)
            by_all = tl.minimum(tl.maximum(first + 1 + keys - queries, 0), keys)
            by_some = tl.minimum(tl.maximum(last + keys - queries, 0), keys)
        full_end = by_all // COLUMNS
        end = (by_some + COLUMNS - 1) // COLUMNS
    if SPARSE:
        full_start = start
        full_end = start
    return start, full_start, full_end, end


@jit
def query_range(
    table: tensor, block: tensor, blocks: tensor, stride_interval: tensor, queries: tensor,
    keys: tensor,
    MASK: constexpr, INTERVALS: constexpr, SPARSE: constexpr, ROWS: constexpr, COLUMNS: constexpr,
    SCAN: constexpr,
) -> Any:  # fmt: skip
    """Blocks of queries that see a block of keys: first, first full, past full, past the last.

    Between first and last there may be some that see nothing. Full ones that do not follow one
    another are treated as partial.
    """
    start = block * 0
    end = block * 0 + blocks
    full_start = block * 0
    full_end = block * 0
    if MASK == 2:
        start, full_start, full_end, end = _scanned(
            table, block, blocks, stride_interval, INTERVALS, SCAN
        )
    else:
        if MASK == 1:
            shift = keys - queries
            start = tl.minimum(tl.maximum(block * COLUMNS - shift, 0) // ROWS, blocks)
            last = block * COLUMNS + COLUMNS - 1
            full_start = tl.minimum((tl.maximum(last - shift, 0) + ROWS - 1) // ROWS, blocks)
        whole = block * COLUMNS + COLUMNS <= keys
        full_end = tl.where(whole, blocks, full_start)
    if SPARSE:
        full_start = start
        full_end = start
    return start, full_start, full_end, end


@jit
def _scanned(
    table: tensor, block: tensor, blocks: tensor, stride_interval: tensor,
    INTERVALS: constexpr, SCAN: constexpr,
) -> Any:  # fmt: skip
    """`query_range` by reading the whole table: `blocks / SCAN` steps, far fewer than tiles."""
    start = block * 0 + blocks
    full_start = block * 0 + blocks
    end = block * 0
    full_end = block * 0
    full_count = block * 0
    for first in range(0, blocks, SCAN):
        place = first + tl.arange(0, SCAN)
        inside = place < blocks
        some = place < 0
        full = place < 0
        for interval in tl.static_range(INTERVALS):
            at = table + interval * stride_interval + place * 4
            from_some = tl.load(at, mask=inside, other=0)
            from_full = tl.load(at + 1, mask=inside, other=0)
            past_full = tl.load(at + 2, mask=inside, other=0)
            past_some = tl.load(at + 3, mask=inside, other=0)
            some = some | ((from_some <= block) & (block < past_some))
            full = full | ((from_full <= block) & (block < past_full))
        start = tl.minimum(start, tl.min(tl.where(some, place, blocks), 0))
        end = tl.maximum(end, tl.max(tl.where(some, place + 1, 0), 0))
        full_start = tl.minimum(full_start, tl.min(tl.where(full, place, blocks), 0))
        full_end = tl.maximum(full_end, tl.max(tl.where(full, place + 1, 0), 0))
        full_count += tl.sum(full.to(tl.int32), 0)
    start = tl.minimum(start, end)
    whole = full_count == full_end - full_start
    full_start = tl.where(whole, full_start, end)
    full_end = tl.where(whole, full_end, end)
    return start, full_start, full_end, end


@jit
def seen_tile(
    bounds: tensor, dense: tensor, rows: tensor, columns: tensor, queries: tensor, keys: tensor,
    stride_bounds: tensor,
    stride_dense_row: tensor, stride_dense_key: tensor,
    MASK: constexpr, INTERVALS: constexpr, SPARSE: constexpr,
) -> Any:  # fmt: skip
    """Which keys of a tile each row sees; none beyond the ends."""
    seen = (rows < queries) & (columns < keys)
    if MASK == 1:
        seen = seen & (columns <= rows + (keys - queries))
    if MASK == 2:
        within = columns < 0
        for interval in tl.static_range(INTERVALS):
            at = bounds + 2 * interval * stride_bounds + rows
            low = tl.load(at, mask=rows < queries, other=0)
            high = tl.load(at + stride_bounds, mask=rows < queries, other=0)
            within = within | ((columns >= low) & (columns < high))
        seen = seen & within
    if SPARSE:
        at = dense + rows.to(tl.int64) * stride_dense_row + columns.to(tl.int64) * stride_dense_key
        seen = seen & (tl.load(at, mask=seen, other=0) != 0)
    return seen


@jit
def distances(rows: tensor, columns: tensor, shift: tensor) -> Any:
    """`j - p(i)`."""
    return columns - rows - shift


@jit
def bias_of_tile(
    bias: tensor, rows: tensor, columns: tensor, queries: tensor, keys: tensor, stride_row: tensor,
    stride_key: tensor,
    shift: tensor, reach: tensor, BIAS: constexpr,
) -> Any:  # fmt: skip
    """What is added to a tile's scores, in float32; `bias` points at what its head owns."""
    if BIAS == 0:
        added = 0.0
    if BIAS == 1:
        inside = (rows < queries) & (columns < keys)
        at = bias + rows.to(tl.int64) * stride_row + columns.to(tl.int64) * stride_key
        added = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    if BIAS == 2:
        slope = tl.load(bias).to(tl.float32)
        added = -slope * tl.abs(distances(rows, columns, shift)).to(tl.float32)
    if BIAS == 3:
        entry = tl.minimum(tl.maximum(distances(rows, columns, shift), -reach), reach) + reach
        added = tl.load(bias + entry * stride_key).to(tl.float32)
    return added


@jit
def log2_scores(
    dots: tensor, scale: tensor, softcap: tensor, added: tensor, SOFTCAP: constexpr, BIAS: constexpr
) -> Any:
    """Scores times log2(e), and the cap's derivative."""
    slope = 1.0
    if SOFTCAP:
        share = dots * (scale / softcap)
        size = tl.abs(share)
        decay = tl.exp2(size * (-2.0 * LOG2E))
        square = share * share
        # Near zero `1 - decay` would cancel; the series is right to 1e-8 there.
        series = 1.0 + square * (
            -1.0 / 3 + square * (2.0 / 15 + square * (-17.0 / 315 + square * (62.0 / 2835)))
        )
        far = (1.0 - decay) / (1.0 + decay)
        tanh = tl.where(size < 0.25, share * series, tl.where(share < 0.0, -far, far))
        slope = 4.0 * decay / ((1.0 + decay) * (1.0 + decay))
        scores = (tanh * softcap + added) * LOG2E
    else:
        scores = dots * (scale * LOG2E) if BIAS == 0 else (dots * scale + added) * LOG2E
    return scores, slope


@jit
def kept_tile(
    rows: tensor, columns: tensor, first: tensor, stride_row: tensor, seed_low: tensor,
    seed_high: tensor,
    threshold: tensor, SIGNED: constexpr,
) -> Any:  # fmt: skip
    """Which elements of a tile dropout keeps: `accel_kernels.philox.keep_mask` at their positions.

    `first` is the position of the head's first element.
    """
    position = first + rows.to(tl.int64) * stride_row + columns.to(tl.int64)
    low = (position >> 2) & 0xFFFFFFFF
    high = (position >> 34) & 0xFFFFFFFF
    key_low = seed_low.to(tl.int64) & 0xFFFFFFFF
    key_high = seed_high.to(tl.int64) & 0xFFFFFFFF
    if SIGNED:
        a, b, c, d = _philox_signed(low, high, key_low, key_high)
    else:
        none = (low * 0).to(tl.uint32)
        seed = key_low | (key_high << 32)
        a, b, c, d = tl.philox(seed, low.to(tl.uint32), high.to(tl.uint32), none, none)
    which = position & 3
    word = tl.where(which < 2, tl.where(which == 0, a, b), tl.where(which == 2, c, d))
    return word.to(tl.int64) >= threshold


@jit
def _philox_signed(low: tensor, high: tensor, key_low: tensor, key_high: tensor) -> Any:
    """Philox4x32-10 in int64, by halves of words: triton-ascend has no unsigned numbers."""
    a, b = low, high
    c, d = low * 0, low * 0
    for _ in tl.static_range(10):
        upper_a, lower_a = _wide_product(0xD2511F53, a)
        upper_c, lower_c = _wide_product(0xCD9E8D57, c)
        a = upper_c ^ b ^ key_low
        c = upper_a ^ d ^ key_high
        b = lower_c
        d = lower_a
        key_low = (key_low + 0x9E3779B9) & 0xFFFFFFFF
        key_high = (key_high + 0xBB67AE85) & 0xFFFFFFFF
    return a, b, c, d


@jit
def _wide_product(factor: constexpr, word: tensor) -> Any:
    """Upper and lower word of a product of two words, without leaving int64."""
    low = (word & 0xFFFF) * factor
    high = (word >> 16) * factor
    upper = (high + (low >> 16)) >> 16
    return upper, (low + ((high & 0xFFFF) << 16)) & 0xFFFFFFFF
