"""A tile's probabilities and the gradient of its scores, computed again from the log-sum-exp."""
# ruff: noqa: N803 - what is compiled in is in capitals, as is the custom in Triton

from __future__ import annotations

from typing import Any

from accel_kernels.segmented_attention.triton.language import LOG2E, constexpr, jit, tensor, tl
from accel_kernels.segmented_attention.triton.tiles import kept_tile, log2_scores


@jit
def load_log2(pointer: tensor, rows: tensor, queries: tensor) -> Any:
    """Base-2 log-sum-exps; +inf beyond the end and for rows without a key: no probability."""
    found = tl.load(pointer + rows, mask=rows < queries, other=float("inf"))
    return tl.where(found == float("-inf"), float("inf"), found * LOG2E)


@jit
def score_gradient(
    dots: tensor, grad_dots: tensor, added: tensor, lse: tensor, delta: tensor, seen: tensor,
    rows: tensor, columns: tensor,
    scale: tensor, softcap: tensor, position: tensor, stride_row: tensor, seed_low: tensor,
    seed_high: tensor,
    threshold: tensor, inverse_keep: tensor,
    SELECT: constexpr, SOFTCAP: constexpr, BIAS: constexpr, DROPOUT: constexpr, SIGNED: constexpr,
) -> Any:  # fmt: skip
    """Dropped probabilities, and the gradient of the biased scores and of the scaled products.

    Args:
        dots: Products of queries and keys.
        grad_dots: Products of output gradients and values.
        added: The bias.
        lse: Base-2 log-sum-exps, of the rows' shape.
        delta: As in `triton_delta`, of the rows' shape.
        seen: What is visible, if SELECT.
        rows: Of the tile.
        columns: Of the tile.
        scale: Of the scores.
        softcap: Of the scores.
        position: Dropout's position of the head's first element.
        stride_row: Dropout's positions from row to row.
        seed_low: Half of dropout's seed.
        seed_high: The other half.
        threshold: Random words from here on are kept.
        inverse_keep: `1 / (1 - p)`.
        SELECT: Not every element is visible.
        SOFTCAP: Scores are capped.
        BIAS: Kind of bias.
        DROPOUT: Probabilities are dropped.
        SIGNED: Which way random words are made.
    """
    scores, slope = log2_scores(dots, scale, softcap, added, SOFTCAP, BIAS)
    probability = tl.exp2(scores - lse)
    if SELECT:
        probability = tl.where(seen, probability, 0.0)
    dropped = probability
    if DROPOUT:
        kept = kept_tile(
            rows, columns, position, stride_row, seed_low, seed_high, threshold, SIGNED
        )
        dropped = tl.where(kept, probability * inverse_keep, 0.0)
        grad_dots = tl.where(kept, grad_dots * inverse_keep, 0.0)
    grad = probability * (grad_dots - delta)
    if SELECT:
        grad = tl.where(seen, grad, 0.0)
        slope = tl.where(seen, slope, 0.0)  # NaN for a hidden key that is
    return dropped, grad, grad * slope
