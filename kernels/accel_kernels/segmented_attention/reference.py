"""The reference: plain PyTorch, any device, float64 too; never more than one tile of scores.

It may be chosen automatically where nothing faster runs, so it walks tiles like the others.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from accel_kernels.masks import Mask, Visibility, row_bounds, visibility, visible
from accel_kernels.segmented_attention.bias import add_bias_gradient, bias_tile
from accel_kernels.segmented_attention.call import Bias, Call, Dropout, sizes_of
from accel_kernels.segmented_attention.differentiable import Gradients, Implementation, run
from accel_kernels.segmented_attention.dropout import keep_factor
from accel_kernels.segmented_attention.selection import selected_product
from accel_kernels.segmented_attention.state import accumulation_dtype
from accel_kernels.segmented_attention.tiles import Tile, tiles_of

DEFAULT_SEGMENT_SIZE = 1024


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
    """Attention by an online softmax over tiles of `segment_size` queries and keys.

    Args:
        query: `[B, H, T, D]`, float64, float32, bfloat16 or float16.
        key: `[B, H_kv, S, D]`; `H` is a multiple of `H_kv`.
        value: `[B, H_kv, S, D_v]`.
        mask: Which keys a query sees.
        scale: Of the scores; `1/sqrt(D)` if None.
        dropout: Of the probabilities.
        softcap: Of the scaled scores.
        bias: Added to the capped scores.
        segment_size: Side of a tile; 1024 if None.
        return_lse: Whether the caller will use the log-sum-exp.

    Returns:
        `out` `[B, H, T, D_v]` in the query's dtype and `lse` `[B, H, T]` in float32 (float64 for
        float64). Scores and sums are in that dtype too. Both are differentiable, twice too.
    """
    scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    call = Call(mask, scale, softcap, bias, dropout, segment_size, return_lse)
    return run(IMPLEMENTATION, query, key, value, call)


def forward(query: Tensor, key: Tensor, value: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """Online softmax, tile by tile (Milakov & Gimelshein, arXiv 1805.02867, algorithm 3).

    The running maximum and sum are kept apart until the end, since their logarithm, however the
    keys are cut, would carry the rounding of every segment.
    """
    work = _Work(query, key, call)
    shape = query.shape[:-1]
    total = torch.zeros((*shape, value.shape[-1]), dtype=work.dtype, device=query.device)
    highest = torch.full(shape, -torch.inf, dtype=work.dtype, device=query.device)
    normaliser = torch.zeros_like(highest)
    for tile in work.tiles:
        at = (tile.batches, slice(None), tile.rows)
        scores, seen, _ = work.scores(query, key, tile)
        before = work.grouped(highest[at])
        now = torch.maximum(before, scores.amax(-1))
        # A row whose scores are all -inf so far has no maximum to subtract.
        shift = now.masked_fill(now == -torch.inf, 0.0)
        shrink = torch.exp(before - shift)
        weights = torch.exp(scores - shift.unsqueeze(-1))
        highest[at] = now.flatten(1, 2)
        normaliser[at] = (work.grouped(normaliser[at]) * shrink + weights.sum(-1)).flatten(1, 2)
        if (factor := work.kept(tile)) is not None:
            weights = weights * factor
        part = selected_product(weights, seen, work.keys(value, tile))
        total[at] = (work.grouped(total[at]) * shrink.unsqueeze(-1) + part).flatten(1, 2)
    empty = (highest == -torch.inf).unsqueeze(-1)
    out = torch.where(empty, torch.zeros_like(total), total / normaliser.unsqueeze(-1))
    return out.to(query.dtype), highest + torch.log(normaliser)


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
    """Gradients from the global output and log-sum-exp (FlashAttention, algorithm 4)."""
    work = _Work(query, key, call)
    dtype = work.dtype
    delta = (grad_out.to(dtype) * out.to(dtype)).sum(-1)
    if grad_lse is not None:
        # d lse / d score is the probability itself: one subtraction serves both.
        delta = delta - grad_lse
    # A row that saw no key has no probabilities; +inf makes every exponential zero.
    lse = torch.where(lse == -torch.inf, torch.full_like(lse, torch.inf), lse)
    grad_q, grad_k, grad_v = (torch.zeros_like(t, dtype=dtype) for t in (query, key, value))
    bias = call.bias
    grad_bias = None if bias is None else torch.zeros_like(bias.tensor, dtype=dtype)
    for tile in work.tiles:
        at = (tile.batches, slice(None), tile.rows)
        keys_at = (tile.batches, slice(None), tile.keys)
        grad, rows = work.grouped(grad_out[at].to(dtype)), work.grouped(query[at].to(dtype))
        scores, seen, slope = work.scores(query, key, tile)
        probability = torch.exp(scores - work.grouped(lse[at]).unsqueeze(-1))
        if seen is not None:  # not zero yet in a row whose log-sum-exp is NaN
            probability = torch.where(seen, probability, 0.0)
        grad_probability = grad @ work.keys(value, tile).transpose(-1, -2)
        dropped = probability
        if (factor := work.kept(tile)) is not None:
            grad_probability, dropped = grad_probability * factor, probability * factor
        grad_scores = probability * (grad_probability - work.grouped(delta[at]).unsqueeze(-1))
        if seen is not None:
            grad_scores = torch.where(seen, grad_scores, 0.0)
            slope = slope if slope is None else torch.where(seen, slope, 0.0)
        if bias is not None and grad_bias is not None:
            add_bias_gradient(grad_bias, bias, work.sizes, tile, grad_scores.flatten(1, 2))
        grad_scores = grad_scores * (call.scale if slope is None else slope * call.scale)
        by_keys = None if seen is None else seen.transpose(-1, -2)
        part_q = selected_product(grad_scores, seen, work.keys(key, tile))
        grad_q[at] += part_q.flatten(1, 2)
        grad_k[keys_at] += selected_product(grad_scores.transpose(-1, -2), by_keys, rows).sum(2)
        grad_v[keys_at] += selected_product(dropped.transpose(-1, -2), by_keys, grad).sum(2)
    if bias is not None and grad_bias is not None:
        grad_bias = grad_bias.to(bias.tensor.dtype)
    grads = grad_q.to(query.dtype), grad_k.to(key.dtype), grad_v.to(value.dtype)
    return Gradients(*grads, grad_bias)


IMPLEMENTATION = Implementation("reference", forward, backward)


class _Work:
    """What forward and backward do with a tile. Scores are `[B, H_kv, G, rows, keys]`."""

    def __init__(self, query: Tensor, key: Tensor, call: Call) -> None:
        self.call, self.sizes, self.device = call, sizes_of(query, key), query.device
        self.dtype = accumulation_dtype(query.dtype)
        self.groups = query.shape[1] // key.shape[1] if key.shape[1] else 1
        self.seen = visibility(call.mask, self.sizes, self.device)
        segment = DEFAULT_SEGMENT_SIZE if call.segment_size is None else call.segment_size
        # A causal mask is one among others here: no tile is special.
        bounds = row_bounds(self.seen, self.sizes, self.device) if self.seen.causal else None
        seen = self.seen if bounds is None else Visibility(bounds, None)
        self.tiles = tiles_of(seen, self.sizes, segment)

    def grouped(self, tensor: Tensor) -> Tensor:
        """`[B, H, ...]` to `[B, H_kv, G, ...]`."""
        apart: Tensor = tensor.unflatten(1, (-1, self.groups))
        return apart

    def keys(self, tensor: Tensor, tile: Tile) -> Tensor:
        """A tile's keys or values, `[B, H_kv, 1, keys, D]`."""
        return tensor[tile.batches, :, tile.keys].to(self.dtype).unsqueeze(2)

    def scores(
        self, query: Tensor, key: Tensor, tile: Tile
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Scores, -inf where not seen; what is seen (None: all); the cap's slope (None: 1)."""
        call = self.call
        rows = self.grouped(query[tile.batches, :, tile.rows].to(self.dtype))
        scores = rows @ self.keys(key, tile).transpose(-1, -2) * call.scale
        slope = None
        if call.softcap is not None:
            capped = torch.tanh(scores / call.softcap)
            scores, slope = call.softcap * capped, 1.0 - capped.square()
        if call.bias is not None:
            added = bias_tile(call.bias, self.sizes, tile, self.dtype)
            scores = scores + self.by_group(added)
        if not tile.partial:
            return scores, None, slope
        seen = self.by_group(visible(self.seen, self.sizes, self.device, tile.rows, tile.keys))
        seen = seen if seen.shape[0] == 1 else seen[tile.batches]
        return torch.where(seen, scores, -torch.inf), seen, slope

    def kept(self, tile: Tile) -> Tensor | None:
        """Dropout's factor, `[B, H_kv, G, rows, keys]`; None without dropout."""
        if self.call.dropout is None:
            return None
        found = keep_factor(self.call.dropout, self.sizes, tile, self.dtype, self.device)
        return self.grouped(found)

    def by_group(self, tensor: Tensor) -> Tensor:
        """`[B or 1, H or 1, ...]` to `[B or 1, H_kv or 1, G or 1, ...]`."""
        return tensor.unsqueeze(2) if tensor.shape[1] == 1 else self.grouped(tensor)
