"""One matrix product of a linear layer, in eight bits or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from accel.dispatch import kernel_for
from accel.precision.operand import OPERANDS, Gemm, OperandFormat, Slot
from accel_kernels.fp8 import Quantized
from accel_kernels.scaled_matmul import OPERATION


def plain_dtype(formats: Mapping[Slot, OperandFormat], gemm: Gemm) -> torch.dtype | None:
    """The dtype that a product is computed in; None: in eight bits, since both operands are.

    Otherwise the wider of the operands' dtypes; an operand in eight bits has none.
    """
    first, second = (formats[Slot(gemm, role)].dtype for role in OPERANDS[gemm])
    if first is None or second is None:
        return first or second
    return torch.promote_types(first, second)


def product(
    a: Quantized | Tensor,
    b: Quantized | Tensor,
    dtype: torch.dtype,
    bias: Tensor | None = None,
    promote: int | None = None,
) -> Tensor:
    """`a @ b.T + bias` of two operands in eight bits, or of two tensors of one dtype.

    Args:
        a: `[M, K]`.
        b: `[N, K]`.
        dtype: Of the result; in eight bits it is summed in float32 whatever it is.
        bias: `[N]`.
        promote: See `accel_kernels.scaled_matmul`.
    """
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        assert isinstance(a, Tensor) and isinstance(b, Tensor), "both or none"  # noqa: S101, PT018
        return F.linear(a, b, None if bias is None else bias.to(a.dtype)).to(dtype)
    if not (a.codes.shape[0] and a.codes.shape[1] and b.codes.shape[0]):
        return _empty(a, b, dtype, bias)
    request = OPERATION.request(a, b, bias=bias, out_dtype=dtype, promote=promote)
    result: Tensor = kernel_for(request)(a, b, bias=bias, out_dtype=dtype, promote=promote)
    return result


def _empty(a: Quantized, b: Quantized, dtype: torch.dtype, bias: Tensor | None) -> Tensor:
    """A sum of nothing: zeros, or the bias."""
    shape = a.codes.shape[0], b.codes.shape[0]
    zeros = torch.zeros(shape, dtype=dtype, device=a.codes.device)
    return zeros if bias is None else zeros + bias.to(dtype)


def exactly(values: Tensor) -> Any:
    """A block in which autocast changes no dtype."""
    return torch.autocast(values.device.type, enabled=False)
