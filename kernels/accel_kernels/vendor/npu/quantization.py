"""Quantizing and dequantizing tensors, and packing 4-bit weights.

Integers are rounded half to even and saturate. Source: op-plugin's pages of the operators, and for
8-bit floats ops-nn's page of aclnnDynamicQuantV4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from accel_kernels.fp8 import Format
from accel_kernels.vendor.npu.dtypes import (
    Target,
    dtype_of,
    pack_int4,
    target_of,
    to_integers,
    unpack_int4,
)
from accel_kernels.vendor.npu.float8 import (
    cast,
    divided,
    format_of,
    largest_along,
    largest_of,
    require_finite,
)
from accel_kernels.vendor.npu.values import (
    refuse,
    require_choice,
    require_floats,
    require_shape,
    wide_dtype,
)

SCALE_MASK = 0xFFFFE000
SCALE_FLAG = 1 << 46
OFFSET_SHIFT = 37
OFFSET_MASK = 0x1FF
# Of "npu_dynamic_quant": along which axis values share a scale; None: all do.
_AXES = {"pertoken": -1, "perchannel": -2, "pertensor": None}


def npu_dynamic_quant(
    input: Tensor,  # noqa: A002 - the schema's name
    *,
    smooth_scales: Tensor | None = None,
    group_index: Tensor | None = None,
    dst_type: int | torch.dtype | None = None,
    quant_mode: str = "pertoken",
    dst_type_max: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Quantize each row, or column, or all, by the largest magnitude there.

    Args:
        input: `[..., D]`, at least 2 dimensions; D a multiple of 8 for 4 bits.
        smooth_scales: `[D]`, multiplied in first; `[G, D]` with `group_index`; `[T]`, the last
            size but one, with "perchannel".
        group_index: `[G]`, ends of the rows of each group, rising to the number of rows; only
            with "pertoken".
        dst_type: int8 (None), quint4x2, float8_e4m3fn, float8_e5m2 or hifloat8.
        quant_mode: "pertoken", "perchannel" or "pertensor".
        dst_type_max: Of hifloat8, what the largest magnitude becomes; 0: its largest number.

    Returns:
        `[..., D]` in the dtype asked for (uint8 for hifloat8), or int32 `[..., D / 8]` with eight
        4-bit integers each, the first lowest; and the scales, float32 (float64 for float64), by
        which a value is multiplied to have it back: the input's shape without its last dimension,
        without the last but one, or `[1]`. A row of zeros gives zeros, scale 0.

    Raises:
        ValueError: If a value is not finite, or the shapes do not belong together.
    """
    name = "npu_dynamic_quant"
    require_floats(name, input=input, smooth_scales=smooth_scales)
    require_choice(name, "quant_mode", quant_mode, _AXES)
    target = Target(torch.int8, False)
    if dst_type is not None:
        target = target_of(name, "dst_type", dst_type)
    kind, largest = _range_of(name, target, dst_type_max)
    if input.ndim < 2 or (target.packed and input.shape[-1] % 8):
        raise ValueError(
            f"{name}: input has shape {list(input.shape)}; give at least 2 dimensions, the last a "
            f"multiple of 8 for 4 bits"
        )
    wide = wide_dtype(input)
    values = input.to(wide)
    if smooth_scales is not None:
        smooth = _smooth(name, input, smooth_scales, group_index, quant_mode)
        values = values * smooth.to(wide)
    elif group_index is not None:
        raise ValueError(f"{name}: group_index needs smooth_scales")
    require_finite(name, values)
    axis = _AXES[quant_mode]
    scale = largest_along(values.abs(), axis) / largest
    quotient = divided(values, scale)
    scale = scale.reshape(1) if axis is None else scale.squeeze(axis)
    if kind is not None:
        return cast(quotient, kind), scale
    integers = to_integers(quotient, torch.int8, bits=4 if target.packed else 8)
    return pack_int4(integers) if target.packed else integers, scale


def _range_of(name: str, target: Target, dst_type_max: float) -> tuple[Format | None, float]:
    """The 8-bit float, if it is one, and what the largest magnitude becomes."""
    kind = format_of(target)
    if kind is not None:
        return kind, largest_of(name, kind, dst_type_max)
    if not target.packed and target.dtype != torch.int8:
        refuse(name, "dst_type", target.dtype, "its page has int8, quint4x2 and 8-bit floats")
    if dst_type_max:
        raise ValueError(f"{name}: dst_type_max={dst_type_max} without hifloat8; give 0")
    return None, 7 if target.packed else 127


def _smooth(
    name: str,
    input: Tensor,  # noqa: A002
    smooth: Tensor,
    group_index: Tensor | None,
    quant_mode: str,
) -> Tensor:
    depth = input.shape[-1]
    if group_index is not None and quant_mode != "pertoken":
        raise ValueError(
            f"{name}: group_index belongs to quant_mode 'pertoken', not {quant_mode!r}"
        )
    if quant_mode == "perchannel":
        require_shape(name, "smooth_scales", smooth, (input.shape[-2],))
        return smooth.unsqueeze(-1)
    if group_index is None:
        require_shape(name, "smooth_scales", smooth, (depth,))
        return smooth
    if smooth.ndim != 2:
        raise ValueError(f"{name}: smooth_scales is {smooth.ndim}-d; group_index needs [G, D]")
    require_shape(name, "smooth_scales", smooth, (smooth.shape[0], depth))
    require_shape(name, "group_index", group_index, (smooth.shape[0],))
    ends = group_index.to(torch.int64)
    counts = torch.diff(ends, prepend=ends.new_zeros(1))
    rows = input.numel() // depth if depth else 0
    if bool((counts < 0).any()) or int(counts.sum()) != rows:
        raise ValueError(f"{name}: group_index={ends.tolist()}; give ends that rise to {rows}")
    return smooth.repeat_interleave(counts, dim=0).view(input.shape)


def npu_quantize(
    input: Tensor,  # noqa: A002 - the schema's name
    scales: Tensor,
    zero_points: Tensor | None,
    dtype: int | torch.dtype,
    axis: int = 1,
    div_mode: bool = True,
) -> Tensor:
    """`input / scales + zero_points`, or `input * scales + zero_points` without `div_mode`.

    Args:
        input: Any floats.
        scales: `[1]`, or as many as `input` has along the axis; without `div_mode` also with all
            the dimensions of `input`, 1 elsewhere.
        zero_points: Like `scales`, or None.
        dtype: qint8, quint8 or int32; without `div_mode` qint8 or quint4x2.
        axis: The axis of the scales; without `div_mode` -2 means the last but one, and anything
            above the last.
        div_mode: Whether to divide.

    Returns:
        int8, uint8 or int32 of the input's shape, or for quint4x2 int32 with an eighth of the last
        size, the first of eight 4-bit integers lowest.
    """
    name = "npu_quantize"
    require_floats(name, input=input, scales=scales)
    target = target_of(name, "dtype", dtype)
    allowed = (torch.int8, torch.uint8, torch.int32) if div_mode else (torch.int8,)
    if (target.packed and div_mode) or (not target.packed and target.dtype not in allowed):
        raise ValueError(f"{name}: dtype={dtype} with div_mode={div_mode} is not documented")
    if not div_mode:
        if axis < -2 or axis >= input.ndim:
            raise ValueError(f"{name}: axis={axis}; give -2 or more, below {input.ndim}")
        axis = -2 if axis == -2 else -1
    if not -input.ndim <= axis < input.ndim:
        raise ValueError(f"{name}: axis={axis} of {input.ndim} dimensions")
    if target.packed and input.shape[-1] % 8:
        raise ValueError(f"{name}: the last size {input.shape[-1]} is no multiple of 8")
    wide = wide_dtype(input)
    scale = _along(name, "scales", scales, input, axis).to(wide)
    result = input.to(wide) / scale if div_mode else input.to(wide) * scale
    if zero_points is not None:
        result = result + _along(name, "zero_points", zero_points, input, axis).to(wide)
    if target.packed:
        return pack_int4(to_integers(result, torch.int8, bits=4))
    return to_integers(result, target.dtype)


def _along(name: str, label: str, tensor: Tensor, input: Tensor, axis: int) -> Tensor:  # noqa: A002
    axis %= input.ndim
    shape = [1] * input.ndim
    full = list(shape)
    full[axis] = input.shape[axis]
    require_shape(name, label, tensor, (1,), (input.shape[axis],), tuple(shape), tuple(full))
    if tensor.ndim == 1:
        shape[axis] = tensor.shape[0]
        return tensor.view(shape)
    return tensor


def npu_anti_quant(
    x: Tensor,
    scale: Tensor,
    *,
    offset: Tensor | None = None,
    dst_dtype: int | torch.dtype | None = None,
    src_dtype: int | torch.dtype | None = None,
) -> Tensor:
    """`(x + offset) * scale` in `dst_dtype`.

    Args:
        x: int8, or int32 with eight 4-bit integers each.
        scale: `[1]` or as many as the last size (eight times it for int32), float32 or bfloat16.
        offset: Like `scale`.
        dst_dtype: float16 (None) or bfloat16; float32 and float64 for reference.
        src_dtype: If given, int8 for int8 and quint4x2 for int32.
    """
    name = "npu_anti_quant"
    require_floats(name, scale=scale, offset=offset)
    if x.dtype not in (torch.int8, torch.int32):
        raise TypeError(f"{name}: x is {x.dtype}; give int8, or int32 of 4-bit integers")
    if src_dtype is not None:
        source = target_of(name, "src_dtype", src_dtype)
        if source.packed != (x.dtype == torch.int32) or source.dtype != x.dtype:
            raise ValueError(f"{name}: src_dtype={src_dtype} does not belong to {x.dtype}")
    out_dtype = torch.float16 if dst_dtype is None else dtype_of(name, "dst_dtype", dst_dtype)
    allowed = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    require_choice(name, "dst_dtype", out_dtype, allowed)
    values = unpack_int4(x) if x.dtype == torch.int32 else x
    depth = values.shape[-1] if values.ndim else 1
    require_shape(name, "scale", scale, (1,), (depth,))
    wide = torch.float64 if out_dtype == torch.float64 else wide_dtype(scale)
    result = values.to(wide)
    if offset is not None:
        require_shape(name, "offset", offset, tuple(scale.shape))
        if offset.dtype != scale.dtype:
            raise TypeError(f"{name}: offset is {offset.dtype}, scale {scale.dtype}; give one")
        result = result + offset.to(wide)
    return (result * scale.to(wide)).to(out_dtype)


def npu_convert_weight_to_int4pack(weight: Tensor, inner_k_tiles: int = 0) -> Tensor:
    """Pack int32 weights from -8 to 7, eight into an int32, the first lowest.

    Args:
        weight: int32 `[K, N]` or `[N, K]`, contiguous, the last size a multiple of 8.
        inner_k_tiles: Reserved by the operator; changes nothing.

    Returns:
        int32, the last size an eighth.
    """
    name = "npu_convert_weight_to_int4pack"
    if weight.dtype != torch.int32:
        raise TypeError(f"{name}: weight is {weight.dtype}; give int32")
    if weight.ndim not in (2, 3) or not weight.numel() or weight.shape[-1] % 8:
        raise ValueError(
            f"{name}: weight has shape {list(weight.shape)}; give 2 or 3 dimensions, none of 0, "
            f"the last a multiple of 8"
        )
    if not weight.is_contiguous():
        raise ValueError(f"{name}: weight is not contiguous; call weight.contiguous() first")
    low, high = int(weight.min()), int(weight.max())
    if low < -8 or high > 7:
        raise ValueError(f"{name}: weight holds {low} to {high}; give -8 to 7")
    return pack_int4(weight)


def npu_trans_quant_param(
    scale: Tensor, offset: Tensor | None = None, round_mode: int | None = 0
) -> Tensor:
    """A float32 scale, cut to 19 bits, and an integer offset in the bits of an int64.

    Bits 13 to 31 hold the upper bits of the scale, bit 46 is set, and bits 37 to 45 hold the offset
    rounded and saturated to -256 .. 255.

    Args:
        scale: float32, 1 or 2 dimensions, not empty.
        offset: float32, like `scale`, or of size 1 where both have one dimension.
        round_mode: 0 cuts the scale, 1 rounds it half to even.

    Returns:
        int64 of the broadcast shape.
    """
    name = "npu_trans_quant_param"
    require_choice(name, "round_mode", round_mode, (None, 0, 1))
    for label, tensor in (("scale", scale), ("offset", offset)):
        if tensor is not None and (tensor.dtype != torch.float32 or tensor.ndim not in (1, 2)):
            raise TypeError(f"{name}: {label} is {tensor.ndim}-d {tensor.dtype}; give float32")
    if not scale.numel():
        raise ValueError(f"{name}: scale is empty")
    bits = scale.contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    if round_mode == 1:
        bits = bits + 0xFFF + ((bits >> 13) & 1)
    out = (bits & SCALE_MASK) | SCALE_FLAG
    if offset is None:
        return out
    if scale.ndim == 2:
        require_shape(name, "offset", offset, tuple(scale.shape))
    elif offset.ndim != 1 or (
        1 not in (offset.numel(), scale.numel()) and offset.shape != scale.shape
    ):
        raise ValueError(f"{name}: offset {list(offset.shape)}, scale {list(scale.shape)}")
    integers = to_integers(offset, torch.int64, bits=9)
    return out | ((integers & OFFSET_MASK) << OFFSET_SHIFT)


def decode_quant_param(param: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and the offset, float64, from the result of `npu_trans_quant_param`."""
    low = param & 0xFFFFFFFF
    signed = torch.where(low >= 2**31, low - 2**32, low).to(torch.int32)
    offset = (param >> OFFSET_SHIFT) & OFFSET_MASK
    offset = torch.where(offset >= 256, offset - 512, offset)
    return signed.view(torch.float32).double(), offset.double()
