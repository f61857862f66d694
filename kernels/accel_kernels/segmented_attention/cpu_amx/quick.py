"""Calls of a kind, laid out once: the way of short sequences.

A kind is what shapes, dtype, mask and scale say. Between a call and C is then one small
autograd function, if gradients are wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from accel_kernels.masks import Causal, visibility
from accel_kernels.segmented_attention.call import Call, Way, sizes_of
from accel_kernels.segmented_attention.cpu_amx.layout import Layout, aligned, lay_out
from accel_kernels.segmented_attention.cpu_amx.passes import (
    backward_pass,
    forward_layout,
    forward_pass,
)
from accel_kernels.segmented_attention.differentiable import (
    Implementation,
    gradients,
    is_watched,
)


class _Kind(NamedTuple):
    """What all calls of a kind have in common; `kernel` and `call` are for second derivatives.

    `lse` is like a log-sum-exp: made like it, one is made by the same operator as the output, and
    another that work elsewhere has driven from the caches takes microseconds.
    """

    kernel: Implementation
    call: Call
    lse: Tensor
    forward: Layout
    backward: Layout


class _Attention(torch.autograd.Function):
    """A call of a kind; its inputs are the kind, query, key and value."""

    @staticmethod
    def forward(ctx: Any, kind: _Kind, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The output alone."""
        out, lse = forward_pass(kind.forward, query, key, value, torch.empty_like(kind.lse))
        ctx.kind = kind
        ctx.save_for_backward(query, key, value, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> Any:
        """Gradients of the inputs."""
        kind, saved = ctx.kind, ctx.saved_tensors
        if is_watched(grad_out):
            query, key, value, out, lse = saved
            found = gradients(
                kind.kernel, kind.call, grad_out, None, query, key, value, None, out, lse
            )
            return (None, *found[:3])
        # A hook may have given back other strides than were saved.
        query, key, value, out = map(aligned, saved[:4])
        lse = saved[4].contiguous()
        grads = backward_pass(kind.backward, aligned(grad_out), query, key, value, out, lse)
        return (None, *grads)


def way(
    kernel: Implementation, query: Tensor, key: Tensor, value: Tensor, call: Call
) -> Way | None:
    """How to compute a call and all others of its kind; None where this is not the way.

    Args:
        kernel: Whose passes these are.
        query: `[B, H, T, D]`; of the three no value counts.
        key: `[B, H_kv, S, D]`.
        value: `[B, H_kv, S, D_v]`.
        call: With no options but mask and scale. Not under a mode that makes tensors of its own.

    Returns:
        A function from the three tensors to the output, or to None under forward-mode derivatives.
    """
    given = (query, key, value)
    if any(t.numel() == 0 or t.stride(3) != 1 or t.is_neg() for t in given):
        return None
    seen = visibility(call.mask, sizes_of(query, key), query.device)
    if seen.intervals is not None or seen.dense is not None:
        return None  # numbers of the call's own
    # Not the caller's mask, who may change it before a second derivative is computed.
    call = call._replace(mask=Causal("bottom_right") if seen.causal else None)
    layouts = (f(query, key, value, call) for f in (forward_layout, lay_out))
    lse = torch.empty(1, dtype=torch.float32, device="cpu").expand(query.shape[:3])
    kind = _Kind(kernel, call, lse, *layouts)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor | None:
        # C reads memory and would drop the tangents.
        return None if forward_ad._current_level >= 0 else apply(kind, query, key, value)

    tracked = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)
    apply: Callable[[_Kind, Tensor, Tensor, Tensor], Tensor]
    apply = _Attention.apply if tracked else _output
    return attend


def _output(kind: _Kind, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return forward_pass(kind.forward, query, key, value, torch.empty_like(kind.lse))[0]
