"""Ascend's `npu_fusion_attention`, within what one call of it can do, and exact beyond.

A mask becomes bands, each of which is one call in constant memory beyond its operands; documents
share one. What is no band becomes tiles of at most 2048 x 2048 with masks of their own. States of
pieces that share rows are merged in float32. Gradients of a piece are taken with the log-sum-exp
and the output of the whole row, so that they add up, also in float32. What a call may be asked for
is in `limits`.

Gradients have the same bits each time if `torch.use_deterministic_algorithms` is on: then torch_npu
asks the gradient operator for that (page of `aclnnFlashAttentionScoreGrad`).

It has not been run on a chip. On the simulated one the operators are the references of
`accel_kernels.vendor.npu`, which follow the vendor's pages.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from accel_kernels.masks import Mask
from accel_kernels.segmented_attention.bias import add_bias_gradient
from accel_kernels.segmented_attention.call import Bias, Call, Dropout
from accel_kernels.segmented_attention.differentiable import Gradients, Implementation, run
from accel_kernels.segmented_attention.npu_fusion.accumulation import State, Sums
from accel_kernels.segmented_attention.npu_fusion.calls import Tensors, attend, attend_backward
from accel_kernels.segmented_attention.npu_fusion.composed import tile_gradients, tile_state
from accel_kernels.segmented_attention.npu_fusion.infer import (
    inference,
    inference_from_pages,
)
from accel_kernels.segmented_attention.npu_fusion.job import Job, padded
from accel_kernels.segmented_attention.npu_fusion.limits import LARGEST_HEAD
from accel_kernels.segmented_attention.npu_fusion.packed import (
    Packed,
    attend_packed,
    attend_packed_backward,
)
from accel_kernels.segmented_attention.state import accumulation_dtype

# Columns that carry the gradient of the log-sum-exp, and how many of them are not zero.
_CARRIERS, _PARTS = 16, 3


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
    """Attention by Ascend's training operator, or that for inference.

    Up to 16 queries in 16 bits, of which no gradient is wanted, go to
    `npu_fused_infer_attention_score` where it computes the same; `infer.inference` says when.

    With a mask, each direction waits once for the device, to see that keys and values are finite.

    Args:
        query: `[B, H, T, D]`, float32, bfloat16 or float16, on an NPU; D at most 768.
        key: `[B, H_kv, S, D]`.
        value: `[B, H_kv, S, D_v]`; D_v at most 768. One greater than D pads query and key.
        mask: None: every query sees every key.
        scale: `1/sqrt(D)` if None.
        dropout: Only None: the operator draws from a generator of the chip, and no page gives the
            order of the bits of a mask that is handed in.
        softcap: Only None: the operator has none.
        bias: The call is then made in float32, as the operator takes it only in the query's dtype,
            and its gradients are computed in tiles of plain PyTorch.
        segment_size: Keys in one call at most; None: as many as its limits allow.
        return_lse: Whether the caller will use the log-sum-exp.

    Returns:
        `out` `[B, H, T, D_v]` in the query's dtype and `lse` `[B, H, T]` in float32, or None.

    Raises:
        NotImplementedError: Dropout or a soft cap is asked for, or a head size is too large.
    """
    scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    call = Call(mask, scale, softcap, bias, dropout, segment_size, return_lse)
    found = inference(query, key, value, call)
    if found is not None:
        return found[0], found[1] if return_lse else None
    return run(IMPLEMENTATION, query, key, value, call)


def forward(query: Tensor, key: Tensor, value: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp; see `Implementation`."""
    _refuse(query, value, call)
    state = State(query, value)
    # What a bias widened, autocast would narrow again.
    with torch.autocast(query.device.type, enabled=False):
        job = Job(query, key, value, call)
        for part in job.calls() if not job.unsafe else job.tiles():
            if isinstance(part, Packed):
                found = attend_packed(job.tensors, part, call.scale)
            elif job.unsafe:
                found = tile_state(job.tensors, part, job.seen(part), call.scale, job.bias(part))
            else:
                allowed = job.seen(part) if part.masked else None
                found = attend(job.tensors, part, allowed, call.scale, job.pse(part))
            state.add(part, *found)
    return state.result()


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
    """The gradients; see `Implementation`."""
    _refuse(query, value, call)
    sums = Sums(query, key, value, call.bias)
    with torch.autocast(query.device.type, enabled=False):
        job = Job(query, key, value, call)
        width = max(query.shape[-1], value.shape[-1])
        too_wide = grad_lse is not None and width + _CARRIERS > LARGEST_HEAD
        if job.unsafe or call.bias is not None or too_wide:
            _composed_backward(job, sums, grad_out, grad_lse, out, lse)
        else:
            _fused_backward(job, sums, grad_out, grad_lse, out, lse)
    return sums.result()


IMPLEMENTATION = Implementation("npu_fusion", forward, backward)

# For a caller that has a paged cache, and would else copy its pages together.
segmented_attention.from_pages = inference_from_pages  # type: ignore[attr-defined]


def _refuse(query: Tensor, value: Tensor, call: Call) -> None:
    for name, given, why in (
        ("dropout_p", call.dropout, "the operator draws it from a generator of the chip"),
        ("softcap", call.softcap, "the operator has none"),
    ):
        if given is not None:
            raise NotImplementedError(
                f"npu_fusion does not support {name}: {why}; backend='reference' does"
            )
    size = max(query.shape[-1], value.shape[-1])
    if size > LARGEST_HEAD:
        raise NotImplementedError(
            f"npu_fusion takes head sizes up to {LARGEST_HEAD}, not {size}; backend='reference' "
            "takes any"
        )


def _fused_backward(
    job: Job, sums: Sums, grad_out: Tensor, grad_lse: Tensor | None, out: Tensor, lse: Tensor
) -> None:
    tensors = job.tensors
    if grad_lse is not None:
        tensors, grad_out, out = _carrying(tensors, grad_out, out, grad_lse)
    scale = job.call.scale
    for part in job.calls():
        if isinstance(part, Packed):
            found = attend_packed_backward(grad_out, tensors, out, lse, part, scale)
        else:
            allowed = job.seen(part) if part.masked else None
            found = attend_backward(grad_out, tensors, out, lse, part, allowed, scale)
        sums.add(part, found)


def _carrying(
    tensors: Tensors, grad_out: Tensor, out: Tensor, grad_lse: Tensor
) -> tuple[Tensors, Tensor, Tensor]:
    """Tensors with columns that make the operator subtract `grad_lse` from its row sums.

    The gradient of a score is `P * (dP - sum(grad_out * out))`, and the log-sum-exp adds
    `P * grad_lse`. The vendor's derivative leaves that out in silence. Here the output has further
    columns of one, its gradient minus `grad_lse` there, and the values zero: `dP` is as before and
    the sum less by `grad_lse`. Three columns hold the 24 bits of a float32 in 16-bit dtypes.
    """
    dtype = tensors.query.dtype
    rest = -grad_lse.to(accumulation_dtype(dtype))
    columns = []
    for _ in range(_PARTS):
        columns.append(rest.to(dtype))
        rest = rest - columns[-1].to(rest.dtype)
    width = tensors.query.shape[-1] + _CARRIERS
    gradient = padded(torch.cat([grad_out, torch.stack(columns, -1)], -1), width)
    result = padded(torch.cat([out, out.new_ones(*out.shape[:-1], _PARTS)], -1), width)
    return Tensors(*(padded(tensor, width) for tensor in tensors)), gradient, result


def _composed_backward(
    job: Job, sums: Sums, grad_out: Tensor, grad_lse: Tensor | None, out: Tensor, lse: Tensor
) -> None:
    wide = accumulation_dtype(grad_out.dtype)
    delta = (grad_out.to(wide) * out.to(wide)).sum(-1)
    if grad_lse is not None:
        delta = delta - grad_lse
    for piece in job.tiles():
        *parts, scores = tile_gradients(
            grad_out,
            delta,
            job.tensors,
            lse,
            piece,
            job.seen(piece),
            job.call.scale,
            job.bias(piece),
        )
        sums.add(piece, (parts[0], parts[1], parts[2]))
        if sums.bias is not None and job.call.bias is not None:
            add_bias_gradient(sums.bias, job.call.bias, job.sizes, piece.tile, scores)
