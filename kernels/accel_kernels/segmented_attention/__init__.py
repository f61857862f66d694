"""Exact attention over key/value segments: what can compute it.

Every kernel is called as `kernel(query, key, value, *, mask, scale, dropout, softcap, bias,
segment_size, return_lse)` with arguments that `request` has checked, and returns `(out, lse)`,
where `lse` may be None unless `return_lse` is set.
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


def _cpu_amx() -> Callable[..., Any]:
    from accel_kernels.segmented_attention import cpu_amx

    return cpu_amx.segmented_attention


def _cpu_amx_absent(dtype: torch.dtype) -> str | None:
    from accel_kernels.segmented_attention import cpu_amx

    return cpu_amx.why_absent(dtype)


# What `torch.compiler.assume_constant_result` sets, without importing the compiler for it: the
# answer is a fact about the machine, and traced code asks for it as it stands.
_cpu_amx_absent._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _triton() -> Callable[..., Any]:
    from accel_kernels.segmented_attention.triton import kernel

    return kernel.segmented_attention


def _npu_fusion() -> Callable[..., Any]:
    from accel_kernels.segmented_attention import npu_fusion

    return npu_fusion.segmented_attention


def _sdpa() -> Callable[..., Any]:
    from accel_kernels.segmented_attention import sdpa

    return sdpa.segmented_attention


def _flex() -> Callable[..., Any]:
    from accel_kernels.segmented_attention import flex

    return flex.segmented_attention


_FLOATS = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})
# Every mask is row intervals and perhaps a dense tensor: who can do these can do all.
_MASKS = frozenset(
    f"mask: {kind}"
    for kind in (
        "causal", "window", "sinks", "documents", "prefix", "key_lengths", "rowintervals", "dense",
    )
) | {"causal of unequal lengths"}  # fmt: skip
_BIASES = frozenset({"bias: dense", "bias: alibi", "bias: relative", "gradient of bias"})
_SHAPES = frozenset(
    {"grouped heads", "value head size", "head size not contiguous", "empty tensors"}
)
FEATURES = (
    _MASKS
    | _BIASES
    | _SHAPES
    | {"dropout_p", "softcap", "segment_size", "scale not positive", "return_lse"}
    | {"structure with a tensor"}
)
"""All that a call may use beyond the plain case; `request` speaks of no other."""

# Its blocks are fixed when it is compiled.
_CPU_AMX = FEATURES - {"bias: dense", "bias: relative", "gradient of bias", "segment_size"}
_SDPA = frozenset({"mask: causal", "mask: dense", "bias: dense", "grouped heads"})
# Compiled FlexAttention sums the gradient of a bias by atomic additions, draws dropout by no seed
# of ours, and has blocks of its own.
_FLEX = FEATURES - {
    "gradient of bias", "dropout_p", "segment_size", "head size not contiguous", "empty tensors",
}  # fmt: skip

SPECS = (
    KernelSpec(
        op=NAME,
        name="cpu",
        load=_cpu,
        devices=frozenset({"cpu"}),
        dtypes=_FLOATS,
        priority=20,
        features=FEATURES,
        proven_on=frozenset({"cpu"}),
    ),
    KernelSpec(
        op=NAME,
        name="cpu_amx",
        load=_cpu_amx,
        absent=_cpu_amx_absent,
        devices=frozenset({"cpu"}),
        dtypes=frozenset({torch.bfloat16, torch.float32}),
        priority=30,
        features=_CPU_AMX,
        # A call costs more than one of torch's own operator, which is slow in bfloat16.
        worth={torch.bfloat16: {"key_length": 16}, torch.float32: {"key_length": 33}},
        proven_on=frozenset({"cpu"}),
    ),
    KernelSpec(
        op=NAME,
        name="npu_fusion",
        load=_npu_fusion,
        devices=frozenset({"npu"}),
        dtypes=_FLOATS - {torch.float64},
        priority=20,
        # The operator has no cap of scores, and a generator of its own.
        features=FEATURES - {"dropout_p", "softcap"},
        limits={"head_size": (1, 768), "value_head_size": (1, 768)},
    ),
    KernelSpec(
        op=NAME,
        name="sdpa",
        load=_sdpa,
        devices=frozenset({"cpu", "cuda"}),
        dtypes=_FLOATS,
        priority=10,
        features=_SDPA,
        lacks={"cuda": frozenset({torch.float64})},
        proven_on=frozenset({"cpu"}),
    ),
    KernelSpec(
        op=NAME,
        name="flex",
        load=_flex,
        devices=frozenset({"cuda"}),
        dtypes=_FLOATS - {torch.float64},
        priority=5,
        features=_FLEX,
        limits={"head_size": (16, 256), "value_head_size": (16, 256)},
    ),
    KernelSpec(
        op=NAME,
        name="triton",
        load=_triton,
        requires=("triton",),
        devices=frozenset({"cuda", "npu", "xpu"}),
        dtypes=_FLOATS - {torch.float64},
        priority=4,
        features=FEATURES - {"segment_size"},  # its blocks are its own
        limits={"head_size": (1, 512), "value_head_size": (1, 512)},
    ),
    KernelSpec(
        op=NAME,
        name="reference",
        load=_reference,
        dtypes=_FLOATS,
        features=FEATURES,
        proven_on=frozenset({"cpu"}),
    ),
)

OPERATION = Operation(NAME, request, SPECS)
