"""A matrix in eight bits with scales, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from accel_kernels.fp8 import native
from accel_kernels.fp8.codec import DTYPES, decode, encode
from accel_kernels.fp8.formats import Quantized, Scaling
from accel_kernels.fp8.scales import block_amax, expand_scales, scales_of


def quantize(
    values: Tensor,
    scaling: Scaling,
    amax: Tensor | None = None,
    *,
    infinity_as_nan: bool = False,
) -> Quantized:
    """Scale a matrix block by block and encode it.

    Each value times its block's factor (see `scales_of`), rounded once to float32, is encoded with
    saturation. float64 is rounded to float32 first; bfloat16 and float16 are widened. What is not
    finite does not count in a block's largest magnitude: NaN stays NaN, and infinities become the
    largest value. The codes lie in memory as the values do. Without gradient; see
    `straight_through`.

    Args:
        values: `[M, K]`, float64, float32, bfloat16 or float16; either may be 0.
        scaling: Format, blocks and scales.
        amax: Delayed scaling: the largest magnitude to suppose, without dimensions, on the same
            device. What exceeds it by more than the format allows saturates.
        infinity_as_nan: Whether infinities become NaN, so that what is computed from them shows
            that they were there.

    Raises:
        TypeError: `values` has another dtype.
        ValueError: It is no matrix, or `amax` does not fit or comes with blocks.
    """
    _check(values, scaling, amax)
    values = values.detach()
    largest = block_amax(values, scaling) if amax is None else _given(values, scaling, amax)
    factor, scales = scales_of(largest, scaling)
    if native.is_usable(values):
        blocks = native.Blocks(values, *scaling.block(*values.shape))
        codes = native.encode(blocks, scaling.format, factor, infinity_as_nan)
        return Quantized(codes, scales, scaling)
    values = values.to(torch.float32)
    if infinity_as_nan:
        values = torch.where(values.isinf(), torch.nan, values)
    factors = expand_scales(factor, scaling, *values.shape)
    return Quantized(encode(values * factors, scaling.format), scales, scaling)


def dequantize(quantized: Quantized, dtype: torch.dtype = torch.float32) -> Tensor:
    """Each code's value times its scale, `[M, K]`.

    Args:
        quantized: A matrix in eight bits.
        dtype: float64: the product is exact. Otherwise it is rounded to float32, and then to
            `dtype`: float32, bfloat16 or float16.
    """
    codes, scales, scaling = quantized
    if dtype in DTYPES[1:] and native.is_usable(codes, scales, codes=True):
        blocks = native.Blocks(codes, *scaling.block(*codes.shape))
        return native.decode(blocks, scaling.format, scales).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    factors = expand_scales(scales.to(wide), scaling, *codes.shape)
    return (decode(codes, scaling.format, wide) * factors).to(dtype)


def straight_through(values: Tensor, scaling: Scaling) -> Tensor:
    """What is left of a matrix after quantizing it; the gradient passes as it is.

    The straight-through estimator (Bengio et al., arXiv 1308.3432, section 4).

    Args:
        values: `[M, K]`.
        scaling: Format, blocks and scales.

    Returns:
        `[M, K]` of the same dtype.
    """
    result: Tensor = _StraightThrough.apply(values, scaling)
    return result


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(values: Tensor, scaling: Scaling) -> Tensor:
        return dequantize(quantize(values, scaling), values.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None


def _given(values: Tensor, scaling: Scaling, amax: Tensor) -> Tensor:
    high, wide = scaling.block(*values.shape)
    return amax.detach().expand(-(-values.shape[0] // high), -(-values.shape[1] // wide))


def _check(values: Tensor, scaling: Scaling, amax: Tensor | None) -> None:
    if values.dtype not in DTYPES:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise TypeError(f"a matrix to quantize is {allowed}, not {values.dtype}; cast it")
    if values.dim() != 2:
        raise ValueError(
            f"a matrix to quantize is [M, K], not of shape {tuple(values.shape)}; flatten the "
            "leading dimensions with values.flatten(0, -2)"
        )
    if amax is None:
        return
    if scaling.granularity != "tensor":
        raise ValueError(
            f"a given amax is for tensorwise scales, not for blocks of {scaling.granularity}; "
            "leave it out"
        )
    if amax.dim() or amax.device != values.device:
        raise ValueError(
            f"amax is one number on {values.device}, not of shape {tuple(amax.shape)} on "
            f"{amax.device}"
        )
