"""`torch.ops.accel_kernels.scaled_matmul`: one operator for traced and exported programs.

A kernel that reads memory is called through it wherever code is traced, counted or run on fakes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from accel_kernels.fp8.formats import FORMATS, Quantized, Scaling

Kernel = Callable[[Quantized, Quantized, "Tensor | None", torch.dtype, "int | None"], Tensor]

_library = torch.library.Library("accel_kernels", "FRAGMENT")
_library.define(
    "scaled_matmul(Tensor a, Tensor a_scales, str[] a_scaling, Tensor b, Tensor b_scales, "
    "str[] b_scaling, Tensor? bias, ScalarType out_dtype, int? promote, str backend) -> Tensor"
)
_operator = torch.ops.accel_kernels.scaled_matmul.default
_kernels: dict[str, Kernel] = {}


def register(name: str, kernel: Kernel) -> None:
    """Make a kernel known to the operator; `name` as in its spec."""
    _kernels[name] = kernel


def run(
    name: str,
    a: Quantized,
    b: Quantized,
    bias: Tensor | None,
    out_dtype: torch.dtype,
    promote: int | None,
) -> Tensor:
    """Call a registered kernel: through the operator where somebody looks on, else directly."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        result: Tensor = _operator(
            *(a.codes, a.scales, _words(a.scaling)), *(b.codes, b.scales, _words(b.scaling)),
            bias, out_dtype, promote, name,
        )  # fmt: skip
        return result
    return _kernels[name](a, b, bias, out_dtype, promote)


def _words(scaling: Scaling) -> list[str]:
    """What a product depends on."""
    return [scaling.format.name, scaling.granularity, scaling.scales]


def _quantized(codes: Tensor, scales: Tensor, words: list[str]) -> Quantized:
    name, granularity, kind = words
    return Quantized(codes, scales, Scaling(FORMATS[name], granularity, kind))  # type: ignore[arg-type]


def _compute(
    a: Tensor,
    a_scales: Tensor,
    a_scaling: list[str],
    b: Tensor,
    b_scales: Tensor,
    b_scaling: list[str],
    bias: Tensor | None,
    out_dtype: torch.dtype,
    promote: int | None,
    backend: str,
) -> Tensor:
    left, right = _quantized(a, a_scales, a_scaling), _quantized(b, b_scales, b_scaling)
    if backend not in _kernels:
        from accel_kernels.scaled_matmul import SPECS

        for spec in SPECS:
            if spec.name == backend:
                spec.load()
    if backend not in _kernels:
        raise ValueError(f"scaled_matmul has no kernel called {backend!r} for traced code")
    with torch.no_grad():
        return _kernels[backend](left, right, bias, out_dtype, promote)


def _fake(
    a: Tensor,
    a_scales: Tensor,
    a_scaling: list[str],
    b: Tensor,
    b_scales: Tensor,
    b_scaling: list[str],
    bias: Tensor | None,
    out_dtype: torch.dtype,
    promote: int | None,
    backend: str,
) -> Tensor:
    return a.new_empty((a.shape[0], b.shape[0]), dtype=out_dtype)


_library.impl("scaled_matmul", _compute, "CompositeExplicitAutograd")
torch.library.register_fake("accel_kernels::scaled_matmul", _fake, lib=_library)
