"""Attention as its definition says, with the whole score matrix: every derivative, at any order.

Quadratic in memory. Second derivatives are taken of it, since tiles would keep as much.
"""

from __future__ import annotations

import torch
from torch import Tensor

from accel_kernels.masks import visibility, visible
from accel_kernels.segmented_attention.bias import bias_tile
from accel_kernels.segmented_attention.call import Call, sizes_of
from accel_kernels.segmented_attention.dropout import keep_factor
from accel_kernels.segmented_attention.state import accumulation_dtype
from accel_kernels.segmented_attention.tiles import Tile


def whole_attention(query: Tensor, key: Tensor, value: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """The output and log-sum-exp of a call; segments play no part.

    Args:
        query: `[B, H, T, D]`.
        key: `[B, H_kv, S, D]`.
        value: `[B, H_kv, S, D_v]`.
        call: What is asked.

    Returns:
        `out` `[B, H, T, D_v]` in the query's dtype, `lse` `[B, H, T]` in float32 or float64.
    """
    sizes = sizes_of(query, key)
    dtype = accumulation_dtype(query.dtype)
    whole = Tile(0, sizes.query_length, 0, sizes.key_length)
    groups = sizes.heads // key.shape[1] if key.shape[1] else 1
    k = key.to(dtype).repeat_interleave(groups, 1)
    v = value.to(dtype).repeat_interleave(groups, 1)
    scores = query.to(dtype) @ k.transpose(-1, -2) * call.scale
    if call.softcap is not None:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    if call.bias is not None:
        scores = scores + bias_tile(call.bias, sizes, whole, dtype)
    if call.mask is not None:
        seen = visible(visibility(call.mask, sizes, query.device), sizes, query.device)
        scores = torch.where(seen, scores, -torch.inf)
    if sizes.key_length == 0:
        empty = scores.sum(-1)
        return (query.to(dtype) @ k.mT @ v).to(query.dtype), empty - torch.inf
    highest = scores.detach().amax(-1, keepdim=True)
    highest = torch.where(highest == -torch.inf, 0.0, highest)
    weights = torch.exp(scores - highest)
    total = weights.sum(-1, keepdim=True)
    some = total > 0  # a row that sees no key has output 0 and log-sum-exp -inf, without gradient
    probability = weights / torch.where(some, total, 1.0)
    lse = torch.where(some, highest + torch.log(torch.where(some, total, 1.0)), -torch.inf)
    if call.dropout is not None:
        probability = probability * keep_factor(call.dropout, sizes, whole, dtype, query.device)
    return (probability @ v).to(query.dtype), lse.squeeze(-1)
