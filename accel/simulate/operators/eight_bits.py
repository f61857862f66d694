"""8-bit floats: which chips have them, and torch_npu's own casts to HiFloat8.

Only Ascend 950 casts to them, multiplies them and quantizes into them (the vendor's tests of them
name no other chip, and its pages of the quantizing operators say so); another chip keeps their
bytes. torch_npu casts to HiFloat8 past the dispatcher.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from accel.devices.chips import Chip
from accel.simulate.operators.generic import Kernel

DTYPES = frozenset({torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu})
_PRODUCTS = ("aten::_scaled_mm", "aten::_scaled_grouped_mm")
_MX = ("npu::npu_dynamic_mx_quant", "npu::npu_dynamic_mx_quant_with_dual_axis")
# Arguments by which an operator that every chip has is asked for 8-bit floats.
_ASKED_BY: dict[str, tuple[str, ...]] = {
    "npu::npu_dynamic_quant": ("dst_type",),
    "npu::npu_dynamic_block_quant": ("dst_type",),
    "npu::npu_quant_matmul": ("x1_dtype", "x2_dtype", "scale_dtype", "pertoken_scale_dtype"),
    "npu::npu_dtype_cast": ("dtype", "input_dtype"),
    "npu::_npu_dtype_cast": ("dtype",),
}
# What else of those operators only Ascend 950 has, and the value that every chip has.
_OTHERWISE: dict[str, dict[str, object]] = {
    "npu::npu_dynamic_quant": {"quant_mode": "pertoken", "dst_type_max": 0.0},
    "npu::npu_dynamic_block_quant": {"row_block_size": 1, "col_block_size": 128},
}


def why_not(name: str, profile: Chip) -> str | None:
    """Why a chip does not have an operator at all; None if it is not for want of 8-bit floats."""
    if profile.fp8 or not name.startswith((*_PRODUCTS, *_MX)):
        return None
    doing = "multiply" if name.startswith(_PRODUCTS) else "quantize into"
    return f"an {profile.soc_name} does not {doing} 8-bit floats"


def restricted(name: str, compute: Kernel | None, profile: Chip) -> Kernel | None:
    """`compute`, which on a chip without 8-bit floats refuses to be asked for them."""
    if profile.fp8 or compute is None or name not in _ASKED_BY:
        return compute
    return _refusing(name, compute, profile.soc_name)


def _refusing(name: str, compute: Kernel, chip: str) -> Kernel:
    signature = inspect.signature(compute)

    def run(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        for label in _ASKED_BY[name]:
            if _is_eight_bits(given.get(label)):
                raise RuntimeError(f"{name}: {label}: an {chip} does not have 8-bit floats")
        for label, common in _OTHERWISE.get(name, {}).items():
            if given.get(label, common) != common:
                raise RuntimeError(
                    f"{name}: {label}={given[label]!r}: an {chip} has only {common!r}"
                )
        return compute(*args, **kwargs)

    return run


def _is_eight_bits(number: object) -> bool:
    from accel_kernels.vendor.npu.dtypes import target_of

    if not isinstance(number, (int, torch.dtype)):
        return False
    try:
        target = target_of("", "", number)
    except NotImplementedError:
        return False  # the operator itself says what it lacks
    return target.hifloat8 or target.dtype in DTYPES


def install_casts() -> None:
    """Put torch_npu's casts to and from HiFloat8, which start an operator of CANN, on ours."""
    import torch_npu

    extension = torch_npu._C._cd
    for name, function in (
        ("cast_to_fp8", _cast_to),
        ("cast_to_fp8_noalloc", _cast_into),
        ("cast_from_fp8", _cast_from),
    ):
        setattr(extension, name, function)


def _cast_to(values: Tensor, dtype: int) -> Tensor:
    result: Tensor = torch.ops.npu.npu_dtype_cast(values, dtype)
    return result


def _cast_into(values: Tensor, output: Tensor, dtype: int) -> None:
    output.copy_(_cast_to(values, dtype).view(output.shape))


def _cast_from(codes: Tensor, from_dtype: int, dtype: int) -> Tensor:
    result: Tensor = torch.ops.npu.npu_dtype_cast(codes, dtype, from_dtype)
    return result
