"""Casts of dtype and of memory format.

A plain tensor has no memory format of its own, so a cast of format copies the values; which format
the operator was asked for is checked and not kept.

Source: op-plugin's pages of `npu_format_cast`, `npu_format_cast_` and `npu_dtype_cast`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from accel_kernels.fp8 import HIF8, decode, encode
from accel_kernels.vendor.npu.dtypes import dtype_of, target_of
from accel_kernels.vendor.npu.values import refuse, require_choice

OVERFLOW = 1.25 * HIF8.largest
"""From here on a number is rounded beyond HiFloat8."""
FORMATS = {
    "NCHW": 0, "NHWC": 1, "ND": 2, "NC1HWC0": 3, "FRACTAL_Z": 4, "HWCN": 16, "NDHWC": 27,
    "FRACTAL_NZ": 29, "NCDHW": 30, "NDC1HWC0": 32, "FRACTAL_Z_3D": 33, "NC": 35, "NCL": 47,
}  # fmt: skip


def _check_format(
    operator: str, acl_format: int, customize_dtype: int | None, input_dtype: int | None
) -> None:
    require_choice(operator, "acl_format", acl_format, FORMATS.values())
    # 3, int32, only narrows a block of FRACTAL_NZ.
    if customize_dtype not in (None, 3):
        refuse(operator, "customize_dtype", customize_dtype, "its packing is not documented")
    if input_dtype is not None:
        refuse(operator, "input_dtype", input_dtype, "no document defines it")


def npu_format_cast(
    input: Tensor,  # noqa: A002 - the schema's name
    acl_format: int,
    *,
    customize_dtype: int | None = None,
    input_dtype: int | None = None,
) -> Tensor:
    """A copy of `input`; `acl_format` must be one that the operator knows."""
    _check_format("npu_format_cast", acl_format, customize_dtype, input_dtype)
    return input.clone()


def npu_format_cast_tensor(
    input: Tensor,  # noqa: A002 - the schema's name
    dst: Tensor,
    *,
    customize_dtype: int | None = None,
    input_dtype: int | None = None,
) -> Tensor:
    """A copy of `input`, in the format of `dst`."""
    _check_format("npu_format_cast", FORMATS["ND"], customize_dtype, input_dtype)
    return input.clone()


def npu_format_cast_in_place(
    input: Tensor,  # noqa: A002 - the schema's name
    src: Tensor,
    *,
    customize_dtype: int | None = None,
    input_dtype: int | None = None,
) -> Tensor:
    """`input` itself, in the format of `src`."""
    _check_format("npu_format_cast_", FORMATS["ND"], customize_dtype, input_dtype)
    return input


def npu_format_cast_in_place_to(
    input: Tensor,  # noqa: A002 - the schema's name
    acl_format: int,
    *,
    customize_dtype: int | None = None,
    input_dtype: int | None = None,
) -> Tensor:
    """`input` itself; `acl_format` must be one that the operator knows."""
    _check_format("npu_format_cast_", acl_format, customize_dtype, input_dtype)
    return input


def private_npu_format_cast(
    input: Tensor,  # noqa: A002 - the schema's name
    acl_format: int,
) -> Tensor:
    """What autograd calls for `npu_format_cast`."""
    return npu_format_cast(input, acl_format)


def private_npu_format_cast_aclnn(
    input: Tensor,  # noqa: A002 - the schema's name
    acl_format: int,
    customize_dtype: int,
) -> Tensor:
    """What autograd calls for `npu_format_cast` with `customize_dtype`."""
    return npu_format_cast(input, acl_format, customize_dtype=customize_dtype)


def private_npu_format_cast_input_dtype(
    input: Tensor,  # noqa: A002 - the schema's name
    acl_format: int,
    customize_dtype: int,
    input_dtype: int,
) -> Tensor:
    """What autograd calls for `npu_format_cast` with `input_dtype`."""
    return npu_format_cast(
        input, acl_format, customize_dtype=customize_dtype, input_dtype=input_dtype
    )


def npu_dtype_cast(
    input: Tensor,  # noqa: A002 - the schema's name
    dtype: int | torch.dtype,
    input_dtype: int | torch.dtype | None = None,
) -> Tensor:
    """`input` in another dtype, always a new tensor.

    Args:
        input: Any tensor; uint8 with `input_dtype` 290 holds HiFloat8.
        dtype: torch's or torch_npu's number of the dtype; 290, HiFloat8, gives uint8.
        input_dtype: If given, the number of the dtype that `input` has.

    Raises:
        NotImplementedError: For formats of 4 bits, and for what HiFloat8 cannot hold: the chip's
            cast has two modes, and which of them the operator takes is not documented.
        ValueError: If `input_dtype` is not the dtype of `input`.
    """
    name = "npu_dtype_cast"
    if input_dtype is not None and not _is_hifloat8(name, "input_dtype", input_dtype):
        wanted = dtype_of(name, "input_dtype", input_dtype)
    else:
        wanted = input.dtype if input_dtype is None else torch.uint8
    if wanted != input.dtype:
        raise ValueError(f"{name}: input_dtype={input_dtype}, but input is {input.dtype}")
    values = input
    if input_dtype is not None and _is_hifloat8(name, "input_dtype", input_dtype):
        values = decode(input, HIF8)
    if not _is_hifloat8(name, "dtype", dtype):
        return values.to(dtype_of(name, "dtype", dtype), copy=True)
    beyond = ~(values.abs() < OVERFLOW)
    if bool(beyond.any()):
        refuse(name, "dtype", dtype, f"input holds {values[beyond][0]}, which HiFloat8 does not")
    return encode(values if values.is_floating_point() else values.float(), HIF8)


def _is_hifloat8(name: str, label: str, number: int | torch.dtype) -> bool:
    return target_of(name, label, number).hifloat8


def npu_dtype_cast_backward(
    grad: Tensor,
    dtype: int | torch.dtype,
    grad_dtype: int | torch.dtype | None = None,
    input_dtype: int | torch.dtype | None = None,
) -> Tensor:
    """The gradient in the dtype that the forward's input had (`input_dtype`, else `dtype`)."""
    return npu_dtype_cast(grad, dtype if input_dtype is None else input_dtype, grad_dtype)


def private_npu_dtype_cast(
    input: Tensor,  # noqa: A002 - the schema's name
    dtype: int | torch.dtype,
) -> Tensor:
    """The form that torch_npu itself calls."""
    return npu_dtype_cast(input, dtype)


def private_npu_dtype_cast_backward(grad: Tensor, dtype: int | torch.dtype) -> Tensor:
    """The gradient of that form."""
    return npu_dtype_cast(grad, dtype)
