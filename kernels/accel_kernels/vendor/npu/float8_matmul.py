"""`npu_quant_matmul` of 8-bit floats.

Products and sums are in float64 and rounded once. Scales are what values are multiplied by.

Source: ops-nn's page of aclnnQuantMatmulV5 (what it says of Ascend 950), and op-plugin's adapter
for where a float32 scale loses bits and which axes must be transposed together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from accel_kernels.fp8 import HIF8, Format
from accel_kernels.vendor.npu.dtypes import FLOAT8_E8M0, target_of
from accel_kernels.vendor.npu.float8 import operand_format, powers_of_two, read
from accel_kernels.vendor.npu.quantization import decode_quant_param, npu_trans_quant_param
from accel_kernels.vendor.npu.values import refuse, require_choice, require_shape

QUANT = "npu_quant_matmul"
GROUPS = {"G-B": (1, 128, 128), "B-B": (128, 128, 128), "mx": (1, 1, 32)}
"""Of each mode with blocks: how many rows, columns and inner values share a scale."""
OUTPUTS = (torch.float16, torch.bfloat16, torch.float32)


class Operands(NamedTuple):
    """Both matrices with what they are multiplied by.

    Attributes:
        x1: `[..., M, K]`.
        x2: `[..., K, N]`.
        x1_scale: None: 1.
        x2_scale: float32, or int64 of `npu_trans_quant_param`; E8M0 codes.
        formats: Of both matrices.
        is_mx: The scales are E8M0.
    """

    x1: Tensor
    x2: Tensor
    x1_scale: Tensor | None
    x2_scale: Tensor
    formats: tuple[Format, Format]
    is_mx: bool


def formats_of(
    x1: Tensor, x2: Tensor, x1_dtype: int | None, x2_dtype: int | None
) -> tuple[Format, Format] | None:
    """The 8-bit floats of both matrices; None if neither is one.

    Raises:
        TypeError: Only one is, or one is HiFloat8 and the other is not.
    """
    first = operand_format(QUANT, "x1_dtype", x1, x1_dtype)
    second = operand_format(QUANT, "x2_dtype", x2, x2_dtype)
    if first is None and second is None:
        return None
    if first is None or second is None or (first == HIF8) != (second == HIF8):
        raise TypeError(
            f"{QUANT}: {first or x1.dtype} and {second or x2.dtype}; give both float8_e4m3fn or "
            f"float8_e5m2, or both hifloat8"
        )
    return first, second


def float8_matmul(
    operands: Operands,
    bias: Tensor | None,
    output_dtype: int | torch.dtype | None,
    group_sizes: Sequence[int] | None,
) -> Tensor:
    """The product, `[..., M, N]` in float16, bfloat16 or float32.

    Without blocks it is `(x1 @ x2 + bias) * x2_scale * x1_scale`: the bias comes before the scales.
    With blocks each block's sum has its scales, and only MX takes a bias, which comes last.
    """
    target = None
    if output_dtype is not None:
        target = target_of(QUANT, "output_dtype", output_dtype).dtype
    require_choice(QUANT, "output_dtype", target, OUTPUTS)
    _check_matrices(operands)
    product = _blocks(operands, group_sizes) if _has_blocks(operands) else None
    if bias is not None:
        _check_bias(operands, bias, product is not None)
    if product is None:
        if any(group_sizes or ()):
            raise ValueError(f"{QUANT}: group_sizes={group_sizes} without blocks; give None")
        product = _whole(operands, bias)
    elif bias is not None:
        product = product + bias.double()
    return product.to(target)


def _check_matrices(operands: Operands) -> None:
    for label, tensor in (("x1", operands.x1), ("x2", operands.x2)):
        if not 2 <= tensor.ndim <= 6 or not tensor.shape[-1] or not tensor.shape[-2]:
            raise ValueError(
                f"{QUANT}: {label} has shape {list(tensor.shape)}; give 2 to 6 dimensions, none "
                f"of 0"
            )
        rows, columns = tensor.stride()[-2:]
        if columns != 1 and rows != 1:
            raise ValueError(
                f"{QUANT}: {label} has strides {list(tensor.stride())}; only a transposed view may "
                f"be non-contiguous: call {label}.contiguous()"
            )
    if operands.x1.shape[-1] != operands.x2.shape[-2]:
        raise ValueError(f"{QUANT}: {list(operands.x1.shape)} @ {list(operands.x2.shape)}")


def _check_bias(operands: Operands, bias: Tensor, has_blocks: bool) -> None:
    if has_blocks and not operands.is_mx:
        raise ValueError(f"{QUANT}: blocks of 8-bit floats take no bias; add it afterwards")
    if bias.dtype != torch.float32:
        raise TypeError(f"{QUANT}: bias is {bias.dtype}; with 8-bit floats give float32")
    columns = operands.x2.shape[-1]
    batch = operands.x1.shape[:-2] if operands.x1.ndim == 3 else operands.x2.shape[:-2]
    require_shape(QUANT, "bias", bias, (columns,), (1, columns), (*batch, 1, columns))


def _has_blocks(operands: Operands) -> bool:
    return operands.is_mx or (
        operands.x1_scale is not None and min(operands.x1_scale.ndim, operands.x2_scale.ndim) >= 2
    )


# --- one scale for a row, a column or all ---------------------------------------------------------


def _whole(operands: Operands, bias: Tensor | None) -> Tensor:
    x1, x2, x1_scale, x2_scale, formats, _ = operands
    rows, columns = x1.shape[-2], x2.shape[-1]
    product = read(x1, formats[0]) @ read(x2, formats[1])
    if bias is not None:
        product = product + bias.double()
    require_shape(QUANT, "scale", x2_scale, (1,), (columns,))
    if x1_scale is None:
        if x2_scale.dtype not in (torch.float32, torch.int64):
            raise TypeError(f"{QUANT}: scale is {x2_scale.dtype}; give float32 or int64")
        # The adapter turns a float32 scale into the packed one, which holds 19 of its bits.
        param = x2_scale if x2_scale.dtype == torch.int64 else npu_trans_quant_param(x2_scale)
        return product * decode_quant_param(param)[0]
    _require_float32(x1_scale, x2_scale)
    require_shape(QUANT, "pertoken_scale", x1_scale, (1,), (rows,))
    return product * x2_scale.double() * x1_scale.double().unsqueeze(-1)


def _require_float32(x1_scale: Tensor, x2_scale: Tensor) -> None:
    for label, tensor in (("pertoken_scale", x1_scale), ("scale", x2_scale)):
        if tensor.dtype != torch.float32:
            raise TypeError(f"{QUANT}: {label} is {tensor.dtype}; give float32 for both scales")


# --- blocks ---------------------------------------------------------------------------------------


def _blocks(operands: Operands, group_sizes: Sequence[int] | None) -> Tensor:
    x1, x2, x1_scale, x2_scale, formats, is_mx = operands
    if x1_scale is None:
        raise ValueError(f"{QUANT}: scales of E8M0 need pertoken_scale as well as scale")
    mode = _mode(operands, x1_scale, group_sizes)
    high, wide, inner = GROUPS[mode]
    rows, columns, depth = x1.shape[-2], x2.shape[-1], x1.shape[-1]
    _check_layout("x1", x1, "pertoken_scale", x1_scale, is_mx)
    _check_layout("x2", x2, "scale", x2_scale, is_mx)
    if is_mx:
        left = powers_of_two(x1_scale).flatten(-2)
        right = powers_of_two(x2_scale).movedim(-1, -2).flatten(-3, -2)
    else:
        _require_float32(x1_scale, x2_scale)
        left, right = x1_scale.double(), x2_scale.double()
    left = _spread(_spread(left, high, -2, rows), inner, -1, depth)
    right = _spread(_spread(right, inner, -2, depth), wide, -1, columns)
    # In float64 it makes no difference whether scales are on the values or on their sums.
    return (read(x1, formats[0]) * left) @ (read(x2, formats[1]) * right)


def _mode(operands: Operands, x1_scale: Tensor, group_sizes: Sequence[int] | None) -> str:
    """Which groups the shapes of the scales mean; what `group_sizes` says must be those."""
    x1, x2 = operands.x1, operands.x2
    shapes = {
        mode: _scale_shapes(x1, x2, mode)
        for mode in (("mx",) if operands.is_mx else ("G-B", "B-B"))
    }
    given = (tuple(x1_scale.shape), tuple(operands.x2_scale.shape))
    asked = tuple(group_sizes or (0, 0, 0))
    for mode, wanted in shapes.items():
        fits = all(a in (0, group) for a, group in zip(asked, GROUPS[mode], strict=True))
        if given == wanted and fits and (operands.is_mx is False or HIF8 not in operands.formats):
            return mode
    raise ValueError(
        f"{QUANT}: pertoken_scale {list(given[0])} and scale {list(given[1])} with "
        f"group_sizes={list(asked)} for {list(x1.shape)} @ {list(x2.shape)}; give "
        + " or ".join(
            f"{list(GROUPS[mode])} with {list(a)} and {list(b)}" for mode, (a, b) in shapes.items()
        )
        + (" of float8_e4m3fn or float8_e5m2" if operands.is_mx else "")
    )


def _scale_shapes(x1: Tensor, x2: Tensor, mode: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    high, wide, inner = GROUPS[mode]
    rows, columns, depth = x1.shape[-2], x2.shape[-1], x1.shape[-1]
    batch1, batch2 = x1.shape[:-2], x2.shape[:-2]
    if mode == "mx":
        pairs = -(-depth // (2 * inner))
        return (*batch1, rows, pairs, 2), (*batch2, pairs, columns, 2)
    runs = -(-depth // inner)
    return (*batch1, -(-rows // high), runs), (*batch2, runs, -(-columns // wide))


def _spread(scales: Tensor, times: int, axis: int, size: int) -> Tensor:
    return scales.repeat_interleave(times, axis).narrow(axis, 0, size)


def _check_layout(label: str, x: Tensor, scale_label: str, scale: Tensor, is_mx: bool) -> None:
    """The adapter's rule: both transposed views, or neither, unless an axis is 1."""
    axes = (-3, -2) if is_mx else (-2, -1)
    if 1 in x.shape[-2:] or 1 in (scale.shape[axes[0]], scale.shape[axes[1]]):
        return
    if (x.stride(-2) < x.stride(-1)) != (scale.stride(axes[0]) < scale.stride(axes[1])):
        raise ValueError(
            f"{QUANT}: of {label} and {scale_label} one is a transposed view and the other is not; "
            f"transpose both, or neither"
        )


def is_e8m0(label: str, scale: Tensor | None, number: int | None) -> bool:
    """Whether a scale is E8M0: by its dtype, or by the argument for tensors of any 8 bits.

    Raises:
        ValueError: The argument says another dtype, or the tensor has no 8 bits.
    """
    if number is None:
        return scale is not None and scale.dtype == torch.float8_e8m0fnu
    is_number = number == FLOAT8_E8M0 or number == 44
    if not is_number or scale is None or scale.dtype.itemsize != 1:
        refuse(QUANT, label, number, f"it is {FLOAT8_E8M0} (float8_e8m0fnu), for scales of 8 bits")
    return True
