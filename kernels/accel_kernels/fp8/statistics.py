"""How well a matrix survived its quantization."""

from __future__ import annotations

import torch
from torch import Tensor

from accel_kernels.fp8 import native
from accel_kernels.fp8.formats import Quantized
from accel_kernels.fp8.quantization import dequantize
from accel_kernels.fp8.scales import expand_scales
from accel_kernels.fp8.values import SATURATION


def quantization_statistics(values: Tensor, quantized: Quantized) -> Tensor:
    """Error, underflow, overflow and what is not finite, without waiting for the device.

    The CPU sums squares in float64; elsewhere, and in compiled code, they are summed in float32.

    Args:
        values: `[M, K]`, what was quantized.
        quantized: What became of it.

    Returns:
        float32 `[4]`: the root mean square of the error over that of the values, both of the finite
        values; the share of the values that are not zero and became zero; the share that are finite
        and lost more than a rounding because they were beyond the largest code; and the number of
        values that are not finite. Zeros for a matrix without values.
    """
    values = values.detach()
    count = float(max(values.numel(), 1))
    sums = _sums(values, quantized)
    size, lost, gone, beyond, wrong = sums.unbind()
    share = torch.where(size > 0.0, (lost / size).sqrt(), 0.0)
    return torch.stack([share, gone / count, beyond / count, wrong]).to(torch.float32)


def _sums(values: Tensor, quantized: Quantized) -> Tensor:
    codes, scales, scaling = quantized
    if native.is_usable(values, codes, scales):
        blocks = native.Blocks(values, *scaling.block(*values.shape))
        return native.measure(blocks, scaling.format, codes, scales)
    wide = values.to(torch.float32)
    back = dequantize(quantized)
    finite = torch.isfinite(wide)
    known = torch.where(finite, wide, 0.0)
    error = torch.where(finite, back - wide, 0.0)
    # Over the largest magnitude, so that no square overflows or vanishes.
    unit = known.abs().amax().clamp(min=2.0**-126) if wide.numel() else wide.new_ones(())
    reach = SATURATION[scaling.format] * expand_scales(scales, scaling, *values.shape)
    return torch.stack(
        [
            (known / unit).square().sum(),
            (error / unit).square().sum(),
            ((wide != 0.0) & (back == 0.0)).sum().to(torch.float32),
            (known.abs() > reach).sum().to(torch.float32),
            (~finite).sum().to(torch.float32),
        ]
    )
