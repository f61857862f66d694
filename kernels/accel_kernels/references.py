"""The float64 truth of this package's own operators, for who makes a recorded call again.

An operator is called again by another of its kernels: the reference, or for what the reference has
computed one that shares none of its code. Shared code depends on no operation, so these are named
here, and imported when one is met.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from accel_kernels.fp8 import dequantize
from accel_kernels.fp8.formats import FORMATS, Quantized, Scaling

NAMESPACE = "accel_kernels"
# Operators to their operation, its reference, and the kernel that judges the reference.
_JUDGES = {
    "segmented_attention": ("segmented_attention", "reference", "cpu"),
    "segmented_attention_backward": ("segmented_attention", "reference", "cpu"),
    "contrastive_softmax": ("contrastive_loss", "reference", "tiles"),
    "contrastive_softmax_backward": ("contrastive_loss", "reference", "tiles"),
    "contrastive_sigmoid": ("contrastive_loss", "reference", "tiles"),
}


def reference_of(name: str) -> Callable[..., Any] | None:
    """What computes an operator's results in float64, from arguments in float64.

    Args:
        name: `segmented_attention`, as in `torch.ops.accel_kernels`.

    Returns:
        A function with the parameters of the operator's schema, or None if there is no such
        operator.
    """
    if name in _FORMULAS:
        return _FORMULAS[name]
    return functools.partial(_by_another_kernel, name) if name in _JUDGES else None


def _by_another_kernel(name: str, *, backend: str, **given: Any) -> Any:
    operation, reference, judge = _JUDGES[name]
    importlib.import_module(f"{NAMESPACE}.{operation}.operators")  # registers the operator
    operator = getattr(torch.ops.accel_kernels, name)
    return operator(**given, backend=judge if backend == reference else reference)


def _attention_backward(*, backend: str, **given: Any) -> tuple[Tensor | None, ...]:
    found = _by_another_kernel("segmented_attention_backward", backend=backend, **given)
    specs = importlib.import_module(f"{NAMESPACE}.segmented_attention").SPECS
    has = any("gradient of bias" in spec.features for spec in specs if spec.name == backend)
    # A kernel that has none is only called where nobody wants it.
    return (*found[:3], found[3] if has else None)


def _scaled_matmul(
    a: Tensor,
    a_scales: Tensor,
    a_scaling: Sequence[str],
    b: Tensor,
    b_scales: Tensor,
    b_scaling: Sequence[str],
    bias: Tensor | None,
    **others: Any,
) -> Tensor:
    left = _matrix(a, a_scales, *a_scaling)
    product = left @ _matrix(b, b_scales, *b_scaling).T
    return product if bias is None else product + bias


def _matrix(codes: Tensor, scales: Tensor, name: str, granularity: Any, kind: Any) -> Tensor:
    scaling = Scaling(FORMATS[name], granularity, kind)
    return dequantize(Quantized(codes, scales, scaling), torch.float64)


def _sigmoid_backward(gradient: Tensor, **saved: Tensor) -> tuple[Tensor, ...]:
    names = ("grad_x", "grad_y", "grad_scale", "grad_bias")
    return tuple(gradient * saved[name] for name in names)


_FORMULAS: dict[str, Callable[..., Any]] = {
    "segmented_attention_backward": _attention_backward,
    "scaled_matmul": _scaled_matmul,
    "contrastive_sigmoid_backward": _sigmoid_backward,
}
