"""What every kernel does with a tile of the logits: load, multiply, tell positives from negatives.

A tile has `ROWS` rows of `x` and `COLUMNS` rows of `y`. What is absent is never loaded: it counts
as zeros, and no pair of it counts.
"""
# ruff: noqa: N803 - what is compiled in is in capitals, as is the custom in Triton

from __future__ import annotations

from typing import Any

from accel_kernels.contrastive_loss.triton.language import constexpr, jit, tensor, tl


@jit
def load_there(sample: tensor, index: tensor, count: tensor) -> Any:
    """Whether rows are there; none is past the end."""
    return tl.load(sample + index, mask=index < count, other=-1) != -1


@jit
def load_numbers(pointer: tensor, index: tensor, there: tensor) -> Any:
    """One number of each row; zero where the row is absent."""
    return tl.load(pointer + index, mask=there, other=0)


@jit
def load_features(
    pointer: tensor, index: tensor, there: tensor, feature: tensor, DEPTH: constexpr,
    BLOCK: constexpr,
) -> Any:  # fmt: skip
    """`[rows, BLOCK]` of a contiguous `[count, DEPTH]`; zeros for absent rows and past `DEPTH`."""
    at = pointer + index.to(tl.int64)[:, None] * DEPTH + feature[None, :]
    inside = there[:, None] & (feature >= 0)[None, :]
    if DEPTH % BLOCK != 0:
        inside = inside & (feature < DEPTH)[None, :]
    return tl.load(at, mask=inside, other=0.0)


@jit
def product(a: tensor, b: tensor, total: tensor, UPCAST: constexpr, PRECISION: constexpr) -> Any:
    """`a @ b + total`. Triton's interpreter multiplies bfloat16 as integers: upcast there."""
    if UPCAST:
        found = tl.dot(a.to(total.dtype), b.to(total.dtype), total, input_precision="ieee")
    else:
        found = tl.dot(a, b, total, input_precision=PRECISION)
    return found


@jit
def products_of_tile(
    x: tensor, y: tensor, row: tensor, column: tensor, x_there: tensor, y_there: tensor,
    DEPTH: constexpr, BLOCK: constexpr, ROWS: constexpr, COLUMNS: constexpr, ACC: constexpr,
    UPCAST: constexpr, PRECISION: constexpr,
) -> Any:  # fmt: skip
    """`x_i . y_j` `[ROWS, COLUMNS]`, summed by blocks of features, so that any depth will do."""
    total = tl.zeros((ROWS, COLUMNS), ACC)
    for first in range(0, DEPTH, BLOCK):
        feature = first + tl.arange(0, BLOCK)
        a = load_features(x, row, x_there, feature, DEPTH, BLOCK)
        b = load_features(y, column, y_there, feature, DEPTH, BLOCK)
        total = product(a, tl.trans(b), total, UPCAST, PRECISION)
    return total


@jit
def pairs_of_tile(
    x_sample: tensor, y_sample: tensor, x_group: tensor, y_group: tensor, row: tensor,
    column: tensor, x_there: tensor, y_there: tensor, DUPLICATES: constexpr,
) -> Any:  # fmt: skip
    """Which pairs are positive and which count, `[ROWS, COLUMNS]`; `Pairing` before its guide."""
    there = x_there[:, None] & y_there[None, :]
    x_number = load_numbers(x_sample, row, x_there)
    y_number = load_numbers(y_sample, column, y_there)
    positive = there & (x_number[:, None] == y_number[None, :])
    counted = there
    if DUPLICATES != 0:
        x_number = load_numbers(x_group, row, x_there)
        y_number = load_numbers(y_group, column, y_there)
        alike = there & (x_number >= 0)[:, None] & (x_number[:, None] == y_number[None, :])
        if DUPLICATES == 1:
            positive = positive | alike
        else:
            counted = there & (positive | (alike == 0))
    return positive, counted


@jit
def counted_by_guide(
    guide_x: tensor, guide_y: tensor, x_threshold: tensor, y_threshold: tensor,
    row: tensor, column: tensor, x_there: tensor, y_there: tensor, positive: tensor,
    counted: tensor,
    DEPTH: constexpr, BLOCK: constexpr, ROWS: constexpr, COLUMNS: constexpr, ACC: constexpr,
    UPCAST: constexpr, PRECISION: constexpr,
) -> Any:  # fmt: skip
    """What counts for rows, and for columns: no negative above the anchor's threshold."""
    similarity = products_of_tile(
        guide_x, guide_y, row, column, x_there, y_there, DEPTH, BLOCK, ROWS, COLUMNS, ACC, UPCAST,
        PRECISION,
    )  # fmt: skip
    x_most = load_numbers(x_threshold, row, x_there)[:, None]
    y_most = load_numbers(y_threshold, column, y_there)[None, :]
    for_rows = counted & (positive | ((similarity > x_most) == 0))
    for_columns = counted & (positive | ((similarity > y_most) == 0))
    return for_rows, for_columns


@jit
def harder(logits: tensor, products: tensor, positive: tensor, hardness: tensor) -> Any:
    """Logits, those of negatives plus their hardness."""
    return logits + tl.where(positive, 0.0, products * tl.load(hardness))


@jit
def finite_base(top: tensor) -> Any:
    """What exponents are taken from: the greatest, or 0 where that would make `inf - inf`."""
    return tl.where(tl.abs(top) == float("inf"), 0.0, top)


@jit
def sum_of(tile: tensor) -> Any:
    """The sum of a tile."""
    return tl.sum(tl.sum(tile, 1), 0)
