"""The forward kernel: online softmax by blocks of queries (arXiv 1805.02867, 2205.14135).

One work item is a block of queries of one head; a program takes every `num_programs`-th item, so
the grid may be as small as the number of cores. Per item, blocks of keys that only part of the rows
see come first, each masked, and skipped where nothing is seen; then those that all rows see in
whole.
"""
# ruff: noqa: N803 - what is compiled in is in capitals, as is the custom in Triton

from __future__ import annotations

from accel_kernels.segmented_attention.triton.language import LN2, constexpr, jit, tensor, tl
from accel_kernels.segmented_attention.triton.tiles import (
    any_of,
    bias_of_tile,
    kept_tile,
    key_range,
    load_rows,
    log2_scores,
    product,
    seen_tile,
    selected_product,
    store_rows,
)


@jit
def forward_kernel(
    query: tensor, key: tensor, value: tensor, out: tensor, lse: tensor, touched: tensor,
    bounds: tensor, table: tensor, dense: tensor, bias: tensor,
    query_0: tensor, query_1: tensor, query_2: tensor, query_3: tensor,
    key_0: tensor, key_1: tensor, key_2: tensor, key_3: tensor,
    value_0: tensor, value_1: tensor, value_2: tensor, value_3: tensor,
    bounds_batch: tensor, bounds_end: tensor, table_batch: tensor, table_interval: tensor,
    dense_0: tensor, dense_1: tensor, dense_2: tensor, dense_3: tensor,
    bias_0: tensor, bias_1: tensor, bias_2: tensor, bias_3: tensor, bias_shift: tensor,
    bias_reach: tensor,
    position_first: tensor, position_0: tensor, position_1: tensor, position_2: tensor,
    seed_low: tensor, seed_high: tensor, threshold: tensor, inverse_keep: tensor,
    items: tensor, heads: tensor, group: tensor, queries: tensor, keys: tensor, scale: tensor,
    softcap: tensor,
    MASK: constexpr, INTERVALS: constexpr, SPARSE: constexpr, BIAS: constexpr,
    SOFTCAP: constexpr, DROPOUT: constexpr, SIGNED: constexpr, COUNT: constexpr,
    HEAD: constexpr, VALUE: constexpr, WIDTH: constexpr, VALUE_WIDTH: constexpr,
    ROWS: constexpr, COLUMNS: constexpr, UPCAST: constexpr, PRECISION: constexpr,
) -> None:  # fmt: skip
    """Write `out` `[B, H, T, D_v]` and `lse` `[B, H, T]`, both contiguous."""
    blocks = (queries + ROWS - 1) // ROWS
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        block = blocks - 1 - item % blocks  # a causal mask's longest first
        entry = (item // blocks).to(tl.int64)
        b, h = entry // heads, entry % heads
        first_row = block * ROWS
        rows = (first_row + tl.arange(0, ROWS))[:, None]
        query_at = query + b * query_0 + h * query_1
        q = load_rows(query_at, first_row, queries, query_2, query_3, HEAD, ROWS, WIDTH, False)
        key_at = key + b * key_0 + (h // group) * key_1
        value_at = value + b * value_0 + (h // group) * value_1
        top = tl.full((ROWS,), float("-inf"), tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        acc = tl.zeros((ROWS, VALUE_WIDTH), tl.float32)
        visited = block * 0
        for interval in range(INTERVALS):
            start, full, past_full, past = key_range(
                table + b * table_batch, interval, block, table_interval, queries, keys,
                MASK, SPARSE, ROWS, COLUMNS,
            )  # fmt: skip
            for whole in tl.static_range(2):
                count = past_full - full if whole else past - start - (past_full - full)
                for step in range(count):
                    at = full + step if whole else start + step
                    if whole == 0:
                        at = tl.where(at < full, at, at + past_full - full)
                    first_key = at * COLUMNS
                    columns = (first_key + tl.arange(0, COLUMNS))[None, :]
                    seen = columns >= 0
                    wanted = True
                    if whole == 0:
                        seen = seen_tile(
                            bounds + b * bounds_batch, dense + b * dense_0 + h * dense_1,
                            rows, columns, queries, keys, bounds_end, dense_2, dense_3,
                            MASK, INTERVALS, SPARSE,
                        )  # fmt: skip
                        wanted = any_of(seen)
                    if wanted:
                        k = load_rows(
                            key_at, first_key, keys, key_2, key_3, HEAD, COLUMNS, WIDTH, whole
                        )
                        added = bias_of_tile(
                            bias + b * bias_0 + h * bias_1, rows, columns, queries, keys,
                            bias_2, bias_3, bias_shift, bias_reach, BIAS,
                        )  # fmt: skip
                        dots = product(q, tl.trans(k), UPCAST, PRECISION)
                        scores, _ = log2_scores(dots, scale, softcap, added, SOFTCAP, BIAS)
                        if whole == 0:
                            scores = tl.where(seen, scores, float("-inf"))
                        new_top = tl.maximum(top, tl.max(scores, 1))
                        # A row that has seen nothing yet: its weights are exp2(-inf - 0).
                        base = tl.where(new_top == float("-inf"), 0.0, new_top)
                        weights = tl.exp2(scores - base[:, None])
                        shrink = tl.exp2(top - base)
                        total = total * shrink + tl.sum(weights, 1)
                        top = new_top
                        if DROPOUT:
                            kept = kept_tile(
                                rows, columns, position_first + b * position_0 + h * position_1,
                                position_2, seed_low, seed_high, threshold, SIGNED,
                            )  # fmt: skip
                            weights = tl.where(kept, weights, 0.0)
                        v = load_rows(
                            value_at, first_key, keys, value_2, value_3,
                            VALUE, COLUMNS, VALUE_WIDTH, whole,
                        )  # fmt: skip
                        weights = weights.to(v.dtype)
                        if whole:
                            part = product(weights, v, UPCAST, PRECISION)
                        else:
                            part = selected_product(weights, seen, v, SPARSE, UPCAST, PRECISION)
                        acc = acc * shrink[:, None] + part
                        visited += 1
        some = total != 0.0  # NaN is something
        divisor = tl.where(some, total, 1.0)
        if DROPOUT:
            acc = acc * inverse_keep
        plane = entry * queries
        store_rows(
            out + plane * VALUE, acc / divisor[:, None], first_row, queries,
            VALUE, ROWS, VALUE_WIDTH,
        )  # fmt: skip
        row = first_row + tl.arange(0, ROWS)
        logarithm = tl.where(some, (top + tl.log2(divisor)) * LN2, float("-inf"))
        tl.store(lse + plane + row, logarithm, mask=row < queries)
        if COUNT:
            tl.store(touched + entry * blocks + block, visited)
