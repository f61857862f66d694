"""`torch.nn.functional.scaled_mm` on NVIDIA GPUs.

Which scales cuBLAS applies itself depends on the chip (torch's ScaledBlas.cpp, cuBLAS's table of
scaling modes): one per tensor from compute capability 8.9; per row, 1x128 and 128x128 on 9.x with
CUDA 12.9; 1x32 (MX) from 10.0. Where per-row scales are not, codes are multiplied as they are and
the float32 result is scaled: the same formula. Where blocks of 128 are not, K is cut into stretches
in which no scale changes, one product each: right, and slower the more stretches there are.

`use_fast_accum` stays off: with it Hopper keeps 14 bits or so of a partial sum (DeepSeek-V3, arXiv
2412.19437, section 3.3.2).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from accel_kernels.fp8 import Quantized
from accel_kernels.scaled_matmul.scaled_mm import chip, layouts
from accel_kernels.scaled_matmul.scaled_mm.layouts import Product
from accel_kernels.scaled_matmul.stretches import stretch_starts

MX = "1x32"
_BLOCKS = frozenset({"1x128", "128x128"})


def scaled_matmul(
    a: Quantized,
    b: Quantized,
    *,
    bias: Tensor | None = None,
    out_dtype: torch.dtype = torch.float32,
    promote: int | None = None,
) -> Tensor:
    """See `reference.scaled_matmul`; no float64, no HiFloat8, and not two of E5M2.

    Raises:
        ValueError: cuBLAS has no product of these formats, or the scales cannot be those of MX.
    """
    _check(a, b)
    if 0 in (*a.codes.shape, b.codes.shape[0]):
        empty = torch.zeros(a.codes.shape[0], b.codes.shape[0], device=a.codes.device)
        return _finished(empty, bias, out_dtype)
    granularities = {a.scaling.granularity, b.scaling.granularity}
    # Each block has a float32 sum of its own in these products.
    if MX in granularities and (promote is None or promote >= layouts.RUN):
        return _run(layouts.microscaled(a, b), bias, out_dtype)
    if granularities & _BLOCKS and (promote is None or promote >= layouts.BLOCK):
        if chip.has_blocks(a.codes.device):
            return _run(layouts.blockwise(a, b), bias, out_dtype)
    elif promote is None:
        return _without_blocks(a, b, bias, out_dtype)
    return _finished(_by_stretches(a, b, promote), bias, out_dtype)


def _check(a: Quantized, b: Quantized) -> None:
    formats = [str(item.scaling.format) for item in (a, b)]
    if formats == ["float8_e5m2"] * 2 or "hifloat8" in formats:
        raise ValueError(
            f"scaled_mm multiplies float8_e4m3fn by itself or by float8_e5m2, not "
            f"{formats[0]} by {formats[1]}; quantize one to float8_e4m3fn, or use "
            f"backend='reference'"
        )
    kinds = [(item.scaling.granularity == MX, item.scaling.scales) for item in (a, b)]
    if any(is_mx for is_mx, _ in kinds) and kinds != [(True, "power_of_two")] * 2:
        raise ValueError(
            "scaled_mm takes blocks of 1x32 on both sides with scales='power_of_two', or on none"
        )


def _without_blocks(
    a: Quantized, b: Quantized, bias: Tensor | None, out_dtype: torch.dtype
) -> Tensor:
    """One scale for each tensor or row."""
    if a.scaling.granularity == b.scaling.granularity == "tensor":
        return _run(layouts.tensorwise(a, b), bias, out_dtype)
    if chip.has_rows(a.codes.device):
        return _run(layouts.rowwise(a, b), bias, out_dtype)
    codes = _run(layouts.unscaled(a, b), None, torch.float32)
    return _finished(codes.mul_(a.scales).mul_(b.scales.T), bias, out_dtype)


def _by_stretches(a: Quantized, b: Quantized, promote: int | None) -> Tensor:
    """The sum over stretches of K without a change of scale, in float32."""
    steps = (a.scaling.block(*a.codes.shape)[1], b.scaling.block(*b.codes.shape)[1])
    total = torch.zeros(a.codes.shape[0], b.codes.shape[0], device=a.codes.device)
    for start, end in pairwise(stretch_starts(a.codes.shape[1], steps, promote)):
        parts = layouts.part(a, start, end), layouts.part(b, start, end)
        total += _without_blocks(*parts, None, torch.float32)
    return total


def _run(product: Product, bias: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    rows, columns = product.size
    native = None
    # cuBLAS adds a bias of the result's own dtype, and none to float32.
    if bias is not None and bias.dtype == out_dtype != torch.float32 and product.takes_bias:
        native, bias = layouts.padded(bias, product.mat_b.shape[1]), None
    result = F.scaled_mm(
        product.mat_a,
        product.mat_b,
        product.scale_a,
        product.recipe_a,
        product.scale_b,
        product.recipe_b,
        swizzle_a=product.swizzle,
        swizzle_b=product.swizzle,
        bias=native,
        output_dtype=out_dtype if bias is None else torch.float32,
        use_fast_accum=False,
    )[:rows, :columns]
    return result if bias is None else _finished(result, bias, out_dtype)


def _finished(total: Tensor, bias: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    if bias is not None:
        total = total + bias.to(torch.float32)
    return total.to(out_dtype)
