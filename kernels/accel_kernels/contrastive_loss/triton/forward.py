"""The forward kernel: row and online column log-sum-exp, from one pass over the tiles.

A work item is a block of rows and a group of `STEPS` blocks of columns. Rows keep a running maximum
and sum (arXiv 1805.02867) over the group; columns get one maximum and sum per block of rows. Both
are written as parts, which the host merges in order: no atomics, so the same inputs give the same
bits. It starts the kernel for a stripe of rows at a time, which bounds the parts of the columns.
"""
# ruff: noqa: N803 - what is compiled in is in capitals, as is the custom in Triton

from __future__ import annotations

from accel_kernels.contrastive_loss.triton.language import constexpr, jit, tensor, tl
from accel_kernels.contrastive_loss.triton.tiles import (
    counted_by_guide,
    finite_base,
    harder,
    load_numbers,
    load_there,
    pairs_of_tile,
    products_of_tile,
)


@jit
def sums_kernel(
    x: tensor, y: tensor, scale: tensor, hardness: tensor, x_reference: tensor,
    y_reference: tensor, x_sample: tensor, y_sample: tensor, x_group: tensor, y_group: tensor,
    guide_x: tensor, guide_y: tensor, x_threshold: tensor, y_threshold: tensor,
    row_parts: tensor, column_parts: tensor,
    items: tensor, rows: tensor, columns: tensor, first_row: tensor, row_blocks: tensor,
    column_blocks: tensor,
    DEPTH: constexpr, BLOCK: constexpr, GUIDE_DEPTH: constexpr, GUIDE_BLOCK: constexpr,
    DUPLICATES: constexpr, GUIDED: constexpr, HARD: constexpr, ROWS: constexpr,
    COLUMNS: constexpr, STEPS: constexpr, ACC: constexpr, UPCAST: constexpr, PRECISION: constexpr,
) -> None:  # fmt: skip
    """Write parts of a stripe, each with the fields maximum, sum, positives, count.

    `row_parts` `[groups, 4, row_blocks * ROWS]`; `column_parts` `[row_blocks, 4, columns]`.
    """
    factor = tl.load(scale)
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        block = item % row_blocks
        group = item // row_blocks
        within = block * ROWS + tl.arange(0, ROWS)
        row = first_row + within
        x_there = load_there(x_sample, row, rows)
        x_taken = load_numbers(x_reference, row, x_there)
        top = tl.full((ROWS,), float("-inf"), ACC)
        total = tl.zeros((ROWS,), ACC)
        x_positive = tl.zeros((ROWS,), ACC)
        x_count = tl.zeros((ROWS,), ACC)
        last = tl.minimum(group * STEPS + STEPS, column_blocks)
        for at in range(group * STEPS, last):
            column = at * COLUMNS + tl.arange(0, COLUMNS)
            y_there = load_there(y_sample, column, columns)
            products = products_of_tile(
                x, y, row, column, x_there, y_there, DEPTH, BLOCK, ROWS, COLUMNS, ACC, UPCAST,
                PRECISION,
            )  # fmt: skip
            positive, x_counted = pairs_of_tile(
                x_sample, y_sample, x_group, y_group, row, column, x_there, y_there, DUPLICATES
            )
            y_counted = x_counted
            if GUIDED:
                x_counted, y_counted = counted_by_guide(
                    guide_x, guide_y, x_threshold, y_threshold, row, column, x_there, y_there,
                    positive, x_counted, GUIDE_DEPTH, GUIDE_BLOCK, ROWS, COLUMNS, ACC, UPCAST,
                    PRECISION,
                )  # fmt: skip
            logits = products * factor
            if HARD:
                logits = harder(logits, products, positive, hardness)
            by_row = logits - x_taken[:, None]
            by_column = logits - load_numbers(y_reference, column, y_there)[None, :]

            exponent = tl.where(x_counted, by_row, float("-inf"))
            new_top = tl.maximum(top, tl.max(exponent, 1))
            base = finite_base(new_top)
            total = total * tl.exp(top - base) + tl.sum(tl.exp(exponent - base[:, None]), 1)
            top = new_top

            exponent = tl.where(y_counted, by_column, float("-inf"))
            y_top = tl.max(exponent, 0)
            y_total = tl.sum(tl.exp(exponent - finite_base(y_top)[None, :]), 0)

            matched = tl.where(positive, by_row, 0.0)
            x_positive += tl.sum(matched, 1)
            x_count += tl.sum(positive.to(ACC), 1)
            matched = tl.where(positive, by_column, 0.0)
            y_positive = tl.sum(matched, 0)
            y_count = tl.sum(positive.to(ACC), 0)
            inside = column < columns
            part = column_parts + block.to(tl.int64) * 4 * columns + column
            tl.store(part, y_top, mask=inside)
            tl.store(part + columns, y_total, mask=inside)
            tl.store(part + 2 * columns, y_positive, mask=inside)
            tl.store(part + 3 * columns, y_count, mask=inside)
        length = row_blocks * ROWS
        part = row_parts + group.to(tl.int64) * 4 * length + within
        tl.store(part, top)
        tl.store(part + length, total)
        tl.store(part + 2 * length, x_positive)
        tl.store(part + 3 * length, x_count)
