"""Encoding by integer operations alone, for any device and any compiler."""

from __future__ import annotations

import torch
from torch import Tensor

from accel_kernels.fp8.formats import HIF8, Format
from accel_kernels.fp8.values import FIELDS, HIF8_DENORMAL, NAN_CODES, SIGN, TOP_CODES

_MAGNITUDE, _INFINITY = 0x7FFFFFFF, 0x7F800000
# Of float32.
_WIDTH, _BIAS = 23, 127


def to_odd(values: Tensor) -> Tensor:
    """float64 to float32, rounded to odd: whatever then rounds to fewer bits rounds only once.

    Cut towards zero, and the last bit set if anything was cut (Boldo & Melquiond, IEEE Transactions
    on Computers 57(4), 2008, section 3). Beyond float32: its largest value.
    """
    near = values.to(torch.float32)
    back = near.to(torch.float64)
    words = near.view(torch.int32) - (back.abs() > values.abs()).to(torch.int32)
    return (words | (back != values).to(torch.int32)).view(torch.float32)


def encode_bits(values: Tensor, form: Format, saturate: bool) -> Tensor:
    """The codes of float32 `values`, uint8 of their shape; see `codec.encode`."""
    words = values.view(torch.int32)
    size = words & _MAGNITUDE
    codes = _hif8(size) if form == HIF8 else _minifloat(size, form)
    top = TOP_CODES[form]
    # HiFloat8's codes are not in the order of their values; only infinity is beyond its largest.
    beyond = codes == top + 1 if form == HIF8 else codes > top
    codes = torch.where(beyond | (size == _INFINITY), top if saturate else top + 1, codes)
    negative = (words >> 31) & SIGN
    if form == HIF8:
        negative = torch.where(codes == 0, 0, negative)  # it has one zero
        codes = torch.where(size > _INFINITY, NAN_CODES[form], codes | negative)
    else:
        codes = torch.where(size > _INFINITY, NAN_CODES[form], codes) | negative
    return codes.to(torch.uint8)


def _minifloat(size: Tensor, form: Format) -> Tensor:
    """Codes of magnitudes, to nearest, ties to even, as if exponents had no end."""
    width, bias = FIELDS[form]
    cut = _WIDTH - width
    # What is cut is at least half only if this carries; the last bit kept decides a tie.
    rounded = size + ((1 << (cut - 1)) - 1) + ((size >> cut) & 1)
    normal = (rounded >> cut) - ((_BIAS - bias) << width)
    # Subnormals: a sum with a number whose last bit is worth the smallest of them rounds there.
    least = _BIAS + 1 - bias
    magic = torch.full((), 2.0 ** (cut + 1 - bias), dtype=torch.float32, device=size.device)
    small = (size.view(torch.float32) + magic).view(torch.int32) - magic.view(torch.int32)
    return torch.where(size < (least << _WIDTH), small, normal)


def _hif8(size: Tensor) -> Tensor:
    """Codes of magnitudes, to nearest, ties away from zero, up to infinity."""
    cut = _WIDTH - _hif8_width((size >> _WIDTH) - _BIAS)
    rounded = size + (1 << (cut - 1))
    exponent = ((rounded >> _WIDTH) - _BIAS).clamp(max=16)
    width = _hif8_width(exponent)
    mantissa = ((rounded >> 20) & 7) >> (3 - width)
    far, negative = exponent.abs(), (exponent < 0).to(torch.int32)
    one = torch.ones_like(far)
    two = 0x20 | (negative << 4) | ((far & 1) << 3)
    three = 0x40 | (negative << 4) | ((far & 3) << 2)
    four = 0x60 | (negative << 4) | ((far & 7) << 1)
    head = torch.where(far >= 8, four, torch.where(far >= 4, three, two))
    head = torch.where(far == 1, 0x10 | (negative << 3), torch.where(far == 0, 8 * one, head))
    # Half of the smallest rounds up to it.
    denormal = (exponent - HIF8_DENORMAL).clamp(min=1)
    denormal = torch.where(size < ((HIF8_DENORMAL + _BIAS) << _WIDTH), 0, denormal)
    codes = torch.where(exponent < -15, denormal, head | mantissa)
    return torch.where(exponent > 15, TOP_CODES[HIF8] + 1, codes)


def _hif8_width(exponent: Tensor) -> Tensor:
    """Bits of the mantissa at an exponent, int32; none in the denormal mode."""
    far = exponent.abs()
    width = 3 - (far > 3).to(torch.int32) - (far > 7).to(torch.int32)
    return torch.where(exponent < -15, 0, width)
