"""The reference: plain PyTorch, any device; in float64 for a result in float64."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from accel_kernels.fp8 import Quantized, decode, expand_scales
from accel_kernels.scaled_matmul.stretches import stretch_starts


def scaled_matmul(
    a: Quantized,
    b: Quantized,
    *,
    bias: Tensor | None = None,
    out_dtype: torch.dtype = torch.float32,
    promote: int | None = None,
) -> Tensor:
    """`a @ b.T + bias` of two matrices in eight bits.

    Products of codes are exact. They are summed in float32 over a stretch of K in which no scale
    changes, at most `promote` long, and the sum is multiplied by both scales, the smaller first, so
    that it overflows only where the result does; these partial sums are added in float32, then the
    bias. The result is rounded to `out_dtype` at the end.

    Args:
        a: `[M, K]`.
        b: `[N, K]`, any format and blocks, as `a`.
        bias: `[N]`, floating.
        out_dtype: float32, bfloat16 or float16; float64: everything is computed in it.
        promote: Sums over that many of K are kept apart (DeepSeek-V3, arXiv 2412.19437, section
            3.3.2, has 128); None: as long as scales allow.

    Returns:
        `[M, N]` of `out_dtype`, without gradient.
    """
    wide = torch.float64 if out_dtype == torch.float64 else torch.float32
    rows, columns = a.codes.shape[0], b.codes.shape[0]
    left, right = (decode(item.codes, item.scaling.format, wide) for item in (a, b))
    total = torch.zeros(rows, columns, dtype=wide, device=left.device)
    steps = a.scaling.block(*a.codes.shape)[1], b.scaling.block(*b.codes.shape)[1]
    starts = stretch_starts(a.codes.shape[1], steps, promote)
    for start, end in pairwise(starts):
        part = left[:, start:end] @ right[:, start:end].T
        scales = _scales_at(a, start, wide), _scales_at(b, start, wide).T
        total = total + part * torch.minimum(*scales) * torch.maximum(*scales)
    if bias is not None:
        total = total + bias.to(wide)
    return total.to(out_dtype)


def _scales_at(item: Quantized, start: int, dtype: torch.dtype) -> Tensor:
    """The scales of each row at a place of K, `[rows or 1, 1]`."""
    rows, depth = item.codes.shape
    step = item.scaling.block(rows, depth)[1]
    at = start // step
    column = item.scales[:, at : at + 1].to(dtype)
    return expand_scales(column, item.scaling, rows, 1)
