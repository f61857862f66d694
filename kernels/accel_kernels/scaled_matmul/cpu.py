"""Products of eight-bit matrices by torch's own bfloat16 products with float32 sums, on CPUs.

Codes, and powers of two that they are multiplied by, are exact in bfloat16. oneDNN multiplies
float32 matrices as bfloat16, by AMX where there is one, if it is told so; of values that are exact
in bfloat16 nothing is lost then. On a CPU without bfloat16 this is a product of float32.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from accel_kernels.fp8 import Quantized, dequantize, expand_scales
from accel_kernels.scaled_matmul.operators import register, run
from accel_kernels.scaled_matmul.stretches import Folded, folded, stretches

_lock = threading.Lock()


def scaled_matmul(
    a: Quantized,
    b: Quantized,
    *,
    bias: Tensor | None = None,
    out_dtype: torch.dtype = torch.float32,
    promote: int | None = None,
) -> Tensor:
    """See `reference.scaled_matmul`.

    While it computes, a product of float32 in another thread would be one of bfloat16 too: torch
    has one setting for all threads.
    """
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
    starts = stretches(depth, (steps[0], steps[1]), promote)
    with _bfloat16_products():
        for start, end in pairwise(starts):
            part = left[:, start:end] @ right[:, start:end].T
            part *= _scales_at(a, powers[0], start)
            total.addcmul_(part, _scales_at(b, powers[1], start).T)
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


@contextlib.contextmanager
def _bfloat16_products() -> Iterator[None]:
    setting: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    with _lock:
        before = setting.fp32_precision
        setting.fp32_precision = "bf16"
        try:
            yield
        finally:
            setting.fp32_precision = before
