"""Kernels for the weights of a region: the gradients of its unscaled logits, one tile per item.

They recompute the logits once. `products` multiplies the weights by the inputs.
"""
# ruff: noqa: N803 - what is compiled in is in capitals, as is the custom in Triton

from __future__ import annotations

from typing import Any

from accel_kernels.contrastive_loss.triton.language import constexpr, jit, tensor, tl
from accel_kernels.contrastive_loss.triton.tiles import (
    counted_by_guide,
    harder,
    load_numbers,
    load_there,
    pairs_of_tile,
    products_of_tile,
    sum_of,
)


@jit
def softmax_weights_kernel(
    x: tensor, y: tensor, scale: tensor, hardness: tensor, x_reference: tensor,
    y_reference: tensor, x_sample: tensor, y_sample: tensor, x_group: tensor, y_group: tensor,
    guide_x: tensor, guide_y: tensor, x_threshold: tensor, y_threshold: tensor,
    x_lse: tensor, y_lse: tensor, x_lse_gradient: tensor, y_lse_gradient: tensor,
    x_positive_gradient: tensor, y_positive_gradient: tensor, weights: tensor, parts: tensor,
    items: tensor, rows: tensor, columns: tensor, first_row: tensor, first_column: tensor,
    row_blocks: tensor, stride: tensor,
    DEPTH: constexpr, BLOCK: constexpr, GUIDE_DEPTH: constexpr, GUIDE_BLOCK: constexpr,
    DUPLICATES: constexpr, GUIDED: constexpr, HARD: constexpr, ROWS: constexpr,
    COLUMNS: constexpr, ACC: constexpr, UPCAST: constexpr, PRECISION: constexpr,
) -> None:  # fmt: skip
    """Write `weights` of a region, `[row_blocks * ROWS, stride]`, and `parts` `[items]`.

    With P and Q the probabilities of rows and columns: `dx_lse P + dy_lse Q`, and for positives
    `dx_positive + dy_positive`. A part is the sum of a tile's weights times its products: of the
    gradient of the scale.
    """
    factor = tl.load(scale)
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        row, column = _place(item, row_blocks, first_row, first_column, ROWS, COLUMNS)
        x_there = load_there(x_sample, row, rows)
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
        x_base, x_weight = _anchors(x_lse, x_lse_gradient, row, x_there)
        y_base, y_weight = _anchors(y_lse, y_lse_gradient, column, y_there)
        x_taken = load_numbers(x_reference, row, x_there)
        y_taken = load_numbers(y_reference, column, y_there)
        by_row = tl.exp(logits - x_taken[:, None] - x_base[:, None]) * x_weight[:, None]
        by_column = tl.exp(logits - y_taken[None, :] - y_base[None, :]) * y_weight[None, :]
        found = tl.where(x_counted & (x_weight != 0.0)[:, None], by_row, 0.0)
        found += tl.where(y_counted & (y_weight != 0.0)[None, :], by_column, 0.0)
        x_share = load_numbers(x_positive_gradient, row, x_there)
        y_share = load_numbers(y_positive_gradient, column, y_there)
        found += tl.where(positive, x_share[:, None] + y_share[None, :], 0.0)
        _store_weights(weights, found, item, row_blocks, stride, ROWS, COLUMNS)
        # A weight of zero is no share of an infinity.
        share = sum_of(tl.where(found != 0.0, found * products, 0.0))
        tl.store(parts + item, share)


@jit
def sigmoid_kernel(
    x: tensor, y: tensor, scale: tensor, bias: tensor, hardness: tensor, x_sample: tensor,
    y_sample: tensor, x_group: tensor, y_group: tensor, guide_x: tensor, guide_y: tensor,
    x_threshold: tensor, y_threshold: tensor, weights: tensor, parts: tensor,
    items: tensor, rows: tensor, columns: tensor, first_row: tensor, first_column: tensor,
    row_blocks: tensor, stride: tensor,
    DEPTH: constexpr, BLOCK: constexpr, GUIDE_DEPTH: constexpr, GUIDE_BLOCK: constexpr,
    DUPLICATES: constexpr, GUIDED: constexpr, HARD: constexpr, GRADIENTS: constexpr,
    TERMS: constexpr, ROWS: constexpr, COLUMNS: constexpr, ACC: constexpr, UPCAST: constexpr,
    PRECISION: constexpr,
) -> None:  # fmt: skip
    """Write sums of losses and perhaps gradients of scale and bias to `parts`; and `weights`.

    `parts` is `[items]` or `[3, items]`; `weights` is as in `softmax_weights_kernel`.
    """
    factor, shift = tl.load(scale), tl.load(bias)
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        row, column = _place(item, row_blocks, first_row, first_column, ROWS, COLUMNS)
        x_there = load_there(x_sample, row, rows)
        y_there = load_there(y_sample, column, columns)
        products = products_of_tile(
            x, y, row, column, x_there, y_there, DEPTH, BLOCK, ROWS, COLUMNS, ACC, UPCAST,
            PRECISION,
        )  # fmt: skip
        positive, counted = pairs_of_tile(
            x_sample, y_sample, x_group, y_group, row, column, x_there, y_there, DUPLICATES
        )
        if GUIDED:
            x_counted, y_counted = counted_by_guide(
                guide_x, guide_y, x_threshold, y_threshold, row, column, x_there, y_there,
                positive, counted, GUIDE_DEPTH, GUIDE_BLOCK, ROWS, COLUMNS, ACC, UPCAST,
                PRECISION,
            )  # fmt: skip
            counted = x_counted & y_counted
        logits = products * factor + shift
        if HARD:
            logits = harder(logits, products, positive, hardness)
        signed = tl.where(positive, -logits, logits)
        decay = tl.exp(-tl.abs(signed))
        losses = tl.maximum(signed, 0.0) + _log_of_one_plus(decay, TERMS)
        losses = tl.where(signed == signed, losses, signed)  # a maximum may drop NaN
        tl.store(parts + item, sum_of(tl.where(counted, losses, 0.0)))
        if GRADIENTS:
            chance = tl.where(signed >= 0.0, 1.0, decay) / (1.0 + decay)
            found = tl.where(counted, tl.where(positive, -chance, chance), 0.0)
            _store_weights(weights, found, item, row_blocks, stride, ROWS, COLUMNS)
            share = sum_of(tl.where(counted, found * products, 0.0))
            tl.store(parts + items + item, share)
            tl.store(parts + 2 * items + item, sum_of(found))


@jit
def _place(
    item: tensor, row_blocks: tensor, first_row: tensor, first_column: tensor, ROWS: constexpr,
    COLUMNS: constexpr,
) -> Any:  # fmt: skip
    """Rows and columns of an item's tile."""
    row = first_row + (item % row_blocks) * ROWS + tl.arange(0, ROWS)
    column = first_column + (item // row_blocks) * COLUMNS + tl.arange(0, COLUMNS)
    return row, column


@jit
def _anchors(lse: tensor, gradient: tensor, index: tensor, there: tensor) -> Any:
    """Log-sum-exp and its gradient; both zero for an anchor that gives no gradient."""
    base = load_numbers(lse, index, there)
    weight = tl.where(base == float("-inf"), 0.0, load_numbers(gradient, index, there))
    return tl.where(weight == 0.0, 0.0, base), weight


@jit
def _store_weights(
    weights: tensor, found: tensor, item: tensor, row_blocks: tensor, stride: tensor,
    ROWS: constexpr, COLUMNS: constexpr,
) -> None:  # fmt: skip
    """The whole tile: zeros past the ends of the batch too."""
    row = (item % row_blocks) * ROWS + tl.arange(0, ROWS)
    column = (item // row_blocks) * COLUMNS + tl.arange(0, COLUMNS)
    at = weights + row[:, None] * stride + column[None, :]
    tl.store(at, found.to(weights.dtype.element_ty))


@jit
def _log_of_one_plus(value: tensor, TERMS: constexpr) -> Any:
    """`log(1 + value)` for values from 0 to 1: `2 atanh(value / (2 + value))` as a series.

    A small value keeps its precision, which matters where most of a billion pairs are easy
    negatives; Triton's own language has no such function on every chip.
    """
    ratio = value / (2.0 + value)
    square = ratio * ratio
    series = square * 0.0
    for step in tl.static_range(TERMS):
        series = series * square + 1.0 / (2 * (TERMS - 1 - step) + 1)
    return 2.0 * ratio * series
