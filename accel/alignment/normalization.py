"""Rows of length 1, with gradients that stay finite also for the smallest rows."""

from __future__ import annotations

import torch
from torch import Tensor


def normalized(rows: Tensor) -> Tensor:
    """Divide each row by its Euclidean norm.

    The norm is taken of the row divided by its largest magnitude, so that squares neither overflow
    nor vanish. A row of zeros stays zero: its similarity to all others is 0, and its gradient is
    that of a row of norm 1, so that it can leave. NaN and infinity make their row NaN.

    The gradient grows as one over the length of a row, beyond every number for the smallest ones. A
    row whose largest magnitude is below `2**-103` (float32, bfloat16), `2**-970` (float64) or
    `2**-14` (float16) has its own direction, and the gradient of a row of that size in its place.
    So the gradient of every finite row is finite as long as that of its unit row is below `2**24`,
    or 4 for float16, whose range holds no more.

    Args:
        rows: `[N, D]`, floating.

    Returns:
        `[N, D]`, float64 for float64 and float32 for all others, also under autocast.
    """
    wide = rows if rows.dtype == torch.float64 else rows.float()
    held = wide.detach()
    largest = held.abs().amax(-1, keepdim=True)
    largest = torch.where(largest == 0, 1.0, largest)
    # The value of the first, the gradient of the second, which is zero.
    scaled = held / largest + (wide - held) / largest.clamp(min=_least(rows.dtype, wide.dtype))
    norm = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    return scaled / torch.where(norm == 0, 1.0, norm)


def _least(given: torch.dtype, computed: torch.dtype) -> float:
    """Below what magnitude the gradient grows no further."""
    if given == torch.float16:  # the gradient has its range too
        return torch.finfo(given).smallest_normal
    limits = torch.finfo(computed)
    return limits.smallest_normal / limits.eps
