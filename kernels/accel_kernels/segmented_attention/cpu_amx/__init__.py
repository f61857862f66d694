"""Compiled attention for CPUs with AVX-512, forward and backward.

In float32, and in bfloat16 where the CPU multiplies it.

The C sources are in `native/`; they are compiled with this machine's compiler on first use, once
for each dtype. Products have float32 sums over the whole length, also those of the gradients of
keys and values, whose error in bfloat16 therefore does not grow with it. The results are the same
bits for any number of threads and whatever else is in the batch. In products of bfloat16 numbers
below 1.2e-38 count as zero, by the rules of the instruction.
"""

from __future__ import annotations

import torch
from torch import Tensor

from accel_kernels.masks import Mask
from accel_kernels.segmented_attention.call import Bias, Call, Dropout, Way
from accel_kernels.segmented_attention.cpu_amx import quick
from accel_kernels.segmented_attention.cpu_amx.layout import aligned, lay_out
from accel_kernels.segmented_attention.cpu_amx.library import why_absent
from accel_kernels.segmented_attention.cpu_amx.passes import (
    backward_pass,
    forward_layout,
    forward_pass,
)
from accel_kernels.segmented_attention.differentiable import Gradients, Implementation, run

__all__ = ["IMPLEMENTATION", "backward", "forward", "segmented_attention", "why_absent"]


def forward(query: Tensor, key: Tensor, value: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp.

    Args:
        query: `[B, H, T, D]`, bfloat16 or float32, on the CPU.
        key: `[B, H_kv, S, D]`; `H` is a multiple of `H_kv`.
        value: `[B, H_kv, S, D_v]`.
        call: Without biases but `alibi`; `segment_size` changes nothing.

    Returns:
        `out` `[B, H, T, D_v]` in the query's dtype and `lse` `[B, H, T]` in float32.
    """
    query, key, value = aligned(query), aligned(key), aligned(value)
    shape = query.shape
    lse = query.new_empty(shape[:3], dtype=torch.float32)
    if 0 in shape:
        return query.new_empty((*shape[:3], value.shape[3])), lse
    return forward_pass(forward_layout(query, key, value, call), query, key, value, lse)


def backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    call: Call,
) -> Gradients:
    """Gradients of `forward`.

    Args:
        grad_out: As `out`.
        grad_lse: As `lse`, or None for zeros.
        query: As given to `forward`; `key`, `value` and `call` too.
        key: See `query`.
        value: See `query`.
        out: What `forward` returned.
        lse: What `forward` returned.
        call: See `query`.
    """
    query, key, value = aligned(query), aligned(key), aligned(value)
    grad_out, out, lse = aligned(grad_out), aligned(out), lse.contiguous()
    if not lse.numel():
        grad_query, grad_key, grad_value = map(torch.zeros_like, (query, key, value))
        return Gradients(grad_query, grad_key, grad_value, None)
    grad_lse = None if grad_lse is None else grad_lse.contiguous()
    layout = lay_out(query, key, value, call)
    return Gradients(*backward_pass(layout, grad_out, query, key, value, out, lse, grad_lse), None)


IMPLEMENTATION = Implementation("cpu_amx", forward, backward)


def prepare(query: Tensor, key: Tensor, value: Tensor, call: Call) -> Way | None:
    """How every call of this kind is computed, if it can be told beforehand."""
    return quick.way(IMPLEMENTATION, query, key, value, call)


def segmented_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Mask | None = None,
    scale: float | None = None,
    dropout: Dropout | None = None,
    softcap: float | None = None,
    bias: Bias | None = None,
    segment_size: int | None = None,
    return_lse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attention by compiled code.

    Args:
        query: `[B, H, T, D]`, bfloat16 or float32, on the CPU.
        key: `[B, H_kv, S, D]`; `H` is a multiple of `H_kv`.
        value: `[B, H_kv, S, D_v]`.
        mask: Any.
        scale: Of the scores; `1/sqrt(D)` if None.
        dropout: Of probabilities; None: none.
        softcap: `softcap * tanh(score / softcap)`; None: no cap.
        bias: `alibi`, whose slopes get no gradient; None: none.
        segment_size: Changes nothing: its own blocks always fit into a core's cache.
        return_lse: Whether the caller will use the log-sum-exp.

    Returns:
        `out` `[B, H, T, D_v]` in the query's dtype; `lse` `[B, H, T]` in float32, or None.
    """
    call = Call(
        mask,
        query.shape[-1] ** -0.5 if scale is None else float(scale),
        softcap,
        bias,
        dropout,
        segment_size,
        return_lse,
    )
    return run(IMPLEMENTATION, query, key, value, call)


segmented_attention.prepare = prepare  # type: ignore[attr-defined]
