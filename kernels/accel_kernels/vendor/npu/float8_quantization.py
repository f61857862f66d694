"""Quantizing into 8-bit floats by blocks: with float32 scales, and with E8M0 scales (MX).

A scale is what a value is multiplied by to have it back: the inverse of the factor that
TransformerEngine calls `scale`.

Source: op-plugin's page of `npu_dynamic_block_quant`, ops-nn's pages of aclnnDynamicBlockQuantV2,
aclnnDynamicMxQuantV3 and aclnnDynamicMxQuantWithDualAxisV2; OCP Microscaling Formats (MX)
Specification 1.0, section 6.3, for the floor rule. For the scales of tensors and rows see
`quantization.npu_dynamic_quant`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from accel_kernels.fp8 import Format
from accel_kernels.vendor.npu.dtypes import target_of, to_integers
from accel_kernels.vendor.npu.float8 import (
    BIAS,
    MOST_EXPONENT,
    cast,
    divided,
    format_of,
    largest_of,
    powers_of_two,
    require_finite,
    require_round_mode,
)
from accel_kernels.vendor.npu.values import refuse, require_choice, require_floats, wide_dtype

BLOCK = "npu_dynamic_block_quant"
MX = "npu_dynamic_mx_quant"
_NO_FP4 = "torch on a CPU has no 4-bit floats; give float8_e4m3fn (292) or float8_e5m2 (291)"


def npu_dynamic_block_quant(
    x: Tensor,
    *,
    min_scale: float = 0.0,
    round_mode: str = "rint",
    dst_type: int | torch.dtype = 1,
    row_block_size: int = 1,
    col_block_size: int = 128,
    dst_type_max: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Quantize each block of rows and columns by its largest magnitude.

    The scale is `min(largest magnitude / largest number, 1 / min_scale)`, as ops-nn's page and the
    example on op-plugin's have it; the formula on the latter has the fraction upside down.

    Args:
        x: `[M, N]` or `[B, M, N]`; the last blocks may be ragged.
        min_scale: 0: no bound.
        round_mode: "rint"; "round" for hifloat8.
        dst_type: int8, float8_e4m3fn, float8_e5m2 or hifloat8.
        row_block_size: 1, 128, 256 or 512.
        col_block_size: 64, 128, 192 or 256.
        dst_type_max: Of hifloat8: 15, 56, 224 or 32768; 0: the last of them.

    Returns:
        The values in `x`'s shape (uint8 for hifloat8), and the scales
        `[..., ceil(M / row_block_size), ceil(N / col_block_size)]`, float32 (float64 for float64).

    Raises:
        ValueError: If `x` is empty or holds a value that is not finite, or by an argument.
    """
    require_floats(BLOCK, x=x)
    target = target_of(BLOCK, "dst_type", dst_type)
    kind = format_of(target)
    if kind is None and (target.packed or target.dtype != torch.int8):
        refuse(BLOCK, "dst_type", dst_type, "its page documents int8 and 8-bit floats")
    require_round_mode(BLOCK, kind, round_mode)
    require_choice(BLOCK, "row_block_size", row_block_size, (1, 128, 256, 512))
    require_choice(BLOCK, "col_block_size", col_block_size, (64, 128, 192, 256))
    require_choice(BLOCK, "dst_type_max", dst_type_max, (0.0, 15.0, 56.0, 224.0, 32768.0))
    if min_scale < 0:
        raise ValueError(f"{BLOCK}: min_scale={min_scale}; give 0 or more")
    if x.ndim not in (2, 3) or not x.numel():
        raise ValueError(f"{BLOCK}: x has shape {list(x.shape)}; give 2 or 3 dimensions, none of 0")
    if kind is None and dst_type_max:
        raise ValueError(f"{BLOCK}: dst_type_max={dst_type_max} without hifloat8; give 0")
    largest = 127 if kind is None else largest_of(BLOCK, kind, dst_type_max)
    values = x.to(wide_dtype(x))
    require_finite(BLOCK, values)
    scale = _block_largest(values.abs(), row_block_size, col_block_size) / largest
    if min_scale:
        scale = scale.clamp(max=1 / min_scale)
    rows, columns = x.shape[-2:]
    spread = scale.repeat_interleave(row_block_size, -2)[..., :rows, :]
    spread = spread.repeat_interleave(col_block_size, -1)[..., :columns]
    quotient = divided(values, spread)
    return to_integers(quotient, torch.int8) if kind is None else cast(quotient, kind), scale


def _block_largest(sizes: Tensor, high: int, wide: int) -> Tensor:
    rows, columns = sizes.shape[-2:]
    padded = F.pad(sizes, (0, -columns % wide, 0, -rows % high))
    blocks: Tensor = padded.unflatten(-1, (-1, wide)).unflatten(-3, (-1, high))
    return blocks.amax((-3, -1))


def npu_dynamic_mx_quant(
    input: Tensor,  # noqa: A002 - the schema's name
    *,
    axis: int = -1,
    round_mode: str = "rint",
    dst_type: int | torch.dtype = 296,
    block_size: int = 32,
    scale_alg: int | None = 0,
    dst_type_max: float = 0.0,
    max_low_bound: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Quantize runs along an axis with scales that are powers of two.

    With `scale_alg` 0 (OCP's rule) the exponent is `floor(log2(largest magnitude))` less that of
    the format's largest number: what lies above that number then saturates. With 1 the scale is
    `largest magnitude / largest number`, in float32, rounded up, so that nothing does.

    Args:
        input: 1 to 7 dimensions; the last run may be ragged.
        axis: Along which values share a scale.
        round_mode: "rint".
        dst_type: float8_e4m3fn or float8_e5m2; the default, a 4-bit float, is not available.
        block_size: Values that share a scale: a multiple of 32, at most 1024.
        scale_alg: 0 or 1.
        dst_type_max: Only 0: others are for 4-bit floats.
        max_low_bound: With `scale_alg` 1, the least that a largest magnitude counts.

    Returns:
        The values in the input's shape, and uint8 codes of E8M0: an axis for pairs of runs in place
        of `axis`, and at the end one of size 2 for the runs of a pair; code 0 where there is none.

    Raises:
        NotImplementedError: For 4-bit floats.
        ValueError: If a value is not finite, or by an argument.
    """
    require_floats(MX, input=input)
    kind = _mx_format(MX, round_mode, dst_type, dst_type_max)
    if block_size % 32 or not 0 < block_size <= 1024:
        raise ValueError(f"{MX}: block_size={block_size}; give a multiple of 32 up to 1024")
    if not 1 <= input.ndim <= 7 or not -input.ndim <= axis < input.ndim:
        raise ValueError(
            f"{MX}: axis={axis} of {input.ndim} dimensions; give 1 to 7 with that axis"
        )
    if max_low_bound < 0 or (max_low_bound and scale_alg != 1):
        raise ValueError(f"{MX}: max_low_bound={max_low_bound} belongs to scale_alg 1, from 0 on")
    scale_alg = 0 if scale_alg is None else scale_alg
    require_choice(MX, "scale_alg", scale_alg, (0, 1))
    values = input.to(wide_dtype(input)).movedim(axis, -1)
    require_finite(MX, values)
    length = values.shape[-1]
    runs = F.pad(values, (0, -length % (2 * block_size))).unflatten(-1, (-1, block_size))
    largest = runs.abs().amax(-1) if length else runs.new_zeros(runs.shape[:-1])
    codes = _ocp_codes(largest, kind)
    if scale_alg == 1:
        codes = _ceiling_codes(largest.clamp(min=max_low_bound), kind)
    scales = powers_of_two(codes).to(values.dtype).unsqueeze(-1)
    quantized = cast(runs / scales, kind).flatten(-2)[..., :length].movedim(-1, axis)
    # The pair's own axis comes last, whichever axis the runs are on.
    pairs = codes.unflatten(-1, (-1, 2)).movedim(-2, axis - 1 if axis < 0 else axis)
    return quantized.contiguous(), pairs.contiguous()


def npu_dynamic_mx_quant_with_dual_axis(
    input: Tensor,  # noqa: A002 - the schema's name
    *,
    round_mode: str = "rint",
    dst_type: int | torch.dtype = 296,
    scale_alg: int = 0,
    dst_type_max: float | None = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`npu_dynamic_mx_quant` in runs of 32 along the last axis, and along the last but one.

    Args:
        input: At least 2 dimensions.
        round_mode: As there.
        dst_type: As there.
        scale_alg: As there.
        dst_type_max: As there.

    Returns:
        Values and scales of the one, and of the other.
    """
    if input.ndim < 2:
        raise ValueError(f"{MX}_with_dual_axis: input has {input.ndim} dimensions; give at least 2")
    most = 0.0 if dst_type_max is None else dst_type_max
    along, across = (
        npu_dynamic_mx_quant(
            input,
            axis=axis,
            round_mode=round_mode,
            dst_type=dst_type,
            scale_alg=scale_alg,
            dst_type_max=most,
        )
        for axis in (-1, -2)
    )
    return (*along, *across)


def _mx_format(
    name: str, round_mode: str, dst_type: int | torch.dtype, dst_type_max: float
) -> Format:
    if not isinstance(dst_type, torch.dtype) and dst_type in (296, 297):
        refuse(name, "dst_type", dst_type, _NO_FP4)
    kind = format_of(target_of(name, "dst_type", dst_type))
    if kind is None or kind not in MOST_EXPONENT:
        refuse(name, "dst_type", dst_type, "its page documents float8_e4m3fn and float8_e5m2")
    require_round_mode(name, kind, round_mode)
    if dst_type_max:
        refuse(name, "dst_type_max", dst_type_max, "its page has it only for 4-bit floats")
    return kind


def _ocp_codes(largest: Tensor, kind: Format) -> Tensor:
    """uint8; a run of zeros has 0, the least scale."""
    # frexp: largest = mantissa * 2^exponent with a mantissa from 1/2 on.
    exponent = torch.frexp(largest.double()).exponent - 1 - MOST_EXPONENT[kind]
    codes = (exponent + BIAS).clamp(0, 2 * BIAS)
    return torch.where(largest == 0, 0, codes).to(torch.uint8)


def _ceiling_codes(largest: Tensor, kind: Format) -> Tensor:
    """uint8; by the bits of the quotient, which may be subnormal."""
    bits = (largest.float() / kind.largest).view(torch.int32)
    exponent, mantissa = bits >> 23, bits & 0x7FFFFF
    is_above = torch.where(exponent == 0, mantissa > 0x400000, (mantissa > 0) & (exponent < 254))
    return (exponent + is_above.int()).to(torch.uint8)
