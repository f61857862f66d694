"""The public attention call: check, choose a kernel, run it."""

from __future__ import annotations

import contextlib
from typing import Any, Literal, overload

import torch
from torch import Tensor

from accel.attention.state import AttentionState
from accel.dispatch import kernel_for
from accel_kernels.segmented_attention.arguments import cast_for_autocast, request


@overload
def segmented_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Any = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    softcap: float | None = None,
    bias: Any = None,
    segment_size: int | None = None,
    return_lse: Literal[False] = False,
    backend: str | None = None,
) -> Tensor: ...


@overload
def segmented_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Any = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    softcap: float | None = None,
    bias: Any = None,
    segment_size: int | None = None,
    return_lse: Literal[True],
    backend: str | None = None,
) -> AttentionState: ...


def segmented_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Any = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    softcap: float | None = None,
    bias: Any = None,
    segment_size: int | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | AttentionState:
    """Exact attention over key/value segments; the score matrix is never whole in memory.

    `softmax(query @ key.T * scale) @ value`, computed one segment of keys at a time with a running
    log-sum-exp, forward and backward, so that memory grows linearly in the lengths.

    The pseudocode often published under this name takes a softmax within each segment, multiplies
    it by the *unsplit* value and concatenates. That is not attention: the shapes do not even fit,
    and where they are made to, each segment's probabilities sum to one on their own, so that a
    segment without any relevant key weighs as much as the one that holds the answer. The segments'
    normalisers are what is missing; the log-sum-exp carries them (Rabe & Staats, arXiv 2112.05682;
    FlashAttention, arXiv 2205.14135, section 3.1).

    Args:
        query: `[B, H, T, D]` in float64, float32, bfloat16 or float16.
        key: `[B, H_kv, S, D]`, same dtype and device. `H` is a multiple of `H_kv` (grouped-query
            attention): query head `h` attends to key head `h // (H / H_kv)`.
        value: `[B, H_kv, S, D_v]`.
        mask: Structure of a mask. Not built yet: raises.
        is_causal: Query `i` sees key `j` only if `j <= i + S - T`: aligned at the bottom right,
            as FlashAttention does and unlike `scaled_dot_product_attention`, so that a few last
            queries see all keys before them. Queries that see no key get zeros.
        scale: Factor of the scores; `1 / sqrt(D)` if None.
        dropout_p: Not built yet: raises if not 0.
        softcap: Not built yet: raises if not None.
        bias: Not built yet: raises if not None.
        segment_size: Keys per segment; the backend's own choice if None.
        return_lse: Return the log-sum-exp too.
        backend: A kernel's name, which then runs or raises; None to choose (see `accel.explain`).

    Returns:
        `[B, H, T, D_v]` in the query's dtype, or an `AttentionState` with `lse` if `return_lse`.
        Scores and sums are computed in float32 (float64 for float64). Differentiable in all three
        tensors, through `lse` too. Under autocast the three are cast to its dtype first, as torch
        does for its own attention. The `cpu` backend has no second derivative and says so when one
        is taken; `reference` has.

    Raises:
        TypeError: The dtypes differ or are not floating.
        ValueError: Shapes, devices or numbers do not fit, or no backend has that name.
        accel.BackendError: The named backend, or every backend, cannot serve the call.
    """
    query, key, value = cast_for_autocast(query, key, value)
    asked = request(
        query,
        key,
        value,
        mask=mask,
        is_causal=is_causal,
        scale=scale,
        dropout_p=dropout_p,
        softcap=softcap,
        bias=bias,
        segment_size=segment_size,
        return_lse=return_lse,
    )
    kernel = kernel_for(asked, backend)
    kind = query.device.type
    under_autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    off = torch.autocast(kind, enabled=False) if under_autocast else contextlib.nullcontext()
    with off:
        out, lse = kernel(
            query,
            key,
            value,
            is_causal=is_causal,
            scale=scale,
            segment_size=segment_size,
            return_lse=return_lse,
        )
    return AttentionState(out, lse) if return_lse else out
