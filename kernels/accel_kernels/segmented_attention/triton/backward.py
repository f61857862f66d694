"""Gradients: which kernels run, on what, in which order.

Three kernels, none with atomics, so that the same inputs give the same bits: one sums what every
row owes (delta), one walks keys for each block of queries (query gradients), one walks queries for
each block of keys (key and value gradients). One more serves the gradient of a bias.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from accel_kernels.segmented_attention.call import Call
from accel_kernels.segmented_attention.triton.bias import bias_gradient
from accel_kernels.segmented_attention.triton.delta import delta_kernel
from accel_kernels.segmented_attention.triton.keys import keys_kernel
from accel_kernels.segmented_attention.triton.launch import Launch, is_empty, strides
from accel_kernels.segmented_attention.triton.queries import queries_kernel

_SCAN = 1024  # entries of the table that a block of keys reads at once to find its queries


def gradients(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    call: Call,
    touched: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of query, key, value and bias tensor, each in its own shape and dtype.

    With P the probabilities before dropout, F the factors of dropout and dO the output's gradient:
    `dP = F * (dO V^T)`, `dS = P * (dP - (sum(dO * O) - dLSE))`, summed in float32.

    Args:
        grad_out: Of `out`.
        grad_lse: Of `lse`, or None.
        query: `[B, H, T, D]`.
        key: `[B, H_kv, S, D]`.
        value: `[B, H_kv, S, D_v]`.
        out: `[B, H, T, D_v]`, of the forward.
        lse: `[B, H, T]`, of the forward.
        call: As in the forward.
        touched: Two int32 tensors, `[B, H, blocks of queries]` and `[B, H_kv, blocks of keys]`, to
            be filled with the number of tiles that each block computed; for tests.
    """
    bias = None if call.bias is None else call.bias.tensor
    if is_empty(query, key):
        nothing = None if bias is None else torch.zeros_like(bias)
        return torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value), nothing
    launch = Launch(query, key, value, call)
    shared = _shared(launch, grad_out, grad_lse, out, lse)
    blocks = launch.row.backward
    masking = launch.masking(blocks)
    batch, heads, length = query.shape[:3]
    query_blocks, key_blocks = -(-length // blocks.rows), -(-key.shape[2] // blocks.keys)
    grads = [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (query, key, value)]
    by_rows, by_keys = (lse, lse) if touched is None else touched
    slopes = lse.new_empty((batch, heads, query_blocks))
    launch.start(
        queries_kernel, batch * heads * query_blocks, grad_query=grads[0], slopes=slopes,
        touched=by_rows, COUNT=touched is not None, **shared, **masking,
    )  # fmt: skip
    launch.start(
        keys_kernel, batch * key.shape[1] * key_blocks, grad_key=grads[1], grad_value=grads[2],
        touched=by_keys, COUNT=touched is not None, SCAN=_SCAN, **shared, **masking,
    )  # fmt: skip
    grad_bias = None
    if call.bias is not None:
        grad_bias = bias_gradient(launch, call.bias, slopes, shared)
    return grads[0], grads[1], grads[2], grad_bias


def _shared(
    launch: Launch, grad_out: Tensor, grad_lse: Tensor | None, out: Tensor, lse: Tensor
) -> dict[str, Any]:
    """The arguments that only gradients need, delta computed."""
    lse = lse.contiguous()
    delta = torch.empty_like(lse)
    rows = launch.row.forward.rows
    plain = {"grad_out": grad_out, **strides("grad_out", grad_out)}
    launch.start(
        delta_kernel,
        lse.shape[0] * lse.shape[1] * -(-lse.shape[2] // rows),
        **plain,
        out=out,
        **strides("out", out),
        grad_lse=lse if grad_lse is None else grad_lse.contiguous(),
        delta=delta,
        LSE=grad_lse is not None,
        ROWS=rows,
    )
    return {**plain, "lse": lse, "delta": delta}
