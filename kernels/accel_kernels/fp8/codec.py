"""From floating-point numbers to codes of eight bits, and back."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from accel_kernels.fp8 import native
from accel_kernels.fp8.bits import encode_bits, to_odd
from accel_kernels.fp8.formats import Format
from accel_kernels.fp8.values import value_of

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Devices whose casts of torch give these bits for values within the format's range.
_CASTS = frozenset({"cpu", "cuda"})


def encode(values: Tensor, form: Format, *, saturate: bool = True) -> Tensor:
    """The code of the nearest value of the format, rounded once.

    E4M3 and E5M2 take the even code of two that are equally near. HiFloat8 takes the one farther
    from zero, and for at least half of its smallest value that value (section 3 of the paper, and
    Ascend's `CAST_ROUND`); it has no negative zero.

    Args:
        values: Any shape; float64, float32, bfloat16 or float16.
        form: Of the codes.
        saturate: Whether what is beyond the format, infinities too, becomes its largest value.
            Otherwise it becomes an infinity of its sign, or NaN in E4M3, which has none; as
            ml_dtypes has it.

    Returns:
        uint8 of that shape. A NaN becomes 0x7f with its sign, in HiFloat8 the only one, 0x80.

    Raises:
        TypeError: `values` has another dtype.
    """
    if values.dtype not in DTYPES:
        raise TypeError(f"eight-bit codes are made of {_names()}, not of {values.dtype}; cast it")
    values = values.detach()
    if saturate and native.is_usable(values):
        return native.encode_all(values, form)
    values = values.resolve_neg()
    values = to_odd(values) if values.dtype == torch.float64 else values.to(torch.float32)
    if saturate and form.dtype is not None and values.device.type in _CASTS:
        # torch before 2.12 casts what is beyond E4M3 to NaN, and always to infinity in E5M2.
        inside = values.clamp(-form.largest, form.largest)
        return inside.to(form.dtype).view(torch.uint8)
    return encode_bits(values, form, saturate)


def decode(codes: Tensor, form: Format, dtype: torch.dtype = torch.float32) -> Tensor:
    """The values of codes, exact in every dtype.

    Args:
        codes: Any shape; uint8, or the format's own dtype.
        form: Of the codes.
        dtype: float64, float32, bfloat16 or float16.

    Returns:
        `dtype` of that shape.

    Raises:
        TypeError: `codes` or `dtype` is another dtype.
    """
    if dtype not in DTYPES:
        raise TypeError(f"eight-bit codes are decoded to {_names()}, not to {dtype}")
    if codes.dtype != torch.uint8:
        if form.dtype is None or codes.dtype != form.dtype:
            raise TypeError(f"codes of {form} are uint8 or {form.dtype}, not {codes.dtype}")
        codes = codes.view(torch.uint8)
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        if form.dtype is not None and codes.device.type in _CASTS:
            return codes.view(form.dtype).to(dtype)
        # Not kept: what is made under FakeTensorMode is of no use after it.
        table = torch.tensor(_values(form), dtype=dtype, device=codes.device)
    else:
        table = _table(form, dtype, codes.device)
    index = codes.reshape(-1).to(torch.int32)
    return table.index_select(0, index).view(codes.shape)


@functools.cache
def _table(form: Format, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(_values(form), dtype=dtype, device=device)


def _values(form: Format) -> list[float]:
    return [value_of(code, form) for code in range(256)]


def _names() -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
