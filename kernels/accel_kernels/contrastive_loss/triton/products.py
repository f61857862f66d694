"""The kernel that multiplies a region's weights by the inputs, for both gradients.

An element of a gradient belongs to one work item; regions follow one another. So it is summed in
one order, without atomics.
"""
# ruff: noqa: N803 - what is compiled in is in capitals, as is the custom in Triton

from __future__ import annotations

from accel_kernels.contrastive_loss.triton.language import constexpr, jit, tensor, tl
from accel_kernels.contrastive_loss.triton.tiles import load_features, load_there, product


@jit
def products_kernel(
    x: tensor, y: tensor, scale: tensor, x_sample: tensor, y_sample: tensor, weights: tensor,
    x_gradient: tensor, y_gradient: tensor,
    items: tensor, rows: tensor, columns: tensor, first_row: tensor, first_column: tensor,
    height: tensor, stride: tensor,
    DEPTH: constexpr, WIDTH: constexpr, OUT: constexpr, INNER: constexpr, ACC: constexpr,
    UPCAST: constexpr, PRECISION: constexpr,
) -> None:  # fmt: skip
    """Add `scale * weights @ y` to `x_gradient` and `scale * weights.T @ x` to `y_gradient`.

    `weights` is `[height, stride]`, of the region that begins at `first_row`, `first_column`.
    """
    factor = tl.load(scale)
    parts: tl.constexpr = (DEPTH + WIDTH - 1) // WIDTH
    of_x = height // OUT * parts
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        if item < of_x:
            _add_product(
                weights, stride, 1, y, y_sample, first_column, columns, stride, x_gradient,
                x_sample, first_row, rows, item // parts, item % parts, factor, DEPTH, WIDTH, OUT,
                INNER, ACC, UPCAST, PRECISION,
            )  # fmt: skip
        else:
            rest = item - of_x
            _add_product(
                weights, 1, stride, x, x_sample, first_row, rows, height, y_gradient, y_sample,
                first_column, columns, rest // parts, rest % parts, factor, DEPTH, WIDTH, OUT,
                INNER, ACC, UPCAST, PRECISION,
            )  # fmt: skip


@jit
def _add_product(
    weights: tensor, step_out: tensor, step_in: tensor, source: tensor, sample: tensor,
    first_in: tensor, end_in: tensor, length: tensor, target: tensor, target_sample: tensor,
    first_out: tensor, end_out: tensor, block: tensor, part: tensor, factor: tensor,
    DEPTH: constexpr, WIDTH: constexpr, OUT: constexpr, INNER: constexpr, ACC: constexpr,
    UPCAST: constexpr, PRECISION: constexpr,
) -> None:  # fmt: skip
    """Add a block of weights times all of the region's sources to a block of the target."""
    out = block * OUT + tl.arange(0, OUT)
    feature = part * WIDTH + tl.arange(0, WIDTH)
    total = tl.zeros((OUT, WIDTH), ACC)
    for first in range(0, length, INNER):
        inner = first + tl.arange(0, INNER)
        weight = tl.load(weights + out[:, None] * step_out + inner[None, :] * step_in)
        there = load_there(sample, first_in + inner, end_in)
        values = load_features(source, first_in + inner, there, feature, DEPTH, WIDTH)
        if values.dtype == tl.bfloat16:
            # Three bfloat16 hold all the bits of a float32: products as exact, and far faster.
            for _ in tl.static_range(3):
                piece = weight.to(tl.bfloat16)
                total = product(piece, values, total, UPCAST, PRECISION)
                weight -= piece.to(weight.dtype)
        else:
            total = product(weight, values.to(weight.dtype), total, UPCAST, PRECISION)
    row = first_out + out
    at = target + row.to(tl.int64)[:, None] * DEPTH + feature[None, :]
    # A row that is not there gets nothing: of a source that holds NaN, 0 times it is NaN.
    inside = load_there(target_sample, row, end_out)[:, None] & (feature < DEPTH)[None, :]
    tl.store(at, tl.load(at, mask=inside, other=0.0) + total * factor, mask=inside)
