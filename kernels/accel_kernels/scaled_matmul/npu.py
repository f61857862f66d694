"""`npu_quant_matmul` on Ascend 950; other Ascends multiply no 8-bit floats.

Scales are what values are multiplied by, as the operator has them. It knows one for the tensor or
each row of either side; one for 1x128 of `a` with 128x128 of `b`, or 128x128 of both; and E8M0 ones
for 1x32 of both (ops-nn's page of aclnnQuantMatmulV5). A coarser scale is repeated, and a product
with the finer side second is made the other way round. What then is left, such as 1x128 on both
sides, is cut along K into stretches in which no scale changes, one product each.

The operator adds a bias before the scales, so it is given none: it is added to a float32 result.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from accel_kernels.fp8 import HIF8, Quantized, expand_scales
from accel_kernels.scaled_matmul.stretches import stretch_starts

# torch_npu's numbers of the dtypes that torch has not, or that a uint8 tensor is to be read as.
HIFLOAT8, FLOAT8_E8M0 = 290, 293
# torch's numbers of the results' dtypes: the operator takes integers.
_OUTPUTS = {torch.float16: 5, torch.float32: 6, torch.bfloat16: 15}
ROW_BLOCKS, SQUARE_BLOCKS, RUNS = [1, 128, 128], [128, 128, 128], [1, 1, 32]
_BLOCK, _PAIR = 128, 64
_WHOLE = frozenset({"tensor", "row"})
_SQUARE = frozenset({"tensor", "128x128"})


def why_absent() -> str | None:
    """Why no product in 8 bits is computed here; None if it is."""
    npu = getattr(torch, "npu", None)
    if npu is None:
        return "needs torch_npu"
    name = str(npu.get_device_name())
    if name.startswith("Ascend950"):
        return None
    return f"needs an Ascend 950: an {name} does not multiply 8-bit floats"


def scaled_matmul(
    a: Quantized,
    b: Quantized,
    *,
    bias: Tensor | None = None,
    out_dtype: torch.dtype = torch.float32,
    promote: int | None = None,
) -> Tensor:
    """See `reference.scaled_matmul`; no float64, and HiFloat8 only with itself.

    Raises:
        ValueError: One side is HiFloat8 and the other is not.
        RuntimeError: torch_npu is missing or has no such operator.
    """
    formats = {item.scaling.format for item in (a, b)}
    if HIF8 in formats and len(formats) > 1:
        raise ValueError(
            f"npu_quant_matmul multiplies hifloat8 only by itself, not {a.scaling.format} by "
            f"{b.scaling.format}; quantize both to one"
        )
    # Without a bias the operator rounds to the result's dtype itself.
    inner = out_dtype if bias is None else torch.float32
    if 0 in (*a.codes.shape, b.codes.shape[0]):
        total = torch.zeros(a.codes.shape[0], b.codes.shape[0], device=a.codes.device)
    else:
        product = _product(a, b, promote)
        total = product(a, b, inner) if product is not None else _by_stretches(a, b, promote)
    if bias is not None:
        total = total.to(torch.float32) + bias.to(torch.float32)
    return total.to(out_dtype)


def _product(
    a: Quantized, b: Quantized, promote: int | None
) -> Callable[[Quantized, Quantized, torch.dtype], Tensor] | None:
    """The one call that computes this; None if there is none.

    Each block has a sum of its own in it, so that a longer `promote` changes nothing.
    """
    first, second = a.scaling.granularity, b.scaling.granularity
    if first in _WHOLE and second in _WHOLE:
        return _whole if promote is None else None
    if "1x32" in (first, second):
        powers = a.scaling.scales == b.scaling.scales == "power_of_two"
        is_mx = first == second and powers and a.scaling.format != HIF8
        return _runs if is_mx and (promote is None or promote >= RUNS[2]) else None
    if promote is not None and promote < _BLOCK:
        return None
    if first == second == "128x128":
        return _squares
    if second in _SQUARE:
        return _blocks
    return _turned if first in _SQUARE else None


def _by_stretches(a: Quantized, b: Quantized, promote: int | None) -> Tensor:
    """The sum over stretches of K without a change of scale, in float32."""
    steps = (a.scaling.block(*a.codes.shape)[1], b.scaling.block(*b.codes.shape)[1])
    total = torch.zeros(a.codes.shape[0], b.codes.shape[0], device=a.codes.device)
    for start, end in pairwise(stretch_starts(a.codes.shape[1], steps, promote)):
        parts = [
            Quantized(item.codes[:, start:end], _at(item, start), item.scaling) for item in (a, b)
        ]
        total += _whole(parts[0], parts[1], torch.float32)
    return total


def _at(item: Quantized, start: int) -> Tensor:
    """The scale of each row at a column, `[rows]`, or of all, `[1]`."""
    column = start // item.scaling.block(*item.codes.shape)[1]
    kept = item.scales[:, column : column + 1]
    return expand_scales(kept, item.scaling, item.codes.shape[0], 1).reshape(-1)


def _whole(a: Quantized, b: Quantized, out_dtype: torch.dtype) -> Tensor:
    return _multiply(a, b, a.scales.reshape(-1), b.scales.reshape(-1), out_dtype)


def _blocks(a: Quantized, b: Quantized, out_dtype: torch.dtype) -> Tensor:
    rows, depth = b.codes.shape
    squares = b.scales.expand(-(-rows // _BLOCK), -(-depth // _BLOCK)).contiguous()
    return _multiply(a, b, _per_row(a), squares.t(), out_dtype, group_sizes=ROW_BLOCKS)


def _turned(a: Quantized, b: Quantized, out_dtype: torch.dtype) -> Tensor:
    return _blocks(b, a, out_dtype).t().contiguous()


def _squares(a: Quantized, b: Quantized, out_dtype: torch.dtype) -> Tensor:
    columns = b.scales.contiguous().t()
    return _multiply(a, b, a.scales.contiguous(), columns, out_dtype, group_sizes=SQUARE_BLOCKS)


def _runs(a: Quantized, b: Quantized, out_dtype: torch.dtype) -> Tensor:
    scales = _pairs(a), _pairs(b).transpose(0, 1)
    return _multiply(
        a,
        b,
        *scales,
        out_dtype,
        group_sizes=RUNS,
        scale_dtype=FLOAT8_E8M0,
        pertoken_scale_dtype=FLOAT8_E8M0,
    )


def _per_row(item: Quantized) -> Tensor:
    """The scales of each row in each run of 128, `[rows, ceil(K / 128)]`."""
    codes, scales, scaling = item
    rows, depth = codes.shape
    high = scaling.block(rows, depth)[0]
    if scales.shape[0] > 1 and high > 1:
        scales = scales.repeat_interleave(high, 0)[:rows]
    return scales.expand(rows, -(-depth // _BLOCK)).contiguous()


def _pairs(item: Quantized) -> Tensor:
    """E8M0 codes of runs of 32 in pairs, `[rows, ceil(K / 64), 2]`; 0 where there is no run."""
    # A power of two as float32 is its exponent, biased as E8M0 has it, before 23 zeros.
    codes = (item.scales.contiguous().view(torch.int32) >> 23).to(torch.uint8)
    pairs = -(-item.codes.shape[1] // _PAIR)
    return F.pad(codes, (0, 2 * pairs - codes.shape[1])).view(-1, pairs, 2)


def _multiply(
    a: Quantized,
    b: Quantized,
    a_scale: Tensor,
    b_scale: Tensor,
    out_dtype: torch.dtype,
    **arguments: Any,
) -> Tensor:
    is_hifloat8 = a.scaling.format == HIF8
    kind = HIFLOAT8 if is_hifloat8 else None
    result: Tensor = operator("npu_quant_matmul")(
        _matrix(a),
        # A view of what lies row by row: as scales of blocks do, which must lie alike.
        _matrix(b).t(),
        b_scale,
        pertoken_scale=a_scale,
        output_dtype=_OUTPUTS[out_dtype],
        x1_dtype=kind,
        x2_dtype=kind,
        **arguments,
    )
    return result


def _matrix(item: Quantized) -> Tensor:
    codes, dtype = item.codes.contiguous(), item.scaling.format.dtype
    return codes if dtype is None else codes.view(dtype)


def operator(name: str) -> Callable[..., Any]:
    """One of torch_npu's operators; there is none unless torch_npu is imported.

    Raises:
        RuntimeError: torch_npu has not registered it.
    """
    found = getattr(torch.ops.npu, name, None)
    if found is None:
        raise RuntimeError(
            f"torch.ops.npu.{name} does not exist: this needs torch_npu, imported before it is "
            "called, in a release that has this operator"
        )
    operation: Callable[..., Any] = found
    return operation
