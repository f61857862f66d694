"""Rows of length 1, with gradients that are finite for every finite row."""

from __future__ import annotations

import torch
from torch import Tensor


def normalized(rows: Tensor) -> Tensor:
    """Divide each row by its Euclidean norm.

    The norm is taken of the row divided by its largest magnitude, so that squares neither overflow
    nor vanish. A row of zeros stays zero: its similarity to all others is 0, and its gradient is
    that of a row of norm 1, so that it can leave. NaN and infinity make their row NaN.

    Args:
        rows: `[N, D]`, floating.

    Returns:
        `[N, D]`, float64 for float64 and float32 for all others, also under autocast.
    """
    wide = rows if rows.dtype == torch.float64 else rows.float()
    largest = wide.detach().abs().amax(-1, keepdim=True)
    scaled = wide / torch.where(largest == 0, 1.0, largest)
    norm = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    return scaled / torch.where(norm == 0, 1.0, norm)
