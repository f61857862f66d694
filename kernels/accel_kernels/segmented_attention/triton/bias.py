"""The gradient of a bias, without atomics: whoever owns an element of it visits all its scores.

An element of a dense bias belongs to the tile it is in, or to the row or column of tiles over which
the bias is broadcast; an entry of a table of distances belongs to two neighbouring diagonals of
tiles. Probabilities are computed once more for it. ALiBi's slopes come with the queries' gradient.
"""
# ruff: noqa: N803 - what is compiled in is in capitals, as is the custom in Triton

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from accel_kernels.segmented_attention.call import Bias
from accel_kernels.segmented_attention.triton.language import constexpr, jit, tensor, tl
from accel_kernels.segmented_attention.triton.launch import Blocks, Launch
from accel_kernels.segmented_attention.triton.scores import load_log2, score_gradient
from accel_kernels.segmented_attention.triton.tiles import (
    any_of,
    bias_of_tile,
    load_rows,
    product,
    seen_tile,
)

# What a work item owns.
_TILE, _ROWS, _COLUMNS, _DIAGONAL = 0, 1, 2, 3


def bias_gradient(launch: Launch, bias: Bias, slopes: Tensor, shared: dict[str, Any]) -> Tensor:
    """In the shape and dtype of the bias tensor.

    Args:
        launch: Of the call.
        bias: Its bias.
        slopes: `[B, H, blocks of queries]`, parts of the gradient of ALiBi's slopes.
        shared: Arguments of the kernels that compute gradients.
    """
    if bias.kind == "alibi":
        found = slopes.sum(-1).sum_to_size(bias.tensor.shape)
    elif bias.kind == "dense":
        found = _dense_gradient(launch, bias.tensor, shared)
    else:
        found = _table_gradient(launch, bias, shared)
    return found.to(bias.tensor.dtype)


def _dense_gradient(launch: Launch, tensor: Tensor, shared: dict[str, Any]) -> Tensor:
    sizes, blocks = launch.sizes, launch.row.backward
    batch, heads = tensor.shape[:2]
    shape: tuple[int, ...]
    rows, columns = -(-sizes.query_length // blocks.rows), -(-sizes.key_length // blocks.keys)
    if tensor.shape[3] == 1:
        owner, items, shape = _ROWS, rows, (sizes.query_length,)
    elif tensor.shape[2] == 1:
        owner, items, shape = _COLUMNS, columns, (sizes.key_length,)
    else:
        owner, items, shape = _TILE, rows * columns, tuple(tensor.shape[2:])
    dtype = tensor.dtype if owner == _TILE else torch.float32
    parts = torch.empty((batch, heads, *shape), dtype=dtype, device=tensor.device)
    _start(launch, parts, owner, batch * heads * items, blocks, shared)
    if owner == _TILE:
        return parts
    parts = parts.unsqueeze(-1 if owner == _ROWS else -2)
    return parts.sum_to_size(tensor.shape)


def _table_gradient(launch: Launch, bias: Bias, shared: dict[str, Any]) -> Tensor:
    """Sums by distance, then the entries; what lies beyond the table belongs to its ends."""
    heads, entries = bias.tensor.shape
    side = min(launch.row.backward.rows, launch.row.backward.keys)
    blocks = launch.row.backward._replace(rows=side, keys=side)
    sizes = launch.sizes
    rows, columns = -(-sizes.query_length // side), -(-sizes.key_length // side)
    diagonals = rows + columns - 1
    parts = torch.empty(
        (1, heads, diagonals, 2, side), dtype=torch.float32, device=launch.query.device
    )
    _start(launch, parts, _DIAGONAL, heads * diagonals, blocks, shared)
    # The upper half of a diagonal's distances is the lower half of the next one's.
    lower, upper = (half.flatten(1) for half in parts[0].unbind(2))
    by_distance = F.pad(lower, (0, side)) + F.pad(upper, (side, 0))
    least = (1 - rows) * side - bias.place(sizes) - (side - 1)  # distance of the first sum
    reach = entries // 2
    below = min(max(1 - reach - least, 0), by_distance.shape[1])
    above = min(max(reach - least, below), by_distance.shape[1])
    found = by_distance.new_zeros(heads, entries)
    found[:, 0] = by_distance[:, :below].sum(1)
    found[:, least + below + reach :][:, : above - below] = by_distance[:, below:above]
    found[:, -1] += by_distance[:, above:].sum(1)
    return found


def _start(
    launch: Launch, parts: Tensor, owner: int, items: int, blocks: Blocks, shared: dict[str, Any]
) -> None:
    batch, heads = parts.shape[:2]
    launch.start(
        bias_kernel,
        items,
        parts=parts,
        part_heads=heads,
        batch_members=launch.sizes.batch // batch,
        head_members=launch.sizes.heads // heads,
        OWNER=owner,
        **shared,
        **launch.masking(blocks),
    )


@jit
def bias_kernel(
    query: tensor, key: tensor, value: tensor, grad_out: tensor, lse: tensor, delta: tensor,
    parts: tensor,
    bounds: tensor, dense: tensor, bias: tensor,
    query_0: tensor, query_1: tensor, query_2: tensor, query_3: tensor,
    key_0: tensor, key_1: tensor, key_2: tensor, key_3: tensor,
    value_0: tensor, value_1: tensor, value_2: tensor, value_3: tensor,
    grad_out_0: tensor, grad_out_1: tensor, grad_out_2: tensor, grad_out_3: tensor,
    bounds_batch: tensor, bounds_end: tensor,
    dense_0: tensor, dense_1: tensor, dense_2: tensor, dense_3: tensor,
    bias_0: tensor, bias_1: tensor, bias_2: tensor, bias_3: tensor, bias_shift: tensor,
    bias_reach: tensor,
    position_first: tensor, position_0: tensor, position_1: tensor, position_2: tensor,
    seed_low: tensor, seed_high: tensor, threshold: tensor, inverse_keep: tensor,
    items: tensor, heads: tensor, group: tensor, queries: tensor, keys: tensor, scale: tensor,
    softcap: tensor,
    part_heads: tensor, batch_members: tensor, head_members: tensor,
    MASK: constexpr, INTERVALS: constexpr, SPARSE: constexpr, BIAS: constexpr,
    SOFTCAP: constexpr, DROPOUT: constexpr, SIGNED: constexpr,
    HEAD: constexpr, VALUE: constexpr, WIDTH: constexpr, VALUE_WIDTH: constexpr,
    ROWS: constexpr, COLUMNS: constexpr, UPCAST: constexpr, PRECISION: constexpr, OWNER: constexpr,
) -> None:  # fmt: skip
    """Write the gradients of biased scores, summed over what the bias does not tell apart."""
    row_blocks = (queries + ROWS - 1) // ROWS
    key_blocks = (keys + COLUMNS - 1) // COLUMNS
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        owners, steps = _owners_and_steps(row_blocks, key_blocks, OWNER)
        own = item % owners
        entry = item // owners
        acc = tl.zeros((ROWS, COLUMNS), tl.float32)
        for step in range(batch_members * head_members * steps):
            b = (entry // part_heads + step // steps // head_members).to(tl.int64)
            h = (entry % part_heads + step // steps % head_members).to(tl.int64)
            row_block, key_block = _tile_of(own, step % steps, row_blocks, key_blocks, OWNER)
            first_row, first_key = row_block * ROWS, key_block * COLUMNS
            rows = (first_row + tl.arange(0, ROWS))[:, None]
            columns = (first_key + tl.arange(0, COLUMNS))[None, :]
            inside = (key_block >= 0) & (key_block < key_blocks)
            if inside:
                seen = seen_tile(
                    bounds + b * bounds_batch, dense + b * dense_0 + h * dense_1,
                    rows, columns, queries, keys, bounds_end, dense_2, dense_3,
                    MASK, INTERVALS, SPARSE,
                )  # fmt: skip
                if any_of(seen):
                    plane = (b * heads + h) * queries
                    query_at = query + b * query_0 + h * query_1
                    q = load_rows(
                        query_at, first_row, queries, query_2, query_3, HEAD, ROWS, WIDTH, False
                    )
                    grad_at = grad_out + b * grad_out_0 + h * grad_out_1
                    grad = load_rows(
                        grad_at, first_row, queries, grad_out_2, grad_out_3,
                        VALUE, ROWS, VALUE_WIDTH, False,
                    )  # fmt: skip
                    key_at = key + b * key_0 + (h // group) * key_1
                    k = load_rows(
                        key_at, first_key, keys, key_2, key_3, HEAD, COLUMNS, WIDTH, False
                    )
                    value_at = value + b * value_0 + (h // group) * value_1
                    v = load_rows(
                        value_at, first_key, keys, value_2, value_3,
                        VALUE, COLUMNS, VALUE_WIDTH, False,
                    )  # fmt: skip
                    added = bias_of_tile(
                        bias + b * bias_0 + h * bias_1, rows, columns, queries, keys,
                        bias_2, bias_3, bias_shift, bias_reach, BIAS,
                    )  # fmt: skip
                    _, grad_biased, _ = score_gradient(
                        product(q, tl.trans(k), UPCAST, PRECISION),
                        product(grad, tl.trans(v), UPCAST, PRECISION),
                        added, load_log2(lse + plane, rows, queries),
                        tl.load(delta + plane + rows, mask=rows < queries, other=0.0),
                        seen, rows, columns, scale, softcap,
                        position_first + b * position_0 + h * position_1, position_2,
                        seed_low, seed_high, threshold, inverse_keep,
                        True, SOFTCAP, BIAS, DROPOUT, SIGNED,
                    )  # fmt: skip
                    acc += grad_biased
        _store_part(
            parts, acc, entry.to(tl.int64), own, queries, keys, row_blocks, key_blocks,
            ROWS, COLUMNS, OWNER,
        )  # fmt: skip


@jit
def _owners_and_steps(row_blocks: tensor, key_blocks: tensor, OWNER: constexpr) -> Any:
    """Work items of one head of the bias, and tiles of one of them."""
    owners = row_blocks
    steps = key_blocks
    if OWNER == 0:
        owners = row_blocks * key_blocks
        steps = row_blocks // row_blocks
    if OWNER == 2:
        owners = key_blocks
        steps = row_blocks
    if OWNER == 3:
        owners = row_blocks + key_blocks - 1
        steps = row_blocks
    return owners, steps


@jit
def _tile_of(
    own: tensor, step: tensor, row_blocks: tensor, key_blocks: tensor, OWNER: constexpr
) -> Any:
    """Blocks of queries and keys of a step; on a diagonal the latter may not exist."""
    row_block = own
    key_block = step
    if OWNER == 0:
        row_block = own // key_blocks
        key_block = own % key_blocks
    if OWNER == 2:
        row_block = step
        key_block = own
    if OWNER == 3:
        row_block = step
        key_block = step + own - (row_blocks - 1)
    return row_block, key_block


@jit
def _store_part(
    parts: tensor, acc: tensor, entry: tensor, own: tensor, queries: tensor, keys: tensor,
    row_blocks: tensor, key_blocks: tensor, ROWS: constexpr, COLUMNS: constexpr, OWNER: constexpr,
) -> None:  # fmt: skip
    row = tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    if OWNER == 0:
        row += own // key_blocks * ROWS
        column += own % key_blocks * COLUMNS
        at = parts + (entry * queries + row[:, None]) * keys + column[None, :]
        inside = (row[:, None] < queries) & (column[None, :] < keys)
        tl.store(at, acc.to(parts.dtype.element_ty), mask=inside)
    if OWNER == 1:
        row += own * ROWS
        tl.store(parts + entry * queries + row, tl.sum(acc, 1), mask=row < queries)
    if OWNER == 2:
        column += own * COLUMNS
        tl.store(parts + entry * keys + column, tl.sum(acc, 0), mask=column < keys)
    if OWNER == 3:
        base = parts + (entry * (row_blocks + key_blocks - 1) + own) * (2 * ROWS)
        place = column[None, :] - row[:, None] + (ROWS - 1)
        for at in range(2 * ROWS):
            along = tl.sum(tl.sum(tl.where(place == at, acc, 0.0), 1), 0)
            tl.store(base + at, along)
