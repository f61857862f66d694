"""The kernel for the gradients of keys and values, by blocks of keys.

Tiles are transposed, keys by queries, so that no probability changes place. The query heads of a
group are summed in the same accumulator, one after the other: no atomics, one order.
"""
# ruff: noqa: N803 - what is compiled in is in capitals, as is the custom in Triton

from __future__ import annotations

from accel_kernels.segmented_attention.triton.language import constexpr, jit, tensor, tl
from accel_kernels.segmented_attention.triton.scores import load_log2, score_gradient
from accel_kernels.segmented_attention.triton.tiles import (
    any_of,
    bias_of_tile,
    load_rows,
    product,
    query_range,
    seen_tile,
    selected_product,
    store_rows,
)


@jit
def keys_kernel(
    query: tensor, key: tensor, value: tensor, grad_out: tensor, lse: tensor, delta: tensor,
    grad_key: tensor, grad_value: tensor, touched: tensor,
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
    ROWS: constexpr, COLUMNS: constexpr, UPCAST: constexpr, PRECISION: constexpr, SCAN: constexpr,
) -> None:  # fmt: skip
    """Write `grad_key` `[B, H_kv, S, D]` and `grad_value` `[B, H_kv, S, D_v]`."""
    blocks = (keys + COLUMNS - 1) // COLUMNS
    query_blocks = (queries + ROWS - 1) // ROWS
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        block = item % blocks  # a causal mask's longest first
        entry = (item // blocks).to(tl.int64)
        b, h_kv = entry // (heads // group), entry % (heads // group)
        first_key = block * COLUMNS
        columns = (first_key + tl.arange(0, COLUMNS))[:, None]
        key_at = key + b * key_0 + h_kv * key_1
        k = load_rows(key_at, first_key, keys, key_2, key_3, HEAD, COLUMNS, WIDTH, False)
        value_at = value + b * value_0 + h_kv * value_1
        v = load_rows(
            value_at, first_key, keys, value_2, value_3, VALUE, COLUMNS, VALUE_WIDTH, False
        )
        acc_k = tl.zeros((COLUMNS, WIDTH), tl.float32)
        acc_v = tl.zeros((COLUMNS, VALUE_WIDTH), tl.float32)
        visited = block * 0
        start, full, past_full, past = query_range(
            table + b * table_batch, block, query_blocks, table_interval, queries, keys,
            MASK, INTERVALS, SPARSE, ROWS, COLUMNS, SCAN,
        )  # fmt: skip
        for member in range(group):
            h = h_kv * group + member
            plane = (b * heads + h) * queries
            query_at = query + b * query_0 + h * query_1
            grad_at = grad_out + b * grad_out_0 + h * grad_out_1
            for whole in tl.static_range(2):
                count = past_full - full if whole else past - start - (past_full - full)
                for step in range(count):
                    at = full + step if whole else start + step
                    if whole == 0:
                        at = tl.where(at < full, at, at + past_full - full)
                    first_row = at * ROWS
                    rows = (first_row + tl.arange(0, ROWS))[None, :]
                    seen = rows >= 0
                    wanted = True
                    if whole == 0:
                        seen = seen_tile(
                            bounds + b * bounds_batch, dense + b * dense_0 + h * dense_1,
                            rows, columns, queries, keys, bounds_end, dense_2, dense_3,
                            MASK, INTERVALS, SPARSE,
                        )  # fmt: skip
                        wanted = any_of(seen)
                    if wanted:
                        q = load_rows(
                            query_at, first_row, queries, query_2, query_3, HEAD, ROWS, WIDTH, False
                        )
                        grad = load_rows(
                            grad_at, first_row, queries, grad_out_2, grad_out_3,
                            VALUE, ROWS, VALUE_WIDTH, False,
                        )  # fmt: skip
                        added = bias_of_tile(
                            bias + b * bias_0 + h * bias_1, rows, columns, queries, keys,
                            bias_2, bias_3, bias_shift, bias_reach, BIAS,
                        )  # fmt: skip
                        dropped, _, grad_dots = score_gradient(
                            product(k, tl.trans(q), UPCAST, PRECISION),
                            product(v, tl.trans(grad), UPCAST, PRECISION),
                            added, load_log2(lse + plane, rows, queries),
                            tl.load(delta + plane + rows, mask=rows < queries, other=0.0),
                            seen, rows, columns, scale, softcap,
                            position_first + b * position_0 + h * position_1, position_2,
                            seed_low, seed_high, threshold, inverse_keep,
                            whole == 0, SOFTCAP, BIAS, DROPOUT, SIGNED,
                        )  # fmt: skip
                        dropped = dropped.to(grad.dtype)
                        weights = grad_dots.to(q.dtype)
                        if whole:
                            acc_v += product(dropped, grad, UPCAST, PRECISION)
                            acc_k += product(weights, q, UPCAST, PRECISION)
                        else:
                            acc_v += selected_product(
                                dropped, seen, grad, SPARSE, UPCAST, PRECISION
                            )
                            acc_k += selected_product(weights, seen, q, SPARSE, UPCAST, PRECISION)
                        visited += 1
        plane = entry * keys
        store_rows(grad_key + plane * HEAD, acc_k * scale, first_key, keys, HEAD, COLUMNS, WIDTH)
        store_rows(grad_value + plane * VALUE, acc_v, first_key, keys, VALUE, COLUMNS, VALUE_WIDTH)
        if COUNT:
            tl.store(touched + entry * blocks + block, visited)
