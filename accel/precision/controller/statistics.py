"""What is measured of a tensor that is rounded to a format, and how measurements are joined."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from accel_kernels.fp8 import Quantized, decode, quantize
from accel_kernels.fp8.values import SATURATION

COLUMNS = 6
_SAMPLE = 32768
# Blocks of as many rows as columns: the transpose is quantized to the transpose.
_SYMMETRIC = frozenset({"tensor", "128x128"})
_TINY = torch.finfo(torch.float32).tiny


class OperandStatistics(NamedTuple):
    """How one operand fares in one format.

    Joined over calls, micro-batches and ranks by the maximum of each: exact, and the same in every
    order.

    Attributes:
        error: The larger of two means: over its rows and over its columns, of the relative rms
            error of a row or column. It is what a row of the product and a column of the weight
            gradient inherit. The rms over the whole tensor would not see small values vanish beside
            an outlier, and a mean over single values would count the harmless tails of a GELU.
        rms_error: Over the whole tensor; only shown.
        underflow: Share of the nonzero values that become zero.
        overflow: Share of them that saturates.
        nonfinite: How many of the sampled values were NaN or infinite before rounding; at least 1
            if any value was.
        measured: How many finite nonzero values were sampled; with 0 nothing is known.
    """

    error: float
    rms_error: float
    underflow: float
    overflow: float
    nonfinite: float
    measured: float

    @property
    def is_known(self) -> bool:
        """Whether the tensor had anything to measure."""
        return self.measured > 0 or self.nonfinite > 0


NOTHING = OperandStatistics(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def joined(parts: Sequence[OperandStatistics]) -> OperandStatistics:
    """The maximum of each; `NOTHING` of none."""
    return OperandStatistics(*map(max, zip(NOTHING, *parts, strict=True)))


def quantized_statistics(
    values: Tensor, quantized: Quantized, *, is_delayed: bool = False
) -> Tensor:
    """How a matrix fared in eight bits, from a sample of some 32,768 of its values.

    An operand takes part in two products, in one of them transposed, and blocks lie along what is
    summed. Blocks of 128 along the channels keep the outlier of a token to itself and do not help
    against one in a channel; along the tokens it is the other way round. So where blocks are not
    symmetric, the transpose is quantized and measured too, and the worse counts.

    Rows and columns at odd distances are sampled, which no power of two of a batch's layout meets;
    their scales come from the whole matrix, and a non-finite value anywhere in it is seen.

    Args:
        values: `[M, K]`, any floating dtype; may be a transposed view.
        quantized: What became of it.
        is_delayed: Whether the scale comes from other steps, so that values can be beyond it.

    Returns:
        float32 `[6]` on the same device, in the order of `OperandStatistics`, all finite.
    """
    found = _in_place(values, quantized, is_delayed)
    if quantized.scaling.granularity not in _SYMMETRIC:
        turned = values.detach().t()
        found = torch.maximum(found, _in_place(turned, quantize(turned, quantized.scaling), False))
    return _counted(found, values)


def cast_statistics(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The same of a plain cast to float32, bfloat16 or float16."""
    part = _sampled(values, _strides(*values.shape))
    found = rounding_statistics(part, part.to(dtype), torch.finfo(dtype).max)
    return _counted(found, values)


def rounding_statistics(values: Tensor, rounded: Tensor, largest: Tensor | float) -> Tensor:
    """Compare a matrix with what a format makes of it, value by value.

    Args:
        values: `[M, K]`, any floating dtype.
        rounded: The same after rounding, `[M, K]`.
        largest: What cannot be exceeded, one number or `[M, K]`: larger magnitudes saturate or
            become infinite.

    Returns:
        float32 `[6]`, as `quantized_statistics`.
    """
    values, rounded = values.detach().float(), rounded.float()
    finite = values.isfinite()
    kept = torch.where(finite, values, 0.0)
    nonzero = kept != 0
    beyond = (rounded.abs() == math.inf) & finite | (kept.abs() > largest)
    # Relative to the largest, so that no square over- or underflows where it matters.
    unit = kept.abs().amax().clamp_min(_TINY) if kept.numel() else 1.0
    # An infinite result has lost the value, no more.
    error = torch.where(rounded.abs() == math.inf, kept, rounded - kept)
    error = torch.where(finite, error, 0.0) / unit
    error2, value2 = error.square(), (kept / unit).square()
    count = nonzero.sum().clamp_min(1)
    shares = [
        torch.maximum(_slices(error2, value2, 1), _slices(error2, value2, 0)),
        (error2.sum() / value2.sum().clamp_min(_TINY)).sqrt(),
        (nonzero & (rounded == 0)).sum() / count,
        beyond.sum() / count,
        (~finite).sum(),
        nonzero.sum(),
    ]
    return torch.stack([share.float() for share in shares])


def _in_place(values: Tensor, quantized: Quantized, is_delayed: bool) -> Tensor:
    """The same of one orientation, without the non-finite values that are not sampled."""
    codes, scales, scaling = quantized
    rows, columns = (strides := _strides(*values.shape))
    part = _sampled(values, strides)
    high, wide = scaling.block(*values.shape)
    above = torch.arange(0, values.shape[0], rows, device=values.device) // high
    beside = torch.arange(0, values.shape[1], columns, device=values.device) // wide
    factors = scales[above][:, beside] if scales.numel() else scales.new_ones(part.shape)
    rounded = decode(_sampled(codes, strides).contiguous(), scaling.format) * factors
    largest = factors * SATURATION[scaling.format] if is_delayed else math.inf
    return rounding_statistics(part, rounded, largest)


def _strides(rows: int, columns: int) -> tuple[int, int]:
    """Odd distances at which about `_SAMPLE` values are left, and 128 rows and columns if any."""
    down = _odd(min(rows // 128, rows * columns // _SAMPLE))
    return down, _odd(min(columns // 128, rows * columns // (_SAMPLE * down)))


def _odd(distance: int) -> int:
    return max(distance - 1 + distance % 2, 1)


def _sampled(matrix: Tensor, strides: tuple[int, int]) -> Tensor:
    return matrix.detach()[:: strides[0], :: strides[1]]


def _counted(found: Tensor, values: Tensor) -> Tensor:
    """With at least one non-finite value if the matrix has any: its largest magnitude is none."""
    if not values.numel():
        return found
    largest = values.detach().abs().amax()
    nonfinite = torch.maximum(found[4], (~largest.isfinite()).float())
    return torch.cat([found[:4], nonfinite.view(1), found[5:]])


def _slices(error2: Tensor, value2: Tensor, dimension: int) -> Tensor:
    errors, norms = error2.sum(dimension), value2.sum(dimension)
    known = norms > 0
    relative = (errors / torch.where(known, norms, 1.0)).sqrt()
    return torch.where(known, relative, 0.0).sum() / known.sum().clamp_min(1)
