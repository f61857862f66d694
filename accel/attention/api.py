"""The public attention call: check, choose a kernel, run it."""

from __future__ import annotations

import contextlib
from typing import Literal, overload

import torch
from torch import Tensor

from accel.attention.choice import kernel_of_call, quick_answer
from accel.attention.state import AttentionState
from accel_kernels.masks import Mask
from accel_kernels.segmented_attention.arguments import cast_for_autocast, under_autocast
from accel_kernels.segmented_attention.call import Bias, Dropout


@overload
def segmented_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Mask | Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | Tensor | None = None,
    softcap: float | None = None,
    bias: Bias | Tensor | None = None,
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
    mask: Mask | Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | Tensor | None = None,
    softcap: float | None = None,
    bias: Bias | Tensor | None = None,
    segment_size: int | None = None,
    return_lse: Literal[True],
    backend: str | None = None,
) -> AttentionState: ...


def segmented_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Mask | Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | Tensor | None = None,
    softcap: float | None = None,
    bias: Bias | Tensor | None = None,
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
        mask: Which keys a query sees: `causal`, `window`, `documents`, `prefix`, `key_lengths` of
            `accel.attention`, combined with `&` and `|`, in memory `O(T)`; or, for those who must,
            a bool tensor that broadcasts to `[B, H, T, S]`, True where a query may see a key.
            Queries that see no key get zeros. NaN and infinite values in what a query does not
            see do not reach it (with `sdpa` and `flex`, torch's own kernels, they may: as NaN).
        is_causal: Short for `mask=causal("bottom_right")`; with a mask, both must allow a key.
            Query `i` sees key `j` only if `j <= i + S - T`: aligned at the bottom right, as
            FlashAttention does and unlike `scaled_dot_product_attention`, so that a few last
            queries see all keys before them.
        scale: Factor of the scores; `1 / sqrt(D)` if None.
        dropout_p: Probability that a probability is dropped, from 0 to below 1.
        dropout_seed: 64 bits that decide which; None draws them from torch's default generator of
            the CPU, so that `torch.manual_seed` gives the same on every device. The choice is a
            function of seed and logical position alone: the same on every device, in every layout,
            for every segment size and kernel.
        softcap: `softcap * tanh(score / softcap)` takes the place of each scaled score.
        bias: Added to the scores after scale and cap: `alibi` or `relative_bias` of
            `accel.attention`, or a floating tensor that broadcasts to `[B, H, T, S]`. Learnable.
        segment_size: Keys per segment; the backend's own choice if None.
        return_lse: Return the log-sum-exp too.
        backend: A kernel's name, which then runs or raises; None to choose (see `accel.explain`).

    Returns:
        `[B, H, T, D_v]` in the query's dtype, or an `AttentionState` with `lse` if `return_lse`.
        Scores and sums are computed in float32 (float64 for float64). Differentiable in all three
        tensors and a bias, through `lse` too; second derivatives are those of the plain formula, in
        quadratic memory (`sdpa`, `flex` and, for short calls below float64, `cpu` have torch's own
        autograd and none). Under autocast the three are cast to its dtype first, as torch does for
        its own attention.

    Raises:
        TypeError: The dtypes differ or are not floating.
        ValueError: Shapes, devices or numbers do not fit, or no backend has that name.
        accel.BackendError: The named backend, or every backend, cannot serve the call.
    """
    if (
        type(dropout_p) is float
        and dropout_p == 0.0
        and dropout_seed is None
        and softcap is None
        and bias is None
        and segment_size is None
        and return_lse is False
    ):
        answer = quick_answer(query, key, value, mask, is_causal, scale, backend)
        if answer is not None:
            return answer
    # Off: asked once, and in a fraction of a microsecond.
    autocast = torch.compiler.is_compiling() or torch._C._is_any_autocast_enabled()
    if autocast:
        query, key, value = cast_for_autocast(query, key, value)
    chosen = kernel_of_call(
        query, key, value, mask, is_causal, scale, dropout_p, dropout_seed, softcap, bias,
        segment_size, return_lse, backend,
    )  # fmt: skip
    dropout = None
    if dropout_p > 0.0:
        dropout = Dropout(dropout_p, draw_seed() if dropout_seed is None else dropout_seed)
    kind = query.device.type if autocast else ""
    # Switching it off costs microseconds, so only where it is on.
    off = torch.autocast(kind, enabled=False) if autocast and under_autocast(kind) else _NOTHING
    with off:
        out, lse = chosen.kernel(
            query,
            key,
            value,
            mask=chosen.mask,
            scale=scale,
            dropout=dropout,
            softcap=softcap,
            bias=chosen.bias,
            segment_size=segment_size,
            return_lse=return_lse,
        )
    return AttentionState(out, lse) if return_lse else out


_NOTHING = contextlib.nullcontext()


def draw_seed() -> Tensor:
    """64 random bits from torch's default generator of the CPU, as an int64 tensor there."""
    bounds = torch.iinfo(torch.int64)
    return torch.randint(bounds.min, bounds.max, (), dtype=torch.int64, device="cpu")
