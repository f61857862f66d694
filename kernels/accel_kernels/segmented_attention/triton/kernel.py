"""Our own kernel for what the vendors' refuse: one source for CUDA, XPU and triton-ascend.

Every mask as row intervals, biases, caps, dropout of the portable generator and gradients of all of
them, the log-sum-exp's too, in memory linear in the length. Tested in Triton's interpreter; not yet
run on a device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from accel_kernels.masks import Mask
from accel_kernels.segmented_attention.call import Bias, Call, Dropout
from accel_kernels.segmented_attention.differentiable import Gradients, Implementation, run
from accel_kernels.segmented_attention.triton.backward import gradients
from accel_kernels.segmented_attention.triton.forward import forward_kernel
from accel_kernels.segmented_attention.triton.launch import Launch, default_scale, is_empty


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
    """Attention by our Triton kernels.

    Args:
        query: `[B, H, T, D]`, float32, bfloat16 or float16; `D` up to 512.
        key: `[B, H_kv, S, D]`; `H` is a multiple of `H_kv`.
        value: `[B, H_kv, S, D_v]`; `D_v` up to 512.
        mask: Which keys a query sees.
        scale: Of the scores; `1/sqrt(D)` if None.
        dropout: Of the probabilities.
        softcap: Of the scaled scores.
        bias: Added to the capped scores.
        segment_size: None: the kernel's blocks are its segments.
        return_lse: Whether the caller will use the log-sum-exp.

    Returns:
        `out` `[B, H, T, D_v]` in the query's dtype and `lse` `[B, H, T]` in float32. Products are
        taken in the query's dtype and summed in float32. Both are differentiable.

    Raises:
        ValueError: The tensors are on the CPU, and Triton does not interpret.
    """
    assert segment_size is None, "the spec refuses segment_size"  # noqa: S101
    call = Call(mask, default_scale(query, scale), softcap, bias, dropout, None, return_lse)
    return run(IMPLEMENTATION, query, key, value, call)


def forward(
    query: Tensor, key: Tensor, value: Tensor, call: Call, touched: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp.

    Args:
        query: `[B, H, T, D]`.
        key: `[B, H_kv, S, D]`.
        value: `[B, H_kv, S, D_v]`.
        call: What is asked.
        touched: int32 `[B, H, blocks of queries]`, to be filled with the number of tiles that each
            block of queries computed; for tests.

    Returns:
        `out` `[B, H, T, D_v]` in the query's dtype, `lse` `[B, H, T]` in float32.
    """
    shape = (*query.shape[:3], value.shape[3])
    out = torch.empty(shape, dtype=query.dtype, device=query.device)
    lse = torch.empty(shape[:3], dtype=torch.float32, device=query.device)
    if is_empty(query, key):
        return out.zero_(), lse.fill_(-torch.inf)
    launch = Launch(query, key, value, call)
    blocks = launch.row.forward
    launch.start(
        forward_kernel,
        shape[0] * shape[1] * -(-shape[2] // blocks.rows),
        out=out,
        lse=lse,
        touched=lse if touched is None else touched,
        COUNT=touched is not None,
        **launch.masking(blocks),
    )
    return out, lse


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
    """Gradients of query, key, value and bias; see `backward`."""
    return Gradients(*gradients(grad_out, grad_lse, query, key, value, out, lse, call))


IMPLEMENTATION = Implementation("triton", forward, backward)
