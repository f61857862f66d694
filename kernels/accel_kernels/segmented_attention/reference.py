"""The reference: plain PyTorch, any device, float64 too; never more than one tile of scores.

It may be chosen automatically where nothing faster runs, so it walks segments like the others. Its
backward is made of differentiable operators, so second derivatives work (and keep every tile).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from accel_kernels.segmented_attention.state import Tile, accumulation_dtype, tiles

DEFAULT_SEGMENT_SIZE = 1024


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
    """Attention by an online softmax over tiles of `segment_size` queries and keys.

    Args:
        query: `[B, H, T, D]`, float64, float32, bfloat16 or float16.
        key: `[B, H_kv, S, D]`; `H` is a multiple of `H_kv`.
        value: `[B, H_kv, S, D_v]`.
        is_causal: Aligned at the bottom right.
        scale: Of the scores; `1/sqrt(D)` if None.
        segment_size: Side of a tile; 1024 if None.
        return_lse: Whether the caller will use the log-sum-exp.

    Returns:
        `out` `[B, H, T, D_v]` in the query's dtype and `lse` `[B, H, T]` in float32 (float64 for
        float64). Scores and sums are in that dtype too. Both are differentiable.
    """
    out, lse = _SegmentedAttention.apply(
        query,
        key,
        value,
        is_causal,
        1.0 / math.sqrt(query.shape[-1]) if scale is None else scale,
        DEFAULT_SEGMENT_SIZE if segment_size is None else segment_size,
        return_lse,
    )
    return out, lse if return_lse else None


class _SegmentedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        is_causal: bool,
        scale: float,
        segment_size: int,
        return_lse: bool,
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(query.device.type, enabled=False):
            return _forward(query, key, value, is_causal, scale, segment_size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        query, key, value, ctx.is_causal, ctx.scale, ctx.segment_size, ctx.return_lse = inputs
        ctx.save_for_backward(query, key, value, *output)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> Any:
        query, key, value, out, lse = ctx.saved_tensors
        with torch.autocast(query.device.type, enabled=False):
            if grad_out is None:
                grad_out = torch.zeros_like(out)
            delta = (grad_out * out).to(lse.dtype).sum(-1)
            # Compiled code hands in zeros for an output that nobody uses.
            if grad_lse is not None and ctx.return_lse:
                # d lse / d score is the probability itself: one subtraction serves both.
                delta = delta - grad_lse
            gradients = _backward(
                query, key, value, lse, grad_out, delta, ctx.is_causal, ctx.scale, ctx.segment_size
            )
        return (*gradients, None, None, None, None)


def _forward(
    query: Tensor, key: Tensor, value: Tensor, is_causal: bool, scale: float, segment_size: int
) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(query.dtype)
    groups = _groups(query, key)
    q = _grouped(query, groups)
    covering = tiles(query.shape[2], key.shape[2], segment_size, is_causal)
    outs, lses = [], []
    for q0, q1 in _blocks(query.shape[2], segment_size):
        out, lse = _attend_rows(q[..., q0:q1, :].to(dtype), key, value, covering, q0, scale)
        outs.append(out)
        lses.append(lse)
    if not outs:
        return query.new_zeros((*query.shape[:-1], value.shape[-1])), query[..., 0].to(dtype)
    out = torch.cat(outs, -2).reshape(*query.shape[:-1], value.shape[-1])
    return out.to(query.dtype), torch.cat(lses, -1).reshape(query.shape[:-1])


def _attend_rows(
    rows: Tensor, key: Tensor, value: Tensor, covering: list[Tile], first: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Online softmax of the query rows from `first` on (Milakov & Gimelshein, algorithm 3).

    The running maximum and sum are kept apart until the end, since their logarithm, however the
    keys are cut, would carry the rounding of every segment.
    """
    total = rows.new_zeros((*rows.shape[:-1], value.shape[-1]))
    highest = rows.new_full(rows.shape[:-1], -torch.inf)
    normaliser = torch.zeros_like(highest)
    for tile in _within(covering, first, first + rows.shape[-2]):
        at = slice(tile.q0 - first, tile.q1 - first)
        scores = _scores(rows[..., at, :], key, tile, scale)
        before = highest[..., at]
        now = torch.maximum(before, scores.amax(-1))
        # A row whose scores are all -inf so far has no maximum to subtract.
        shift = now.masked_fill(now == -torch.inf, 0.0)
        shrink = torch.exp(before - shift)
        weights = torch.exp(scores - shift.unsqueeze(-1))
        highest[..., at] = now
        normaliser[..., at] = normaliser[..., at] * shrink + weights.sum(-1)
        part = weights @ _keys(value, tile, rows.dtype)
        total[..., at, :] = total[..., at, :] * shrink.unsqueeze(-1) + part
    empty = highest == -torch.inf
    lse = highest + torch.log(normaliser)
    out = total / normaliser.unsqueeze(-1)
    return torch.where(empty.unsqueeze(-1), torch.zeros_like(out), out), lse


def _backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    delta: Tensor,
    is_causal: bool,
    scale: float,
    segment_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = lse.dtype
    groups = _groups(query, key)
    q, grad, delta = _grouped(query, groups), _grouped(grad_out, groups), _heads(delta, groups)
    # A row that saw no key has no probabilities; +inf makes every exponential zero.
    lse = _heads(torch.where(lse == -torch.inf, torch.full_like(lse, torch.inf), lse), groups)
    grad_q = torch.zeros_like(q, dtype=dtype)
    grad_k = torch.zeros_like(key, dtype=dtype)
    grad_v = torch.zeros_like(value, dtype=dtype)
    blocks = _blocks(query.shape[2], segment_size)
    for tile in tiles(query.shape[2], key.shape[2], segment_size, is_causal):
        for part in _split(tile, blocks):
            rows, keys = slice(part.q0, part.q1), slice(part.k0, part.k1)
            q_rows, grad_rows = q[..., rows, :].to(dtype), grad[..., rows, :].to(dtype)
            scores = _scores(q_rows, key, part, scale)
            probability = torch.exp(scores - lse[..., rows].unsqueeze(-1))
            grad_probability = grad_rows @ _keys(value, part, dtype).transpose(-1, -2)
            grad_scores = probability * (grad_probability - delta[..., rows].unsqueeze(-1)) * scale
            grad_q = _add(grad_q, grad_scores @ _keys(key, part, dtype), rows)
            grad_k = _add(grad_k, (grad_scores.transpose(-1, -2) @ q_rows).sum(2), keys)
            grad_v = _add(grad_v, (probability.transpose(-1, -2) @ grad_rows).sum(2), keys)
    grad_q = grad_q.reshape(query.shape)
    return grad_q.to(query.dtype), grad_k.to(key.dtype), grad_v.to(value.dtype)


def _add(total: Tensor, part: Tensor, rows: slice) -> Tensor:
    """Add to rows of a sum: in place, or by a copy where the sum itself is differentiated."""
    if torch.is_grad_enabled() and (total.requires_grad or part.requires_grad):
        index = torch.arange(rows.start, rows.stop, device=total.device)
        return total.index_add(-2, index, part)
    total[..., rows, :] += part
    return total


def _scores(rows: Tensor, key: Tensor, tile: Tile, scale: float) -> Tensor:
    """Scaled scores of a tile, `[B, H_kv, G, rows, keys]`, -inf above a tile's diagonal."""
    scores = rows @ _keys(key, tile, rows.dtype).transpose(-1, -2) * scale
    if tile.diagonal:
        above = torch.ones(scores.shape[-2:], dtype=torch.bool, device=rows.device).triu(1)
        scores = scores.masked_fill(above, -torch.inf)
    return scores


def _keys(tensor: Tensor, tile: Tile, dtype: torch.dtype) -> Tensor:
    return tensor[..., tile.k0 : tile.k1, :].to(dtype).unsqueeze(2)


def _blocks(length: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _within(covering: list[Tile], q0: int, q1: int) -> list[Tile]:
    return [part for tile in covering for part in _split(tile, [(q0, q1)])]


def _split(tile: Tile, blocks: list[tuple[int, int]]) -> list[Tile]:
    """Cut a tile's rows at the blocks' edges; a cut diagonal leaves a rectangle beside it."""
    parts = []
    for q0, q1 in blocks:
        low, high = max(tile.q0, q0), min(tile.q1, q1)
        if low >= high:
            continue
        if not tile.diagonal:
            parts.append(Tile(low, high, tile.k0, tile.k1, False))
            continue
        first = tile.k0 + low - tile.q0
        if first > tile.k0:
            parts.append(Tile(low, high, tile.k0, first, False))
        parts.append(Tile(low, high, first, first + high - low, True))
    return parts


def _groups(query: Tensor, key: Tensor) -> int:
    return query.shape[1] // key.shape[1] if key.shape[1] else 1


def _grouped(tensor: Tensor, groups: int) -> Tensor:
    """`[B, H, T, D]` to `[B, H_kv, G, T, D]`."""
    return tensor.unflatten(1, (-1, groups)) if tensor.shape[1] else tensor.unsqueeze(2)


def _heads(tensor: Tensor, groups: int) -> Tensor:
    """`[B, H, T]` to `[B, H_kv, G, T]`."""
    return tensor.unflatten(1, (-1, groups)) if tensor.shape[1] else tensor.unsqueeze(2)
