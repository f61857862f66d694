"""`torch._scaled_mm` and `torch.nn.functional.scaled_mm` on Ascend 950.

torch_npu makes them of `npu_quant_matmul`, and refuses before what its adapter of them does not
take: two of E5M2, a bias with a float32 result or of another dtype, arranged scales (op-plugin's
ScaledMmKernelNpuOpApi and ScaledMmV2KernelNpuOpApi). The CPU's kernels take all that and no blocks.
A bias is added after the scales, as torch has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_FORMATS = (torch.float8_e4m3fn, torch.float8_e5m2)
_OUTPUTS = (torch.float32, torch.bfloat16, torch.float16)
_TENSOR, _ROW, _RUNS, _BLOCKS = 0, 1, 3, 4  # numbers of torch.nn.functional.ScalingType
_RECIPES = {(_TENSOR, _TENSOR), (_ROW, _ROW), (_BLOCKS, _BLOCKS), (_RUNS, _RUNS)}


def scaled_mm(
    self: Tensor,
    mat2: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    bias: Tensor | None = None,
    scale_result: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    use_fast_accum: bool = False,
) -> Tensor:
    """`aten::_scaled_mm`, `[M, N]`."""
    if scale_result is not None:
        raise RuntimeError("aten::_scaled_mm: scale_result is not supported by torch_npu")
    return _product("aten::_scaled_mm", self, mat2, scale_a, scale_b, bias, out_dtype)


def scaled_mm_v2(
    self: Tensor,
    mat2: Tensor,
    scale_a: Sequence[Tensor],
    recipe_a: Sequence[int],
    swizzle_a: Sequence[int],
    scale_b: Sequence[Tensor],
    recipe_b: Sequence[int],
    swizzle_b: Sequence[int],
    bias: Tensor | None,
    out_dtype: torch.dtype | None,
    contraction_dim: Sequence[int] = (),
    use_fast_accum: bool = False,
) -> Tensor:
    """`aten::_scaled_mm_v2`, `[M, N]`."""
    name = "aten::_scaled_mm_v2"
    if any((*swizzle_a, *swizzle_b)):
        raise RuntimeError(
            f"{name}: torch_npu takes scales that are not arranged; leave out swizzle"
        )
    if len(scale_a) != 1 or len(scale_b) != 1 or (recipe_a[0], recipe_b[0]) not in _RECIPES:
        raise RuntimeError(
            f"{name}: torch_npu takes TensorWise, RowWise, BlockWise1x128 or BlockWise1x32 of both "
            f"operands, not recipes {list(recipe_a)} and {list(recipe_b)}"
        )
    return _product(name, self, mat2, scale_a[0], scale_b[0], bias, out_dtype)


def _product(
    name: str,
    first: Tensor,
    second: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype | None,
) -> Tensor:
    from accel_kernels.vendor.npu import REFERENCES

    _check(name, first, second, bias, out_dtype)
    if scale_a.numel() == scale_b.numel() == 1:
        scale_a, scale_b = scale_a.reshape(1), scale_b.reshape(1)
    both_e4m3 = first.dtype == second.dtype == torch.float8_e4m3fn
    if (
        both_e4m3
        and scale_a.ndim == scale_b.ndim == 2
        and scale_a.shape[1] == scale_b.shape[0] == 1
    ):
        scale_a, scale_b = scale_a.squeeze(1), scale_b.squeeze(0)
    inner = out_dtype if bias is None else torch.float32
    result: Tensor = REFERENCES["npu_quant_matmul"](
        first, second, scale_b, pertoken_scale=scale_a, output_dtype=inner
    )
    return result if bias is None else (result + bias.float()).to(out_dtype)


def _check(
    name: str, first: Tensor, second: Tensor, bias: Tensor | None, out_dtype: torch.dtype | None
) -> None:
    if first.dtype not in _FORMATS or second.dtype not in _FORMATS:
        raise RuntimeError(f"{name}: operands are 8-bit floats, not {first.dtype}, {second.dtype}")
    if first.dtype == second.dtype == torch.float8_e5m2:
        raise RuntimeError(f"{name}: two Float8_e5m2 matrices are not multiplied by torch_npu")
    if out_dtype not in _OUTPUTS:
        raise RuntimeError(f"{name}: out_dtype is Float32, BFloat16 or Float16, not {out_dtype}")
    if bias is None:
        return
    if out_dtype == torch.float32 or bias.dtype != out_dtype:
        raise RuntimeError(
            f"{name}: a bias is of the result's dtype, BFloat16 or Float16, not {bias.dtype} for "
            f"{out_dtype}"
        )
    if bias.numel() != second.shape[1]:
        raise RuntimeError(f"{name}: bias has {bias.numel()} elements, not {second.shape[1]}")


COMPUTE: dict[str, Callable[..., Any]] = {
    "aten::_scaled_mm": scaled_mm,
    "aten::_scaled_mm_v2": scaled_mm_v2,
}
