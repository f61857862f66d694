"""The kernel for the gradient of the queries, and ALiBi's slopes, by blocks of queries."""
# ruff: noqa: N803 - what is compiled in is in capitals, as is the custom in Triton

from __future__ import annotations

from accel_kernels.segmented_attention.triton.language import constexpr, jit, tensor, tl
from accel_kernels.segmented_attention.triton.scores import load_log2, score_gradient
from accel_kernels.segmented_attention.triton.tiles import (
    any_of,
    bias_of_tile,
    distances,
    key_range,
    load_rows,
    product,
    seen_tile,
    selected_product,
    store_rows,
)


@jit
def queries_kernel(
    query: tensor, key: tensor, value: tensor, grad_out: tensor, lse: tensor, delta: tensor,
    grad_query: tensor, slopes: tensor, touched: tensor,
    bounds: tensor, table: tensor, dense: tensor, bias: tensor,
    query_0: tensor, query_1: tensor, query_2: tensor, query_3: tensor,
    key_0: tensor, key_1: tensor, key_2: tensor, key_3: tensor,
    value_0: tensor, value_1: tensor, value_2: tensor, value_3: tensor,
    grad_out_0: tensor, grad_out_1: tensor, grad_out_2: tensor, grad_out_3: tensor,
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
    """Write `grad_query` `[B, H, T, D]` and, by blocks of queries, the slopes' gradients."""
    blocks = (queries + ROWS - 1) // ROWS
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        block = blocks - 1 - item % blocks
        entry = (item // blocks).to(tl.int64)
        b, h = entry // heads, entry % heads
        first_row = block * ROWS
        rows = (first_row + tl.arange(0, ROWS))[:, None]
        query_at = query + b * query_0 + h * query_1
        q = load_rows(query_at, first_row, queries, query_2, query_3, HEAD, ROWS, WIDTH, False)
        grad = load_rows(
            grad_out + b * grad_out_0 + h * grad_out_1, first_row, queries, grad_out_2, grad_out_3,
            VALUE, ROWS, VALUE_WIDTH, False,
        )  # fmt: skip
        plane = entry * queries
        log2_lse = load_log2(lse + plane, rows, queries)
        owed = tl.load(delta + plane + rows, mask=rows < queries, other=0.0)
        key_at = key + b * key_0 + (h // group) * key_1
        value_at = value + b * value_0 + (h // group) * value_1
        acc = tl.zeros((ROWS, WIDTH), tl.float32)
        slope = tl.zeros((ROWS,), tl.float32)
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
                        v = load_rows(
                            value_at, first_key, keys, value_2, value_3,
                            VALUE, COLUMNS, VALUE_WIDTH, whole,
                        )  # fmt: skip
                        added = bias_of_tile(
                            bias + b * bias_0 + h * bias_1, rows, columns, queries, keys,
                            bias_2, bias_3, bias_shift, bias_reach, BIAS,
                        )  # fmt: skip
                        _, grad_biased, grad_dots = score_gradient(
                            product(q, tl.trans(k), UPCAST, PRECISION),
                            product(grad, tl.trans(v), UPCAST, PRECISION),
                            added, log2_lse, owed, seen, rows, columns, scale, softcap,
                            position_first + b * position_0 + h * position_1, position_2,
                            seed_low, seed_high, threshold, inverse_keep,
                            whole == 0, SOFTCAP, BIAS, DROPOUT, SIGNED,
                        )  # fmt: skip
                        if BIAS == 2:
                            distance = tl.abs(distances(rows, columns, bias_shift))
                            slope -= tl.sum(grad_biased * distance.to(tl.float32), 1)
                        weights = grad_dots.to(k.dtype)
                        if whole:
                            acc += product(weights, k, UPCAST, PRECISION)
                        else:
                            acc += selected_product(weights, seen, k, SPARSE, UPCAST, PRECISION)
                        visited += 1
        store_rows(grad_query + plane * HEAD, acc * scale, first_row, queries, HEAD, ROWS, WIDTH)
        if BIAS == 2:
            tl.store(slopes + entry * blocks + block, tl.sum(slope, 0))
        if COUNT:
            tl.store(touched + entry * blocks + block, visited)
