"""Quantizing a matrix where infinities must show, also in compiled code.

On the CPU compiled code calls the codec as one operator: it is the faster form there, and Inductor
of torch 2.13 splits the loop over ragged blocks wrongly (`CppScheduling.try_loop_split` takes
`K // 128` whole blocks where K is no multiple), and gives wrong codes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from accel_kernels.fp8 import FORMATS, Quantized, Scaling, quantize


def quantized(values: Tensor, scaling: Scaling, amax: Tensor | None = None) -> Quantized:
    """As `accel_kernels.fp8.quantize`, with NaN for infinities: saturation would hide them."""
    if torch.compiler.is_compiling() and values.device.type == "cpu":
        codes, scales = _operator(values, *_fields(scaling), amax)
        return Quantized(codes, scales, scaling)
    return quantize(values, scaling, amax, infinity_as_nan=True)


def _fields(scaling: Scaling) -> tuple[Any, ...]:
    format_name = str(scaling.format)
    return format_name, scaling.granularity, scaling.scales, scaling.target, scaling.epsilon


def _run(
    values: Tensor,
    format_name: str,
    granularity: str,
    scales: str,
    target: float,
    epsilon: float,
    amax: Tensor | None,
) -> tuple[Tensor, Tensor]:
    scaling = Scaling(FORMATS[format_name], granularity, scales, target, epsilon)  # type: ignore[arg-type]
    made = quantize(values, scaling, amax, infinity_as_nan=True)
    # In the layout that the trace was told.
    codes = torch.empty_like(values, dtype=torch.uint8).copy_(made.codes)
    return codes, made.scales.contiguous()


def _shapes(
    values: Tensor,
    format_name: str,
    granularity: str,
    scales: str,
    target: float,
    epsilon: float,
    amax: Tensor | None,
) -> tuple[Tensor, Tensor]:
    scaling = Scaling(FORMATS[format_name], granularity, scales, target, epsilon)  # type: ignore[arg-type]
    high, wide = scaling.block(*values.shape)
    size = -(-values.shape[0] // high), -(-values.shape[1] // wide)
    codes = torch.empty_like(values, dtype=torch.uint8)
    return codes, values.new_empty(size, dtype=torch.float32)


_operator: Callable[..., tuple[Tensor, Tensor]] = torch.library.custom_op(
    "accel::precision_quantize", _run, mutates_args=(), device_types="cpu"
)
_operator.register_fake(_shapes)  # type: ignore[attr-defined]
