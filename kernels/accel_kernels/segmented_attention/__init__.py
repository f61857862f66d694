"""Exact attention over key/value segments: what can compute it.

Every kernel is called as `kernel(query, key, value, *, is_causal, scale, segment_size, return_lse)`
with arguments that `request` has checked, and returns `(out, lse)`, where `lse` may be None unless
`return_lse` is set.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from accel_kernels.segmented_attention.arguments import NAME, request
from accel_kernels.spec import KernelSpec, Operation


def _reference() -> Callable[..., Any]:
    from accel_kernels.segmented_attention import reference

    return reference.segmented_attention


def _cpu() -> Callable[..., Any]:
    from accel_kernels.segmented_attention import cpu

    return cpu.segmented_attention


def _sdpa() -> Callable[..., Any]:
    from accel_kernels.segmented_attention import sdpa

    return sdpa.segmented_attention


# What a kernel of our own does, and torch's operator does not do or does by another rule.
_BEYOND_SDPA = frozenset(
    {
        "unequal lengths with is_causal",
        "segment_size",
        "return_lse",
        "scale not positive",
        "head size not contiguous",
        "empty tensors",
    }
)
_SDPA = frozenset({"is_causal", "grouped heads"})
_FLOATS = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})

SPECS = (
    KernelSpec(
        op=NAME,
        name="cpu",
        load=_cpu,
        devices=frozenset({"cpu"}),
        dtypes=_FLOATS,
        priority=20,
        features=_SDPA | _BEYOND_SDPA,
        proven_on=frozenset({"cpu"}),
    ),
    KernelSpec(
        op=NAME,
        name="sdpa",
        load=_sdpa,
        devices=frozenset({"cpu", "cuda"}),
        dtypes=_FLOATS,
        priority=10,
        features=_SDPA,
        proven_on=frozenset({"cpu"}),
    ),
    KernelSpec(
        op=NAME,
        name="reference",
        load=_reference,
        dtypes=_FLOATS,
        features=_SDPA | _BEYOND_SDPA | {"value head size"},
        proven_on=frozenset({"cpu"}),
    ),
)

OPERATION = Operation(NAME, request, SPECS)
