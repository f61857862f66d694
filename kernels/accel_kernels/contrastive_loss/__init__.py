"""Contrastive losses whose memory grows with the batch and not with its square: who computes them.

A spec's loader returns `passes.Passes`; `differentiable` makes of them what autograd, traced code
and exported programs can call.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from accel_kernels.contrastive_loss.arguments import FEATURES, NAME, request
from accel_kernels.spec import KernelSpec, Operation


def _reference() -> Any:
    from accel_kernels.contrastive_loss import reference

    return reference.PASSES


def _cpu() -> Any:
    from accel_kernels.contrastive_loss import cpu

    return cpu.PASSES


def _cpu_avx512() -> Any:
    from accel_kernels.contrastive_loss import cpu_avx512

    return cpu_avx512.PASSES


def _cpu_avx512_absent(_dtype: torch.dtype) -> str | None:
    from accel_kernels.contrastive_loss import cpu_avx512

    return cpu_avx512.why_absent()


# What `torch.compiler.assume_constant_result` sets, without importing the compiler for it: the
# answer is a fact about the machine, and traced code asks for it as it stands.
_cpu_avx512_absent._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _npu() -> Any:
    from accel_kernels.contrastive_loss import npu

    return npu.PASSES


def _tiles() -> Any:
    from accel_kernels.contrastive_loss import accelerators

    return accelerators.PASSES


def _triton() -> Any:
    from accel_kernels.contrastive_loss import triton

    return triton.PASSES


_FLOATS = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})
# Triton's interpreter, which its variable turns on for a whole process, computes on the CPU.
_INTERPRETED = frozenset({"cpu"} if os.environ.get("TRITON_INTERPRET") == "1" else ())

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
        name="cpu_avx512",
        load=_cpu_avx512,
        absent=_cpu_avx512_absent,
        devices=frozenset({"cpu"}),
        dtypes=_FLOATS - {torch.float64},
        priority=30,
        features=FEATURES,
        proven_on=frozenset({"cpu"}),
    ),
    KernelSpec(
        op=NAME,
        name="npu",
        load=_npu,
        devices=frozenset({"npu"}),
        dtypes=_FLOATS - {torch.float64},
        priority=20,
        features=FEATURES,
        is_plain=True,
    ),
    KernelSpec(
        op=NAME,
        name="tiles",
        load=_tiles,
        dtypes=_FLOATS,
        priority=5,
        features=FEATURES,
        is_plain=True,
    ),
    KernelSpec(
        op=NAME,
        name="triton",
        load=_triton,
        requires=("triton",),
        devices=frozenset({"cuda", "npu"}) | _INTERPRETED,
        dtypes=_FLOATS - {torch.float64},
        priority=10,
        features=FEATURES,
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
