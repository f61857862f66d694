"""The numbers that npu operators take for a dtype, and integers of 4 bits in an int32.

HiFloat8 has a number and no dtype of torch: its bytes are uint8.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CUSTOM = 256
"""Where torch_npu's own numbers begin: 256 plus CANN's."""

_TORCH = {
    0: torch.uint8, 1: torch.int8, 2: torch.int16, 3: torch.int32, 4: torch.int64,
    5: torch.float16, 6: torch.float32, 7: torch.float64, 11: torch.bool, 15: torch.bfloat16,
    23: torch.float8_e5m2, 24: torch.float8_e4m3fn, 44: torch.float8_e8m0fnu,
}  # fmt: skip
_CANN = {
    0: torch.float32, 1: torch.float16, 2: torch.int8, 3: torch.int32, 4: torch.uint8,
    6: torch.int16, 9: torch.int64, 11: torch.float64, 12: torch.bool, 27: torch.bfloat16,
    34: torch.uint8, 35: torch.float8_e5m2, 36: torch.float8_e4m3fn, 37: torch.float8_e8m0fnu,
}  # fmt: skip
_QUANTIZED = {12: torch.int8, 13: torch.uint8, 14: torch.int32}
_QUANTIZED_DTYPES = {torch.qint8: torch.int8, torch.quint8: torch.uint8, torch.qint32: torch.int32}
QUINT4X2 = 16
INT4 = CUSTOM + 29
HIFLOAT8 = CUSTOM + 34
FLOAT8_E8M0 = CUSTOM + 37


class Target(NamedTuple):
    """What a dtype argument asks for.

    Attributes:
        dtype: Of the tensor.
        packed: It holds eight integers of 4 bits in each element.
        hifloat8: Its bytes are HiFloat8.
    """

    dtype: torch.dtype
    packed: bool
    hifloat8: bool = False


def target_of(operator: str, name: str, number: int | torch.dtype) -> Target:
    """The meaning of a dtype argument: torch's ScalarType, torch_npu's number or a dtype.

    Raises:
        NotImplementedError: If torch on a CPU has no such dtype.
    """
    if isinstance(number, torch.dtype):
        if number == torch.quint4x2:
            return Target(torch.int32, True)
        return Target(_QUANTIZED_DTYPES.get(number, number), False)
    if number in (QUINT4X2, INT4):
        return Target(torch.int32, True)
    found = _CANN.get(number - CUSTOM) if number >= CUSTOM else _TORCH.get(number)
    found = found or _QUANTIZED.get(number)
    if found is None:
        raise NotImplementedError(f"{operator}: {name}={number} has no dtype in torch on a CPU")
    return Target(found, False, number == HIFLOAT8)


def dtype_of(operator: str, name: str, number: int | torch.dtype) -> torch.dtype:
    """Like `target_of`, for results that can be neither packed nor HiFloat8."""
    target = target_of(operator, name, number)
    if target.packed or target.hifloat8 or number in (*_QUANTIZED, *_QUANTIZED_DTYPES):
        raise NotImplementedError(f"{operator}: {name}={number} is quantized; not available here")
    return target.dtype


def pack_int4(values: Tensor) -> Tensor:
    """Eight integers from -8 to 7 along the last axis in an int32, the first lowest.

    Args:
        values: `[..., 8 n]`, any integers.

    Returns:
        `[..., n]`, int32.
    """
    nibbles = (values.to(torch.int64) & 0xF).unflatten(-1, (-1, 8))
    shifts = torch.arange(0, 32, 4, device=values.device)
    words = (nibbles << shifts).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def unpack_int4(packed: Tensor) -> Tensor:
    """The inverse of `pack_int4`: `[..., n]` int32 to `[..., 8 n]` int8."""
    shifts = torch.arange(0, 32, 4, device=packed.device)
    nibbles = (packed.to(torch.int64).unsqueeze(-1) >> shifts) & 0xF
    return torch.where(nibbles >= 8, nibbles - 16, nibbles).to(torch.int8).flatten(-2)


def to_integers(values: Tensor, dtype: torch.dtype, bits: int = 0) -> Tensor:
    """Round half to even, and saturate to `dtype` or to signed integers of `bits`.

    Raises:
        ValueError: If a value is NaN.
    """
    if bool(values.isnan().any()):
        raise ValueError("a value to quantize is NaN, which no integer stands for")
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if bits else _range(dtype)
    # In float64, so that the ends of int32 are themselves.
    return values.double().round().clamp(low, high).to(dtype)


def _range(dtype: torch.dtype) -> tuple[int, int]:
    info = torch.iinfo(dtype)
    return info.min, info.max
