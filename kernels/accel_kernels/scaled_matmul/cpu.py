"""Products of eight-bit matrices by torch's own float32 products, on any CPU.

Codes, and powers of two that they are multiplied by, are exact in bfloat16. So nothing is lost
either where `torch.backends.mkldnn.matmul.fp32_precision` lets torch multiply float32 as bfloat16.
It is not set here: it holds for all threads, and another one's products would lose bits.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from accel_kernels.fp8 import Quantized, dequantize, expand_scales
from accel_kernels.scaled_matmul.operators import register, run
from accel_kernels.scaled_matmul.stretches import Folded, folded, stretch_starts


def scaled_matmul(
    a: Quantized,
    b: Quantized,
    *,
    bias: Tensor | None = None,
    out_dtype: torch.dtype = torch.float32,
    promote: int | None = None,
) -> Tensor:
    """See `reference.scaled_matmul`."""
    return run("cpu", a, b, bias, out_dtype, promote)


def _compute(
    a: Quantized, b: Quantized, bias: Tensor | None, out_dtype: torch.dtype, promote: int | None
) -> Tensor:
    depth = a.codes.shape[1]
    powers = folded(a), folded(b)
    left, right = (_values(item, power) for item, power in zip((a, b), powers, strict=True))
    steps = [
        depth if power else item.scaling.block(*item.codes.shape)[1]
        for item, power in zip((a, b), powers, strict=True)
    ]
    total = torch.zeros(a.codes.shape[0], b.codes.shape[0])
    starts = stretch_starts(depth, (steps[0], steps[1]), promote)
    for start, end in pairwise(starts):
        part = left[:, start:end] @ right[:, start:end].T
        scales = _scales_at(a, powers[0], start), _scales_at(b, powers[1], start).T
        # The smaller first: a large one could exceed float32 where the result does not.
        part *= torch.minimum(*scales)
        total.addcmul_(part, torch.maximum(*scales))
    if bias is not None:
        total += bias.detach().to(torch.float32)
    return total.to(out_dtype)


register("cpu", _compute)


def _values(item: Quantized, power: Folded | None) -> Tensor:
    """Decoded codes, times their powers of two, float32 `[M, K]`; exact in bfloat16."""
    if power is None:
        return dequantize(item._replace(scales=torch.ones_like(item.scales)))
    factors = ((power.shifts.to(torch.int32) + 127) << 23).view(torch.float32)
    return dequantize(item._replace(scales=factors))


def _scales_at(item: Quantized, power: Folded | None, start: int) -> Tensor:
    """The scales of each row at a place of K, `[rows or 1, 1]`."""
    rows, depth = item.codes.shape
    at = start // item.scaling.block(rows, depth)[1]
    scales = item.scales[:, at : at + 1] if power is None else power.scales
    return expand_scales(scales, item.scaling, rows, 1)
