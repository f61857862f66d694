"""`torch.nn.functional.scaled_dot_product_attention`, where the request fits it exactly.

What it cannot do exactly, it would do by another rule (causal masking of unequal lengths is aligned
at the top left; a scale that is not positive gives NaN with its CPU kernel) or in quadratic memory
(a head size that is not contiguous): the spec refuses all three.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def segmented_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    segment_size: int | None = None,
    return_lse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attention by torch's own operator.

    Args:
        query: `[B, H, T, D]`.
        key: `[B, H_kv, S, D]`; `H` is a multiple of `H_kv`.
        value: `[B, H_kv, S, D]`.
        is_causal: Only for equal lengths, where both alignments are one.
        scale: Of the scores; `1/sqrt(D)` if None.
        segment_size: None: torch cuts the keys as it likes.
        return_lse: False: torch does not tell it.

    Returns:
        `out` `[B, H, T, D]` in the query's dtype, and None.
    """
    assert segment_size is None, "the spec refuses segment_size"  # noqa: S101
    assert not return_lse, "the spec refuses return_lse"  # noqa: S101
    out = F.scaled_dot_product_attention(
        query,
        key,
        value,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out, None
