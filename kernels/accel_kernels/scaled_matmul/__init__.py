"""Products of matrices in eight bits: what can compute them.

Every kernel is called as `kernel(a, b, *, bias, out_dtype, promote)` with arguments that `request`
has checked, and returns `[M, N]`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from accel_kernels.fp8.formats import BLOCKS, E5M2, FORMATS, HIF8, Quantized
from accel_kernels.scaled_matmul.arguments import (
    MX,
    MX_WITH_FLOAT32,
    NAME,
    OUT_DTYPES,
    request,
)
from accel_kernels.spec import KernelSpec, Operation


def _reference() -> Callable[..., Any]:
    from accel_kernels.scaled_matmul import reference

    return reference.scaled_matmul


def _cpu() -> Callable[..., Any]:
    from accel_kernels.scaled_matmul import cpu

    return cpu.scaled_matmul


def _cpu_avx512() -> Callable[..., Any]:
    from accel_kernels.scaled_matmul import cpu_avx512

    return cpu_avx512.scaled_matmul


def _cpu_avx512_absent(_dtype: torch.dtype) -> str | None:
    from accel_kernels.scaled_matmul import cpu_avx512

    return cpu_avx512.why_absent()


def _scaled_mm() -> Callable[..., Any]:
    from accel_kernels.scaled_matmul import scaled_mm

    return scaled_mm.scaled_matmul


def _scaled_mm_absent(_dtype: torch.dtype) -> str | None:
    from accel_kernels.scaled_matmul.scaled_mm import chip

    return chip.why_absent()


def _scaled_mm_mx_absent(_dtype: torch.dtype) -> str | None:
    from accel_kernels.scaled_matmul.scaled_mm import chip

    return chip.why_mx_absent()


def _npu() -> Callable[..., Any]:
    from accel_kernels.scaled_matmul import npu

    return npu.scaled_matmul


def _npu_absent(_dtype: torch.dtype) -> str | None:
    from accel_kernels.scaled_matmul import npu

    return npu.why_absent()


# What `torch.compiler.assume_constant_result` sets, without importing the compiler for it: the
# answers are facts about the machine, and traced code asks for them as they stand.
for _absent in (_cpu_avx512_absent, _scaled_mm_absent, _scaled_mm_mx_absent, _npu_absent):
    _absent._dynamo_marked_constant = True  # type: ignore[attr-defined]
_FORMATS = frozenset(f"{a} by {b}" for a in FORMATS for b in FORMATS)
_BLOCKS = frozenset(f"{a} by {b}" for a in BLOCKS for b in BLOCKS)
FEATURES = _FORMATS | _BLOCKS | {MX_WITH_FLOAT32, "bias", "promote", "empty"}
"""All that a call may use; `request` speaks of no other."""

_HIF8 = frozenset(pair for pair in _FORMATS if HIF8.name in pair)
_MX = frozenset(pair for pair in _BLOCKS if MX in pair) | {MX_WITH_FLOAT32}
_MX_ONLY = frozenset({f"{MX} by {MX}"})
_SCALED_MM = FEATURES - _HIF8 - {f"{E5M2} by {E5M2}"}
_NPU = FEATURES - (_HIF8 - {f"{HIF8} by {HIF8}"})
_SHORT_DTYPES = frozenset(OUT_DTYPES) - {torch.float64}

SPECS = (
    KernelSpec(
        op=NAME,
        name="cpu",
        load=_cpu,
        devices=frozenset({"cpu"}),
        dtypes=_SHORT_DTYPES,
        priority=20,
        features=FEATURES,
        differentiable=False,
        proven_on=frozenset({"cpu"}),
    ),
    KernelSpec(
        op=NAME,
        name="cpu_avx512",
        load=_cpu_avx512,
        absent=_cpu_avx512_absent,
        devices=frozenset({"cpu"}),
        dtypes=_SHORT_DTYPES,
        priority=30,
        features=FEATURES,
        differentiable=False,
        proven_on=frozenset({"cpu"}),
    ),
    KernelSpec(
        op=NAME,
        name="scaled_mm",
        load=_scaled_mm,
        absent=_scaled_mm_absent,
        devices=frozenset({"cuda"}),
        dtypes=_SHORT_DTYPES,
        priority=20,
        features=_SCALED_MM - _MX,
        differentiable=False,
    ),
    KernelSpec(
        op=NAME,
        name="scaled_mm_mx",
        load=_scaled_mm,
        absent=_scaled_mm_mx_absent,
        devices=frozenset({"cuda"}),
        dtypes=_SHORT_DTYPES,
        priority=20,
        features=_SCALED_MM - _BLOCKS - _MX | _MX_ONLY,
        differentiable=False,
    ),
    KernelSpec(
        op=NAME,
        name="npu",
        load=_npu,
        absent=_npu_absent,
        devices=frozenset({"npu"}),
        dtypes=_SHORT_DTYPES,
        priority=20,
        features=_NPU,
        differentiable=False,
    ),
    KernelSpec(
        op=NAME,
        name="reference",
        load=_reference,
        dtypes=frozenset(OUT_DTYPES),
        features=FEATURES,
        differentiable=False,
        proven_on=frozenset({"cpu"}),
    ),
)

OPERATION = Operation(NAME, request, SPECS)


def scaled_matmul(
    a: Quantized,
    b: Quantized,
    *,
    bias: Tensor | None = None,
    out_dtype: torch.dtype = torch.float32,
    promote: int | None = None,
) -> Tensor:
    """See `reference.scaled_matmul`, which this is; `accel.dispatch` finds faster kernels."""
    request(a, b, bias=bias, out_dtype=out_dtype, promote=promote)
    result: Tensor = _reference()(a, b, bias=bias, out_dtype=out_dtype, promote=promote)
    return result
