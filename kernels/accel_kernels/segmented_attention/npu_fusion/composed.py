"""A tile in plain PyTorch, for what the vendor's operators do not do.

They multiply what is masked by zero, so a key or value that is not finite reaches rows that do not
see it; and their gradient returns none for the bias ("not yet used" in the page of
`aclnnFlashAttentionScoreGradV2`). Tiles of such calls are computed here, in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from accel_kernels.segmented_attention.npu_fusion.calls import Tensors
from accel_kernels.segmented_attention.npu_fusion.pieces import Piece
from accel_kernels.segmented_attention.selection import selected_product
from accel_kernels.segmented_attention.state import accumulation_dtype


def tile_state(
    tensors: Tensors, piece: Piece, allowed: Tensor | None, scale: float, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The attention state of a piece; see `calls.attend`.

    Args:
        tensors: Of the whole call.
        piece: All its heads.
        allowed: What its rows see, `[b or 1, h or 1, rows, keys]`; None: all.
        scale: Of the scores.
        bias: Added to the scaled scores, `[b or 1, h or 1, rows or 1, keys or 1]`.

    Returns:
        `out` `[b, h, rows, D_v]` and `lse` `[b, h, rows]`, in float32 (float64 for float64).
    """
    query, key, value = _wide(tensors.of(piece))
    scores = _scores(query, key, allowed, scale, bias)
    highest = scores.amax(-1, keepdim=True)
    highest = torch.where(highest == -torch.inf, 0.0, highest)
    weights = torch.exp(scores - highest)
    total = weights.sum(-1, keepdim=True)
    some = total != 0  # also if it is NaN
    divisor = torch.where(some, total, 1.0)
    out = selected_product(weights / divisor, allowed, value)
    lse = torch.where(some, highest + torch.log(divisor), -torch.inf).squeeze(-1)
    return out, lse


def tile_gradients(
    grad_out: Tensor,
    delta: Tensor,
    tensors: Tensors,
    lse: Tensor,
    piece: Piece,
    allowed: Tensor | None,
    scale: float,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A piece's part of the gradients of query, key and value, and the gradient of its scores.

    Args:
        grad_out: Of the output, `[B, H, T, D_v]`.
        delta: `sum(grad_out * out)` less the gradient of `lse`, `[B, H, T]`.
        tensors: Of the whole call.
        lse: Of the whole rows, `[B, H, T]`.
        piece: All its heads.
        allowed: As for `tile_state`.
        scale: Of the scores.
        bias: As for `tile_state`.

    Returns:
        The three, of the sizes of the piece's query, key and value, and `[b, h, rows, keys]`; in
        float32 (float64 for float64).
    """
    given = tensors.of(piece)
    query, key, value = _wide(given)
    at = (slice(*piece.batch), slice(*piece.heads), piece.rows)
    of_rows = lse[at].unsqueeze(-1)
    # A row that sees no key at all has no probabilities; +inf makes every exponential zero.
    of_rows = torch.where(of_rows == -torch.inf, torch.inf, of_rows)
    probability = torch.exp(_scores(query, key, allowed, scale, bias) - of_rows)
    grad = grad_out[at].to(query.dtype)
    score_gradient = probability * (grad @ value.mT - delta[at].unsqueeze(-1))
    if allowed is not None:
        score_gradient = torch.where(allowed, score_gradient, 0.0)
    turned = None if allowed is None else allowed.mT
    groups = (given.key.shape[1], -1)
    d_query = selected_product(score_gradient, allowed, key) * scale
    d_key = selected_product(score_gradient.mT, turned, query).unflatten(1, groups).sum(2) * scale
    d_value = selected_product(probability.mT, turned, grad).unflatten(1, groups).sum(2)
    return d_query, d_key, d_value, score_gradient


def _wide(tensors: Tensors) -> Tensors:
    """In the dtype of accumulation, keys and values once for each head of the query."""
    dtype = accumulation_dtype(tensors.query.dtype)
    groups = tensors.query.shape[1] // tensors.key.shape[1]
    key, value = (t.to(dtype).repeat_interleave(groups, 1) for t in tensors[1:])
    return Tensors(tensors.query.to(dtype), key, value)


def _scores(
    query: Tensor, key: Tensor, allowed: Tensor | None, scale: float, bias: Tensor | None
) -> Tensor:
    scores = query @ key.mT * scale
    if bias is not None:
        scores = scores + bias
    return scores if allowed is None else torch.where(allowed, scores, -torch.inf)
