"""Tile formulas in float32 for what aten's kernel cannot do: softcap, bias, dropout, NaN.

One entry of the batch and one block of query rows at a time, so that intermediate results stay a
few megabytes and no number depends on the other entries. The heads of a group are packed as query
rows: scores are `[H_kv, G * rows, keys]`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from accel_kernels.masks import Visibility, row_bounds, visibility, visible
from accel_kernels.segmented_attention.bias import add_bias_gradient, bias_tile
from accel_kernels.segmented_attention.call import Call, sizes_of
from accel_kernels.segmented_attention.differentiable import Gradients
from accel_kernels.segmented_attention.dropout import keep_factor
from accel_kernels.segmented_attention.selection import selected_product
from accel_kernels.segmented_attention.state import accumulation_dtype
from accel_kernels.segmented_attention.tiles import EMPTY, PARTIAL, Tile, tile_kinds

# Scores of a tile over all heads: 4 MB in float32.
SCORES = 1 << 20
SIDES = (512, 256, 128)


def forward(query: Tensor, key: Tensor, value: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """Online softmax (Milakov & Gimelshein, arXiv 1805.02867, algorithm 3)."""
    work = _Work(query, key, call)
    shape = query.shape[:-1]
    out = query.new_zeros((*shape, value.shape[-1]))
    lse = torch.full(shape, -torch.inf, dtype=work.dtype, device="cpu")
    for tiles in work.blocks():
        at = (tiles[0].batches, slice(None), tiles[0].rows)
        block, block_lse = _attend_block(work, query, key, value, tiles)
        out[at], lse[at] = block.view(out[at].shape), block_lse.view(lse[at].shape)
    return out, lse


def _attend_block(
    work: _Work, query: Tensor, key: Tensor, value: Tensor, tiles: list[Tile]
) -> tuple[Tensor, Tensor]:
    """The state of a block of rows, `[H_kv, G * rows, D_v]` and `[H_kv, G * rows]`."""
    rows = work.rows(query, tiles[0])
    total = rows.new_zeros((*rows.shape[:-1], value.shape[-1]))
    highest = rows.new_full(rows.shape[:-1], -torch.inf)
    normaliser = torch.zeros_like(highest)
    for tile in tiles:
        scores, seen, _ = work.scores(rows, key, tile)
        now = torch.maximum(highest, scores.amax(-1))
        # A row whose scores are all -inf so far has no maximum to subtract.
        shift = now.masked_fill(now == -torch.inf, 0.0)
        shrink = torch.exp(highest - shift)
        highest = now
        weights = scores.sub_(shift.unsqueeze(-1)).exp_()
        normaliser = normaliser * shrink + weights.sum(-1)
        if (factor := work.kept(tile)) is not None:
            weights *= factor.view(weights.shape)
        part = selected_product(weights, seen, work.keys(value, tile))
        total = total.mul_(shrink.unsqueeze(-1)).add_(part)
    empty = (highest == -torch.inf).unsqueeze(-1)
    out = (total / normaliser.unsqueeze(-1)).masked_fill_(empty, 0.0)
    return out, highest + torch.log(normaliser)


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
    bias = call.bias
    grad_q, grad_k, grad_v = (
        torch.zeros(tensor.shape, dtype=work.dtype, device="cpu") for tensor in (query, key, value)
    )
    grad_bias = None if bias is None else torch.zeros_like(bias.tensor, dtype=work.dtype)
    for tiles in work.blocks():
        at = (tiles[0].batches, slice(None), tiles[0].rows)
        rows, grad = work.rows(query, tiles[0]), work.rows(grad_out, tiles[0])
        delta = (grad * work.rows(out, tiles[0])).sum(-1)
        if grad_lse is not None:  # d lse / d score is the probability: one subtraction serves both
            delta = delta - grad_lse[at].reshape(delta.shape)
        block_lse = lse[at].reshape(delta.shape)
        # A row that saw no key has no probabilities; +inf makes every exponential zero.
        block_lse = block_lse.masked_fill(block_lse == -torch.inf, torch.inf)
        block = _Block(rows, grad, delta, block_lse)
        total = torch.zeros_like(rows)
        for tile in tiles:
            where = (tile.batches, slice(None), tile.keys)
            grad_scores, dropped, seen = _differentiate(work, block, key, value, tile, grad_bias)
            total += selected_product(grad_scores, seen, work.keys(key, tile))
            across = None if seen is None else seen.transpose(-1, -2)
            grad_k[where] += selected_product(grad_scores.transpose(-1, -2), across, rows)
            grad_v[where] += selected_product(dropped.transpose(-1, -2), across, grad)
        grad_q[at] = total.view(grad_q[at].shape)
    grads = grad_q.to(query.dtype), grad_k.to(key.dtype), grad_v.to(value.dtype)
    if bias is None or grad_bias is None:
        return Gradients(*grads, None)
    return Gradients(*grads, grad_bias.to(bias.tensor.dtype))


class _Block:
    """What the backward knows of a block of rows, each `[H_kv, G * rows, ...]`."""

    def __init__(self, rows: Tensor, grad: Tensor, delta: Tensor, lse: Tensor) -> None:
        self.rows, self.grad, self.delta, self.lse = rows, grad, delta, lse


def _differentiate(
    work: _Work, block: _Block, key: Tensor, value: Tensor, tile: Tile, grad_bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradient of `query·key`, probabilities after dropout, and what is seen, of one tile."""
    call = work.call
    scores, seen, slope = work.scores(block.rows, key, tile)
    probability = scores.sub_(block.lse.unsqueeze(-1)).exp_()
    if seen is not None:  # not zero yet in a row whose log-sum-exp is NaN
        probability.masked_fill_(~seen, 0.0)
    grads = block.grad @ work.keys(value, tile).transpose(-1, -2)
    dropped = probability
    if (factor := work.kept(tile)) is not None:
        factor = factor.view(grads.shape)
        grads *= factor
        dropped = probability * factor
    grads = grads.sub_(block.delta.unsqueeze(-1)).mul_(probability)
    if seen is not None:
        grads.masked_fill_(~seen, 0.0)
        slope = slope if slope is None else slope.masked_fill_(~seen, 0.0)
    if call.bias is not None and grad_bias is not None:
        by_head = grads.view(1, work.sizes.heads, -1, grads.shape[-1])
        add_bias_gradient(grad_bias, call.bias, work.sizes, tile, by_head)
    if slope is not None:
        grads *= slope
    return grads.mul_(call.scale), dropped, seen


class _Work:
    """What forward and backward do with a tile, whose batch is always one entry."""

    def __init__(self, query: Tensor, key: Tensor, call: Call) -> None:
        self.call, self.sizes = call, sizes_of(query, key)
        self.dtype = accumulation_dtype(query.dtype)
        self.key_heads = key.shape[1]
        seen = visibility(call.mask, self.sizes, query.device)
        if seen.causal:
            seen = Visibility(row_bounds(seen, self.sizes, query.device), None)
        self.seen = seen
        fitting = [side for side in SIDES if self.sizes.heads * side * side <= SCORES]
        self.side = fitting[0] if fitting else SIDES[-1]
        if call.segment_size is not None:
            self.side = min(self.side, call.segment_size)

    def blocks(self) -> Iterator[list[Tile]]:
        """Tiles by entry of the batch and block of rows; blocks that see nothing are left out."""
        _, _, queries, keys = self.sizes
        if min(self.sizes) == 0:
            return
        kinds = tile_kinds(self.seen, self.sizes, self.side, self.side)
        for batch in range(self.sizes.batch):
            for number, line in enumerate(kinds[batch if len(kinds) > 1 else 0]):
                q0 = number * self.side
                tiles = [
                    Tile(
                        q0,
                        min(q0 + self.side, queries),
                        at * self.side,
                        min((at + 1) * self.side, keys),
                        partial=kind == PARTIAL,
                        batch=batch,
                    )
                    for at, kind in enumerate(line.tolist())
                    if kind != EMPTY
                ]
                if tiles:
                    yield tiles

    def rows(self, tensor: Tensor, tile: Tile) -> Tensor:
        """A tile's queries, or what belongs to them, `[H_kv, G * rows, D]`."""
        part = tensor[tile.batches, :, tile.rows].to(self.dtype)
        return part.reshape(self.key_heads, -1, tensor.shape[-1])

    def keys(self, tensor: Tensor, tile: Tile) -> Tensor:
        """A tile's keys or values, `[H_kv, keys, D]`."""
        return tensor[tile.batches, :, tile.keys].to(self.dtype).squeeze(0)

    def scores(
        self, rows: Tensor, key: Tensor, tile: Tile
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Scores, -inf where not seen; what is seen (None: all); the cap's slope (None: 1)."""
        call, slope = self.call, None
        scores = rows @ self.keys(key, tile).transpose(-1, -2)
        scores *= call.scale
        if call.softcap is not None:
            capped = scores.div_(call.softcap).tanh_()
            slope = 1.0 - capped.square()
            scores = capped * call.softcap
        by_head = scores.view(1, self.sizes.heads, -1, scores.shape[-1])
        if call.bias is not None:
            by_head += bias_tile(call.bias, self.sizes, tile, self.dtype)
        if not tile.partial:
            return scores, None, slope
        seen = visible(self.seen, self.sizes, torch.device("cpu"), tile.rows, tile.keys)
        seen = seen if seen.shape[0] == 1 else seen[tile.batches]
        by_head.masked_fill_(~seen, -torch.inf)
        return scores, seen.expand(by_head.shape).reshape(scores.shape), slope

    def kept(self, tile: Tile) -> Tensor | None:
        """Dropout's factor, `[1, H, rows, keys]`; None without dropout."""
        if self.call.dropout is None:
            return None
        return keep_factor(self.call.dropout, self.sizes, tile, self.dtype, torch.device("cpu"))
