"""The scales of a matrix's blocks: how they follow from the largest magnitudes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from accel_kernels.fp8 import native
from accel_kernels.fp8.formats import Scaling

_EXPONENT = 0x7F800000
# What factors are kept within, so that each and its inverse are normal numbers of float32.
_EXTREME = 2.0**126


def block_amax(values: Tensor, scaling: Scaling) -> Tensor:
    """The largest finite magnitude of each block, float32.

    Args:
        values: `[M, K]`; float64 is rounded to float32 first, the others are widened.
        scaling: Says what a block is.

    Returns:
        `[ceil(M / rows), ceil(K / columns)]`; 0 for a block in which nothing is finite.
    """
    values = values.detach()
    high, wide = scaling.block(*values.shape)
    if native.is_usable(values):
        return native.largest(native.Blocks(values, high, wide))
    sizes = values.abs().nan_to_num(nan=0.0, posinf=0.0)
    if values.dtype == torch.float64:
        sizes = sizes.to(torch.float32).nan_to_num(posinf=0.0)
    rows, columns = sizes.shape
    if not rows or not columns:
        return sizes.new_zeros(-(-rows // high), -(-columns // wide), dtype=torch.float32)
    if rows % high or columns % wide:
        sizes = F.pad(sizes, (0, -columns % wide, 0, -rows % high))
    return sizes.view(-(-rows // high), high, -1, wide).amax((1, 3)).to(torch.float32)


def scales_of(amax: Tensor, scaling: Scaling) -> tuple[Tensor, Tensor]:
    """By what values are multiplied before they are encoded, and codes after.

    `factor = reach / max(amax, epsilon)`, in float32; rounded down to a power of two if the scales
    are to be powers of two; kept from 2^-126 to 2^126. `scale = 1 / factor`, in float32.

    Args:
        amax: Any shape, float32, not negative; NaN counts as 0.
        scaling: Gives the reach, epsilon and the kind of scales.

    Returns:
        `(factor, scale)`, float32 of that shape; positive and finite.
    """
    amax = amax.detach().to(torch.float32)
    amax = torch.where(amax > scaling.epsilon, amax, scaling.epsilon)
    # Compiled code on CUDA divides float32 inexactly, and float64 not. The quotient of two float32
    # that is rounded to float64 and then to float32 is the one rounded once.
    is_inexact = torch.compiler.is_compiling() and amax.device.type == "cuda"
    wide = amax.to(torch.float64) if is_inexact else amax
    factor = torch.full_like(wide, scaling.reach) / wide
    factor = factor.to(torch.float32).clamp(1.0 / _EXTREME, _EXTREME)
    if scaling.scales == "power_of_two":
        factor = (factor.view(torch.int32) & _EXPONENT).view(torch.float32)
    wide = factor.to(torch.float64) if is_inexact else factor
    return factor, torch.ones_like(wide).div(wide).to(torch.float32)


def expand_scales(scales: Tensor, scaling: Scaling, rows: int, columns: int) -> Tensor:
    """The scale of each value of a matrix `[rows, columns]`, in a shape that broadcasts to it.

    Args:
        scales: `[ceil(rows / r), ceil(columns / c)]`, of blocks of r by c.
        scaling: Says what a block is.
        rows: Of the matrix.
        columns: Of the matrix.
    """
    high, wide = scaling.block(rows, columns)
    # Not `repeat_interleave`, which Inductor gets wrong on CPUs where the last block is cut short.
    device = scales.device
    if scales.shape[0] > 1 and high > 1:
        scales = scales.index_select(0, torch.arange(rows, device=device) // high)
    if scales.shape[1] > 1 and wide > 1:
        scales = scales.index_select(1, torch.arange(columns, device=device) // wide)
    return scales
