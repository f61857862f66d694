"""The formula of `npu_fusion_attention` and its gradient, one sequence at a time."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from accel_kernels.vendor.npu.fusion_call import (
    FusionCall,
    Shapes,
    sequence,
    statistic,
    statistics_shape,
)
from accel_kernels.vendor.npu.fusion_masks import visible
from accel_kernels.vendor.npu.values import refuse, require_shape, wide_dtype

LOWEST = torch.finfo(torch.float32).min


class Gradients(NamedTuple):
    """Of query, key, value, pse and sink; the last two have size 0 where there was none."""

    query: Tensor
    key: Tensor
    value: Tensor
    pse: Tensor
    sink: Tensor


def draw_kept(
    call: FusionCall, shapes: Shapes, seed: int, offset: int, device: torch.device
) -> list[Tensor | None]:
    """Which probabilities dropout keeps, `[N, Sq, Skv]` a sequence; None without dropout."""
    if call.keep_prob == 1.0:
        return [None] * shapes.batch
    sizes = [
        (shapes.heads, rows, columns)
        for rows, columns in zip(shapes.query_lengths, shapes.key_lengths, strict=True)
    ]
    # The CPU's generator looks at 32 bits of a seed: both numbers must reach all of them.
    mixed = zlib.crc32(struct.pack("<qq", seed, offset))
    generator = torch.Generator().manual_seed(mixed)
    kept: list[Tensor | None] = []
    for size in sizes:
        drawn = torch.rand(size, generator=generator, dtype=torch.float64)
        kept.append((drawn < call.keep_prob).to(device))
    return kept


def position_bias(call: FusionCall, shapes: Shapes, index: int) -> Tensor | None:
    """The part of `pse` for one sequence: `[N, Sq or 1, Skv]`."""
    if call.pse is None:
        return None
    rows, columns = shapes.query_lengths[0], shapes.key_lengths[0]
    if call.pse.ndim == 4 and call.pse.shape[2] == 1024 < rows:
        why = "compressed ALiBi (the last 1024 rows): no document defines the rows above"
        refuse(call.operator, "pse", tuple(call.pse.shape), why)
    batch, heads = shapes.batch, shapes.heads
    allowed = [(batch, heads, rows, columns), (batch, heads, 1, columns), (1, heads, rows, columns)]
    require_shape(call.operator, "pse", call.pse, *allowed)
    return call.pse[index if call.pse.shape[0] > 1 else 0]


def scores_of(call: FusionCall, query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
    """`[N, Sq, Skv]`: `scale * (q k^T + pse)`, or `scale * q k^T + pse` with `pse_type=0`."""
    scores = query @ key.transpose(-1, -2)
    if bias is None:
        return scores * call.scale
    if call.pse_type == 0:
        return scores * call.scale + bias
    return (scores + bias) * call.scale


def _grouped(tensor: Tensor, heads: int) -> Tensor:
    return tensor.repeat_interleave(heads // tensor.shape[0], dim=0)


class Part(NamedTuple):
    """One sequence of a call: `[N, S, D]` in the wide dtype, and what is kept of its scores."""

    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor | None
    keep: Tensor | None
    kept: Tensor | None


def _parts(
    call: FusionCall, shapes: Shapes, tensors: tuple[Tensor, Tensor, Tensor], seed: int, offset: int
) -> Iterator[tuple[int, Part]]:
    """The sequences that have queries, with their index."""
    query, key, value = tensors
    wide = wide_dtype(query)
    keeps, kept = visible(call, shapes), draw_kept(call, shapes, seed, offset, query.device)
    for index, (q_span, k_span) in enumerate(
        zip(shapes.query_spans, shapes.key_spans, strict=True)
    ):
        if not q_span[1]:
            continue
        bias = position_bias(call, shapes, index)
        yield (
            index,
            Part(
                sequence(call.layout, query, shapes.heads, q_span, index).to(wide),
                sequence(call.layout, key, shapes.kv_heads, k_span, index).to(wide),
                sequence(call.layout, value, shapes.kv_heads, k_span, index).to(wide),
                None if bias is None else bias.to(wide),
                keeps[index],
                kept[index],
            ),
        )


def forward(
    call: FusionCall, shapes: Shapes, tensors: tuple[Tensor, Tensor, Tensor], seed: int, offset: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`attention_out`, `softmax_max` and `softmax_sum`, in the layouts of the operator."""
    query, _, value = tensors
    wide = wide_dtype(query)
    width = value.shape[-1]
    if call.layout in ("BSH", "SBH"):
        width = width // shapes.kv_heads * shapes.heads
    out = torch.zeros((*query.shape[:-1], width), dtype=query.dtype, device=query.device)
    stats_shape = statistics_shape(call, shapes, query)
    maximum = torch.full(stats_shape, LOWEST, dtype=wide, device=query.device)
    total = torch.zeros(stats_shape, dtype=wide, device=query.device)
    for index, part in _parts(call, shapes, tensors, seed, offset):
        result, row_max, row_sum = _forward_one(call, part)
        span = shapes.query_spans[index]
        sequence(call.layout, out, shapes.heads, span, index).copy_(result)
        statistic(call, maximum, span, index).copy_(row_max)
        statistic(call, total, span, index).copy_(row_sum)
    return out, maximum, total


def _forward_one(call: FusionCall, part: Part) -> tuple[Tensor, Tensor, Tensor]:
    heads = call.head_num
    scores = scores_of(call, part.query, _grouped(part.key, heads), part.bias)
    if part.keep is not None:
        scores = scores.masked_fill(~part.keep, -torch.inf)
    row_max = scores.amax(-1, keepdim=True)
    sink = None if call.sink is None else call.sink.to(scores.dtype).view(-1, 1, 1)
    if sink is not None:
        row_max = torch.maximum(row_max, sink)
    row_max = row_max.masked_fill(row_max == -torch.inf, LOWEST)
    weights = torch.exp(scores - row_max)
    row_sum = weights.sum(-1, keepdim=True)
    if sink is not None:
        row_sum = row_sum + torch.exp(sink - row_max)
    # Where nothing is seen all weights are 0; a divisor of 1 keeps them so, gradients too.
    probabilities = weights / row_sum.masked_fill(row_sum == 0, 1.0)
    if part.kept is not None:
        probabilities = probabilities * part.kept / call.keep_prob
    return probabilities @ _grouped(part.value, heads), row_max, row_sum


def backward(
    call: FusionCall,
    shapes: Shapes,
    tensors: tuple[Tensor, Tensor, Tensor],
    dy: Tensor,
    saved: tuple[Tensor, Tensor, Tensor],
    seed: int,
    offset: int,
) -> Gradients:
    """The gradients, from `(query, key, value)`, `dy` and the saved `(max, sum, attention_out)`.

    The saved three are used as given and not recomputed: a ring of devices hands in those of the
    whole row together with one part of the keys.
    """
    layout, wide = call.layout, wide_dtype(dy)
    maximum, total = (stat.contiguous() for stat in saved[:2])
    grads = [torch.zeros_like(t, memory_format=torch.contiguous_format) for t in tensors]
    grad_pse = None if call.pse is None else torch.zeros_like(call.pse, dtype=wide)
    grad_sink = None if call.sink is None else torch.zeros_like(call.sink, dtype=wide)
    for index, part in _parts(call, shapes, tensors, seed, offset):
        q_span, k_span = shapes.query_spans[index], shapes.key_spans[index]
        given = [sequence(layout, t, shapes.heads, q_span, index).to(wide) for t in (dy, saved[2])]
        stats = [statistic(call, t, q_span, index)[..., :1].to(wide) for t in (maximum, total)]
        *parts, d_scores, d_sink = _backward_one(call, part, given, stats)
        places = [(shapes.heads, q_span), (shapes.kv_heads, k_span), (shapes.kv_heads, k_span)]
        for grad, new, (heads, span) in zip(grads, parts, places, strict=True):
            sequence(layout, grad, heads, span, index).copy_(new)
        if grad_pse is not None:
            row = grad_pse[index if grad_pse.shape[0] > 1 else 0]
            scale = call.scale if call.pse_type == 1 else 1.0
            row += (d_scores * scale).sum_to_size(row.shape)
        if grad_sink is not None:
            grad_sink += d_sink
    pse = _like(grad_pse, call.pse, dy.new_empty(0))
    sink = _like(grad_sink, call.sink, dy.new_empty(0, dtype=torch.float32))
    return Gradients(grads[0], grads[1], grads[2], pse, sink)


def _like(grad: Tensor | None, source: Tensor | None, missing: Tensor) -> Tensor:
    """`grad` in the dtype of what it belongs to, or `missing` where there is none."""
    return missing if grad is None or source is None else grad.to(source.dtype)


def _backward_one(
    call: FusionCall, part: Part, given: list[Tensor], stats: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    query, key, value, bias, keep, kept = part
    dy, out = given
    row_max, row_sum = stats
    groups = (key.shape[0], call.head_num // key.shape[0])
    wide_key, wide_value = _grouped(key, call.head_num), _grouped(value, call.head_num)
    probabilities = torch.exp(scores_of(call, query, wide_key, bias) - row_max) / row_sum
    if keep is not None:
        probabilities = torch.where(keep, probabilities, 0.0)
    d_probabilities = dy @ wide_value.transpose(-1, -2)
    used = probabilities
    if kept is not None:
        used = probabilities * kept / call.keep_prob
        d_probabilities = d_probabilities * kept / call.keep_prob
    delta = (dy * out).sum(-1, keepdim=True)
    d_scores = probabilities * (d_probabilities - delta)
    d_query = d_scores @ wide_key * call.scale
    d_key = (d_scores.transpose(-1, -2) @ query * call.scale).unflatten(0, groups).sum(1)
    d_value = (used.transpose(-1, -2) @ dy).unflatten(0, groups).sum(1)
    d_sink = delta.new_zeros(0)
    if call.sink is not None:
        sink = call.sink.to(delta.dtype).view(-1, 1, 1)
        d_sink = -(torch.exp(sink - row_max) / row_sum * delta).sum((1, 2))
    return d_query, d_key, d_value, d_scores, d_sink
