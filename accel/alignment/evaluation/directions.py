"""Embeddings as directions: rows of length 1, and how near two of them count as the same."""

from __future__ import annotations

import torch
from torch import Tensor

from accel.alignment.normalization import normalized

_TIE = 8.0  # units in the last place of a cosine of two equal rows, at depths up to some thousands


def directions(embeddings: Tensor, name: str = "embeddings", *, may_lack: bool = False) -> Tensor:
    """The rows, `normalized`, without gradient, after checks.

    Args:
        embeddings: `[N, D]`, floating point, of any scale.
        name: What messages call them.
        may_lack: Rows without a direction are no error: a row of zeros stays one, and a row with
            NaN or infinity becomes NaN.

    Returns:
        `[N, D]` on the same device, float32, or float64 for float64.

    Raises:
        TypeError: They are no tensor of floating-point numbers.
        ValueError: They have not two dimensions, or no columns; or a row is zero, or not finite,
            unless `may_lack`.
    """
    if not isinstance(embeddings, Tensor) or not embeddings.is_floating_point():
        kind = embeddings.dtype if isinstance(embeddings, Tensor) else type(embeddings).__name__
        raise TypeError(f"{name} must be a floating-point tensor, got {kind}")
    if embeddings.ndim != 2 or embeddings.shape[1] == 0:
        raise ValueError(
            f"{name} must be [N, D] with D at least 1, got shape {list(embeddings.shape)}: "
            "one row per sample"
        )
    rows = normalized(embeddings.detach())
    missing = 0 if may_lack else int((~(torch.linalg.vector_norm(rows, dim=1) > 0)).sum())
    if missing:
        raise ValueError(
            f"{missing} of {len(rows)} rows of {name} have no direction (zero, NaN or infinite): "
            "leave absent samples out, and look for the first step whose loss is not finite"
        )
    return rows


def tie_tolerance(dtype: torch.dtype) -> float:
    """By how much the cosines of two pairs may differ and still count as equal.

    It is what rounding does to the cosine of one pair when it is computed in another place of a
    product of matrices.

    Args:
        dtype: float32 or float64.
    """
    return _TIE * torch.finfo(dtype).eps
