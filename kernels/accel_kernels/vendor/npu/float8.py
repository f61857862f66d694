"""What the operators with 8-bit floats share: formats by number, casts, scales of E8M0.

HiFloat8 is uint8 to torch. A cast rounds half to even ("rint"), to HiFloat8 half away from zero
("round"), and saturates: values are scaled into the format before, so that only rounding, or the
floor rule of MX scales, brings one beyond it.

Source: ops-nn's pages of aclnnDynamicQuantV4, aclnnDynamicBlockQuantV2 and aclnnDynamicMxQuantV3,
and asc-devkit's of asc_float2hif8 for the two ways of rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from accel_kernels.fp8 import E4M3, E5M2, FORMATS, HIF8, Format, decode, encode
from accel_kernels.vendor.npu.dtypes import HIFLOAT8, Target, target_of
from accel_kernels.vendor.npu.values import refuse

BIAS = 127
"""Of E8M0: a code stands for 2 to the power of the code less this."""
NAN_CODE = 255
MOST_EXPONENT = {E4M3: 8, E5M2: 15}
"""Exponent of a format's largest number; of those with MX scales."""

_BY_DTYPE = {item.dtype: item for item in FORMATS.values() if item.dtype is not None}


def format_of(target: Target) -> Format | None:
    """The 8-bit float that a dtype argument asks for; None for any other."""
    return HIF8 if target.hifloat8 else _BY_DTYPE.get(target.dtype)


def operand_format(operator: str, name: str, tensor: Tensor, number: int | None) -> Format | None:
    """The format of an operand by its dtype and the argument that overrides it; None: no 8 bits.

    Raises:
        ValueError: The number is of another dtype than the tensor has.
    """
    if number is None:
        return _BY_DTYPE.get(tensor.dtype)
    target = target_of(operator, name, number)
    if target.dtype == tensor.dtype and not target.packed:
        return format_of(target)
    raise ValueError(
        f"{operator}: {name}={number} for a tensor of {tensor.dtype}; give {HIFLOAT8} (hifloat8) "
        f"for uint8, or leave it out"
    )


def cast(values: Tensor, kind: Format) -> Tensor:
    """Values rounded into a format, in its dtype; uint8 of HiFloat8."""
    codes = encode(values, kind)
    return codes if kind.dtype is None else codes.view(kind.dtype)


def read(tensor: Tensor, kind: Format) -> Tensor:
    """The values of 8-bit floats, float64."""
    return decode(tensor, kind, torch.float64)


def largest_of(operator: str, kind: Format, dst_type_max: float) -> float:
    """What a block's largest magnitude is scaled to.

    Raises:
        ValueError: `dst_type_max` is given and the format is not HiFloat8, or is out of its range.
    """
    if not dst_type_max:
        return kind.largest
    if kind != HIF8 or not 0 < dst_type_max <= HIF8.largest:
        raise ValueError(
            f"{operator}: dst_type_max={dst_type_max} with {kind}; give 0, or with hifloat8 up "
            f"to {HIF8.largest:g}"
        )
    return dst_type_max


def require_round_mode(operator: str, kind: Format | None, round_mode: str) -> None:
    """Raise unless the format is rounded to as it is said; "hybrid" draws random numbers."""
    wanted = "round" if kind == HIF8 else "rint"
    if round_mode != wanted:
        into = "integers" if kind is None else str(kind)
        refuse(operator, "round_mode", round_mode, f"its page has only {wanted!r} for {into}")


def require_finite(operator: str, values: Tensor) -> None:
    """Raise `ValueError` if a value to quantize is NaN or infinite."""
    if not bool(values.isfinite().all()):
        raise ValueError(f"{operator}: the input holds a value that is not finite")


def largest_along(sizes: Tensor, axis: int | None) -> Tensor:
    """The largest along an axis, which is kept with size 1; of all if None. 0 if there is none."""
    if axis is None:
        shape = [1] * sizes.ndim
        return sizes.amax().view(shape) if sizes.numel() else sizes.new_zeros(shape)
    if not sizes.shape[axis]:
        shape = list(sizes.shape)
        shape[axis] = 1
        return sizes.new_zeros(shape)
    return sizes.amax(axis, keepdim=True)


def divided(values: Tensor, scale: Tensor) -> Tensor:
    """`values / scale`; 0 where the scale is."""
    return torch.where(scale == 0, torch.zeros_like(values), values / scale)


def powers_of_two(codes: Tensor) -> Tensor:
    """What E8M0 codes, uint8 or the dtype, stand for, in float64; 255 is NaN."""
    numbers = codes.view(torch.uint8).to(torch.float64)
    return torch.where(numbers == NAN_CODE, torch.nan, torch.exp2(numbers - BIAS))
