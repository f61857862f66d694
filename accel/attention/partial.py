"""Attention over a part of the keys, kept as a state."""

from __future__ import annotations

from torch import Tensor

from accel.attention.api import segmented_attention
from accel.attention.state import AttentionState
from accel_kernels.masks import Mask
from accel_kernels.segmented_attention.call import Bias


def attend(
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
    backend: str | None = None,
) -> AttentionState:
    """Attention over these keys, as a state that merges with that over others.

    `segmented_attention(..., return_lse=True)` by another name, with its arguments and errors.
    Positions count within the keys given here: `mask` and `is_causal` align the last query with the
    last of these keys, a bias of distances too, and one `dropout_seed` draws the same pattern for
    each part; leave it out, and every part has its own.

    Args:
        query: `[B, H, T, D]`.
        key: `[B, H_kv, S, D]`.
        value: `[B, H_kv, S, D_v]`.
        mask: As for `segmented_attention`, like all that follow.
        is_causal: Aligned at the bottom right of these keys.
        scale: Of the scores.
        dropout_p: Dropout leaves `lse` as it is, so that parts merge with it.
        dropout_seed: Of this part.
        softcap: Of the scores.
        bias: Of the scores of these keys.
        segment_size: Keys per segment.
        backend: A kernel's name.

    Returns:
        `out` `[B, H, T, D_v]` in the query's dtype, and `lse` `[B, H, T]` in float32 (float64 for
        float64); both differentiable.
    """
    return segmented_attention(
        query,
        key,
        value,
        mask=mask,
        is_causal=is_causal,
        scale=scale,
        dropout_p=dropout_p,
        dropout_seed=dropout_seed,
        softcap=softcap,
        bias=bias,
        segment_size=segment_size,
        return_lse=True,
        backend=backend,
    )
