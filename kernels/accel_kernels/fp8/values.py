"""What each of the 256 codes of a format stands for, from the formats' definitions."""

from __future__ import annotations

import math

from accel_kernels.fp8.formats import E4M3, E5M2, HIF8, Format

SIGN = 0x80
# The NaN that `encode` writes. HiFloat8 has a single one, where a negative zero would be.
NAN_CODES = {E4M3: 0x7F, E5M2: 0x7F, HIF8: 0x80}
# The largest finite value. What follows it is NaN in E4M3 and infinity in the others.
TOP_CODES = {E4M3: 0x7E, E5M2: 0x7B, HIF8: 0x6E}
# Halfway between the largest value and the next there would be: what is beyond saturates.
SATURATION = {E4M3: 464.0, E5M2: 61440.0, HIF8: 40960.0}
# Bits of the mantissa and bias of the exponent of the two formats whose fields have fixed widths.
FIELDS = {E4M3: (3, 7), E5M2: (2, 15)}
# HiFloat8: the exponent of code 0 of the denormal mode, whose three bits count upwards from it.
HIF8_DENORMAL = -23


def value_of(code: int, form: Format) -> float:
    """The value of a code from 0 to 255."""
    size = _hif8(code & 0x7F) if form == HIF8 else _minifloat(code & 0x7F, form)
    if not code & SIGN:
        return size
    if form == HIF8 and not code & 0x7F:
        return math.nan
    return math.copysign(size, -1.0)


def _minifloat(code: int, form: Format) -> float:
    """Micikevicius et al., arXiv 2209.05433, table 1."""
    width, bias = FIELDS[form]
    exponent, mantissa = code >> width, code & ((1 << width) - 1)
    if code > TOP_CODES[form]:
        return math.inf if form.infinities and not mantissa else math.nan
    if not exponent:
        return math.ldexp(mantissa, 1 - bias - width)
    return math.ldexp((1 << width) + mantissa, exponent - bias - width)


def _hif8(code: int) -> float:
    """Luo et al., arXiv 2409.16626, tables 1 and 2.

    The dot field, a prefix code, says how many bits the exponent has: 11, 10 and 01 for four, three
    and two, 001 for one, 0001 for none, and 0000 for the denormal mode. The exponent is a sign and
    a magnitude whose first one is not stored; the mantissa takes what is left.
    """
    if code == TOP_CODES[HIF8] + 1:
        return math.inf
    if code < 8:
        return math.ldexp(1.0, HIF8_DENORMAL + code) if code else 0.0
    bits = 4 if code >= 96 else 3 if code >= 64 else 2 if code >= 32 else 1 if code >= 16 else 0
    width = 3 if bits <= 2 else 5 - bits
    mantissa, field = code & ((1 << width) - 1), (code >> width) & ((1 << bits) - 1)
    exponent = 0
    if bits:
        half = 1 << (bits - 1)
        magnitude = half + (field & (half - 1))
        exponent = -magnitude if field & half else magnitude
    return math.ldexp((1 << width) + mantissa, exponent - width)
