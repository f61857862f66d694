"""Products of quantized matrices.

Integer products are exact; the scaling is done in float64 and rounded once.
Source: op-plugin's pages of `npu_quant_matmul` and `npu_weight_quant_batchmatmul`; its adapter for
where a float32 scale passes through `npu_trans_quant_param`, which keeps 19 of its bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from accel_kernels.vendor.npu.dtypes import target_of, to_integers, unpack_int4
from accel_kernels.vendor.npu.float8_matmul import Operands, float8_matmul, formats_of, is_e8m0
from accel_kernels.vendor.npu.quantization import decode_quant_param, npu_trans_quant_param
from accel_kernels.vendor.npu.values import refuse, require_choice, require_floats, require_shape

QUANT = "npu_quant_matmul"
WEIGHT = "npu_weight_quant_batchmatmul"


def is_transposed(tensor: Tensor) -> bool:
    """Whether the last two axes are a transposed view: how the operators find packed axes."""
    rows, columns = tensor.shape[-2:]
    return tensor.stride(-2) == 1 and tensor.stride(-1) == rows and not (rows == 1 and columns == 1)


def _unpacked(tensor: Tensor) -> Tensor:
    """int8 of a matrix that may hold 4-bit integers, along the axis that is contiguous."""
    if tensor.dtype != torch.int32:
        return tensor
    if is_transposed(tensor):
        return unpack_int4(tensor.transpose(-1, -2)).transpose(-1, -2)
    return unpack_int4(tensor)


def npu_quant_matmul(
    x1: Tensor,
    x2: Tensor,
    scale: Tensor,
    *,
    offset: Tensor | None = None,
    pertoken_scale: Tensor | None = None,
    bias: Tensor | None = None,
    output_dtype: int | torch.dtype | None = None,
    x1_dtype: int | None = None,
    x2_dtype: int | None = None,
    pertoken_scale_dtype: int | None = None,
    scale_dtype: int | None = None,
    group_sizes: Sequence[int] | None = None,
    y_scale: Tensor | None = None,
) -> Tensor:
    """`(x1 @ x2 + bias) * scale * pertoken_scale + offset`; a float bias of integers comes last.

    Args:
        x1: `[..., M, K]` int8, or int32 `[M, K / 8]` with eight 4-bit integers each; 8-bit floats.
        x2: `[..., K, N]` int8; int32 `[K, N / 8]`, or `[K / 8, N]` as a transposed view; 8-bit
            floats.
        scale: `[1]` or `[N]`, float32, bfloat16 or the int64 of `npu_trans_quant_param`. Blocks of
            8-bit floats: float32 `[..., ceil(K / 128), ceil(N / 128)]`, or E8M0
            `[..., ceil(K / 64), N, 2]`.
        offset: `[1]` or `[N]` float32, for int8 results.
        pertoken_scale: `[M]` float32, for results that are not int8; of 8-bit floats also `[1]`,
            `[..., M, ceil(K / 128)]`, `[..., ceil(M / 128), ceil(K / 128)]`, or E8M0
            `[..., M, ceil(K / 64), 2]`.
        bias: `[N]` or `[B, 1, N]`: int32, or float for results that are not int8; float32 with
            8-bit floats, where it comes before the scales unless these are E8M0.
        output_dtype: int8 (None), float16 or bfloat16; of 8-bit floats float16, bfloat16, float32.
        x1_dtype: 290 says that the bytes of `x1` are hifloat8.
        x2_dtype: The same of `x2`.
        pertoken_scale_dtype: 293 says that the bytes of `pertoken_scale` are E8M0.
        scale_dtype: The same of `scale`.
        group_sizes: Rows, columns and inner values with one scale; None or zeros: by the shapes.
        y_scale: Not available: it is for 4-bit floats.

    Returns:
        `[..., M, N]`. Without `pertoken_scale` a float32 scale is cut to 19 bits and the offset
        rounded, unless integers become bfloat16.
    """
    if y_scale is not None:
        refuse(QUANT, "y_scale", "a tensor", "it belongs to 4-bit floats, which torch has not")
    formats = formats_of(x1, x2, x1_dtype, x2_dtype)
    scales_are_e8m0 = (
        is_e8m0("pertoken_scale_dtype", pertoken_scale, pertoken_scale_dtype),
        is_e8m0("scale_dtype", scale, scale_dtype),
    )
    if scales_are_e8m0[0] != scales_are_e8m0[1] or (scales_are_e8m0[0] and formats is None):
        raise ValueError(f"{QUANT}: E8M0 is for both scales, and of 8-bit floats; give it for both")
    if formats is not None:
        if offset is not None:
            raise ValueError(f"{QUANT}: offset belongs to int8 results, not to 8-bit floats")
        operands = Operands(x1, x2, pertoken_scale, scale, formats, scales_are_e8m0[1])
        return float8_matmul(operands, bias, output_dtype, group_sizes)
    if any(group_sizes or ()):
        refuse(QUANT, "group_sizes", group_sizes, "the shapes of its scales are not documented")
    left, right = _operands(x1, x2)
    target = torch.int8
    if output_dtype is not None:
        target = target_of(QUANT, "output_dtype", output_dtype).dtype
    if target == torch.int32:
        refuse(QUANT, "output_dtype", output_dtype, "how it rounds is not documented")
    require_choice(QUANT, "output_dtype", target, (torch.int8, torch.float16, torch.bfloat16))
    _check_combination(x1, scale, offset, pertoken_scale, bias, target)
    rows, columns = left.shape[-2], right.shape[-1]
    # float64 holds every sum of 65535 products of bytes.
    product = left.double() @ right.double()
    if bias is not None:
        batched = (*product.shape[:-2], 1, columns)
        require_shape(QUANT, "bias", bias, (columns,), *([batched] if product.ndim == 3 else []))
    if bias is not None and bias.dtype == torch.int32:
        product = product + bias.double()
    factor, shift = _scale_and_offset(scale, offset, target, pertoken_scale is not None, columns)
    result = product * factor
    if pertoken_scale is not None:
        require_shape(QUANT, "pertoken_scale", pertoken_scale, (rows,))
        result = result * pertoken_scale.double().unsqueeze(-1)
    if bias is not None and bias.dtype != torch.int32:
        result = result + bias.double()
    result = result + shift
    return to_integers(result, torch.int8) if target == torch.int8 else result.to(target)


def _operands(x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
    if x1.dtype != x2.dtype or x1.dtype not in (torch.int8, torch.int32):
        raise TypeError(f"{QUANT}: {x1.dtype} and {x2.dtype}; give both int8, or int32 of 4 bits")
    for label, tensor in (("x1", x1), ("x2", x2)):
        if not 2 <= tensor.ndim <= 6 or not tensor.numel() or tensor.shape[-1] > 65535:
            raise ValueError(
                f"{QUANT}: {label} has shape {list(tensor.shape)}; give 2 to 6 dimensions, none of "
                f"0, the last at most 65535"
            )
    if x1.dtype == torch.int32 and not (
        x1.is_contiguous() and (x2.is_contiguous() or is_transposed(x2))
    ):
        raise ValueError(f"{QUANT}: 4-bit operands must be contiguous, or x2 a transposed view")
    left = unpack_int4(x1) if x1.dtype == torch.int32 else x1
    right = _unpacked(x2)
    if left.shape[-1] != right.shape[-2]:
        raise ValueError(f"{QUANT}: {list(left.shape)} @ {list(right.shape)} in 4- or 8-bit values")
    return left, right


def _check_combination(
    x1: Tensor,
    scale: Tensor,
    offset: Tensor | None,
    pertoken_scale: Tensor | None,
    bias: Tensor | None,
    target: torch.dtype,
) -> None:
    """Raise unless the dtypes are a row of the operator's table."""
    pertoken, packed = pertoken_scale is not None, x1.dtype == torch.int32
    if pertoken_scale is not None and pertoken_scale.dtype != torch.float32:
        raise TypeError(f"{QUANT}: pertoken_scale is {pertoken_scale.dtype}; give float32")
    if packed and (pertoken or scale.ndim != 1 or target != torch.float16):
        why = "of 4-bit operands only a scale of one dimension and float16 results are documented"
        refuse(QUANT, "x1", x1.dtype, why)
    if offset is not None and (target != torch.int8 or offset.dtype != torch.float32):
        raise ValueError(f"{QUANT}: offset is float32 and belongs to int8 results, not {target}")
    if pertoken and target == torch.int8:
        raise ValueError(f"{QUANT}: pertoken_scale belongs to float16 and bfloat16 results")
    scales = {torch.float32, torch.int64}
    if target == torch.bfloat16:
        scales = {torch.float32, torch.bfloat16}
    elif pertoken:
        scales = {torch.float32}
    if scale.dtype not in scales:
        raise TypeError(f"{QUANT}: scale is {scale.dtype}; give one of {sorted(map(str, scales))}")
    biases = {torch.int32}
    if target == torch.bfloat16:
        biases |= {torch.bfloat16, torch.float32}
    elif pertoken:
        biases |= {torch.bfloat16, torch.float16, torch.float32}
    if bias is not None and bias.dtype not in biases:
        raise TypeError(f"{QUANT}: bias is {bias.dtype}; give one of {sorted(map(str, biases))}")


def _scale_and_offset(
    scale: Tensor, offset: Tensor | None, target: torch.dtype, pertoken: bool, columns: int
) -> tuple[Tensor, Tensor]:
    require_shape(QUANT, "scale", scale, (1,), (columns,))
    if offset is not None:
        require_shape(QUANT, "offset", offset, (1,), (columns,))
    if scale.dtype == torch.int64:
        if offset is not None:
            raise ValueError(f"{QUANT}: an int64 scale already holds the offset")
        return decode_quant_param(scale)
    if scale.dtype == torch.float32 and not pertoken and target != torch.bfloat16:
        return decode_quant_param(npu_trans_quant_param(scale, offset))
    return scale.double(), scale.new_zeros(1, dtype=torch.float64)


def npu_weight_quant_batchmatmul(
    x: Tensor,
    weight: Tensor,
    antiquant_scale: Tensor,
    antiquant_offset: Tensor | None = None,
    quant_scale: Tensor | None = None,
    quant_offset: Tensor | None = None,
    bias: Tensor | None = None,
    antiquant_group_size: int = 0,
    inner_precise: int = 0,
    weight_dtype: int | None = None,
) -> Tensor:
    """`x @ ((weight + antiquant_offset) * antiquant_scale) + bias`, quantized if asked to.

    Args:
        x: `[M, K]` floats.
        weight: `[K, N]` int8; int32 `[K, N / 8]`, or `[K / 8, N]` as a transposed view, with eight
            4-bit integers each.
        antiquant_scale: Of the dtype of `x`: `[1]` or `[1, 1]` for the tensor, `[N]` or `[1, N]`
            for channels, `[ceil(K / group), N]` for groups.
        antiquant_offset: Like the scale.
        quant_scale: float32 or the int64 of `npu_trans_quant_param`, `[1]`, `[N]` or `[1, N]`.
        quant_offset: float32, like `quant_scale`, only with it.
        bias: `[N]` or `[1, N]`: float16 for float16, float32 for the rest.
        antiquant_group_size: 0, or a multiple of 32 from 32 to K - 1.
        inner_precise: 0 or 1; changes nothing here.
        weight_dtype: Not available.

    Returns:
        `[M, N]` in the dtype of `x`, or int8 with `quant_scale`.
    """
    require_floats(WEIGHT, x=x)
    require_choice(WEIGHT, "inner_precise", inner_precise, (0, 1))
    if weight_dtype is not None:
        refuse(WEIGHT, "weight_dtype", weight_dtype, "its page does not document it")
    if antiquant_scale.dtype == torch.int64:
        refuse(WEIGHT, "antiquant_scale", torch.int64, "what its bits mean is not documented")
    if weight.dtype not in (torch.int8, torch.int32):
        raise TypeError(f"{WEIGHT}: weight is {weight.dtype}; give int8, or int32 of 4 bits")
    if x.ndim != 2 or weight.ndim != 2 or not x.numel() or not weight.numel():
        raise ValueError(f"{WEIGHT}: {list(x.shape)} @ {list(weight.shape)}; give two matrices")
    values = _unpacked(weight)
    inner, columns = values.shape
    if x.shape[-1] != inner:
        raise ValueError(f"{WEIGHT}: {list(x.shape)} @ {list(values.shape)} in 4- or 8-bit values")
    wide = torch.float64
    dequantized = values.to(wide)
    if antiquant_offset is not None:
        require_shape(WEIGHT, "antiquant_offset", antiquant_offset, tuple(antiquant_scale.shape))
        spread = _per_weight(
            x, "antiquant_offset", antiquant_offset, inner, columns, antiquant_group_size
        )
        dequantized = dequantized + spread
    spread = _per_weight(
        x, "antiquant_scale", antiquant_scale, inner, columns, antiquant_group_size
    )
    result = x.to(wide) @ (dequantized * spread)
    if bias is not None:
        require_shape(WEIGHT, "bias", bias, (columns,), (1, columns))
        wanted = torch.float32 if x.dtype == torch.bfloat16 else x.dtype
        if bias.dtype != wanted:
            raise TypeError(f"{WEIGHT}: bias is {bias.dtype}; with {x.dtype} give {wanted}")
        result = result + bias.to(wide)
    if quant_scale is None:
        if quant_offset is not None:
            raise ValueError(f"{WEIGHT}: quant_offset needs quant_scale")
        return result.to(x.dtype)
    return _requantized(result, quant_scale, quant_offset, columns)


def _per_weight(
    x: Tensor, label: str, tensor: Tensor, inner: int, columns: int, group: int
) -> Tensor:
    if tensor.dtype != x.dtype:
        raise TypeError(f"{WEIGHT}: {label} is {tensor.dtype}; give that of x, {x.dtype}")
    if not group:
        require_shape(WEIGHT, label, tensor, (1,), (1, 1), (columns,), (1, columns))
        return tensor.double()
    if group % 32 or not 32 <= group <= inner - 1:
        raise ValueError(
            f"{WEIGHT}: antiquant_group_size={group}; give 0, or a multiple of 32 up to {inner - 1}"
        )
    require_shape(WEIGHT, label, tensor, (-(-inner // group), columns))
    return tensor.double().repeat_interleave(group, dim=0)[:inner]


def _requantized(
    result: Tensor, quant_scale: Tensor, quant_offset: Tensor | None, columns: int
) -> Tensor:
    require_shape(WEIGHT, "quant_scale", quant_scale, (1,), (columns,), (1, columns))
    if quant_offset is not None:
        require_shape(WEIGHT, "quant_offset", quant_offset, tuple(quant_scale.shape))
    if quant_scale.dtype == torch.int64:
        if quant_offset is not None:
            raise ValueError(f"{WEIGHT}: an int64 quant_scale already holds the offset")
        param = quant_scale
    else:
        param = npu_trans_quant_param(quant_scale, quant_offset)
    factor, shift = decode_quant_param(param)
    return to_integers(result * factor + shift, torch.int8)
