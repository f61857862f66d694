"""Merging the attention of several parts of the keys: `npu_ring_attention_update` and others.

Source: op-plugin's docstring of `npu_ring_attention_update` and page of `npu_attention_update`;
CANN's page of `aclnnRingAttentionUpdateV2` for the order of the statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from accel_kernels.vendor.npu.values import (
    require_choice,
    require_floats,
    require_shape,
    wide_dtype,
)


def npu_ring_attention_update(
    prev_attn_out: Tensor,
    prev_softmax_max: Tensor,
    prev_softmax_sum: Tensor,
    cur_attn_out: Tensor,
    cur_softmax_max: Tensor,
    cur_softmax_sum: Tensor,
    *,
    actual_seq_qlen: Tensor | None = None,
    input_layout: str = "SBH",
    input_softmax_layout: str = "",
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge the results of `npu_fusion_attention` over two parts of the keys.

    Args:
        prev_attn_out: `[S, B, H]` or `[T, N, D]`.
        prev_softmax_max: `[B, N, S, 8]` or `[T, N, 8]`, float32 (float64 for float64).
        prev_softmax_sum: Like the maximum.
        cur_attn_out: Like the previous.
        cur_softmax_max: Like the previous.
        cur_softmax_sum: Like the previous.
        actual_seq_qlen: Ends of the sequences from 0 on, int64; needed for TND.
        input_layout: "SBH" or "TND".
        input_softmax_layout: Under TND, "TND" where the statistics lie in the order of their
            shape, "" or "SBH" where each sequence lies as `[N, S, 8]` (as `npu_fusion_attention`
            returns them by default).

    Returns:
        The merged output, maximum and sum, like the previous ones. A row masked in both parts
        (both sums 0) stays 0.
    """
    name = "npu_ring_attention_update"
    require_choice(name, "input_layout", input_layout, ("SBH", "TND"))
    require_choice(name, "input_softmax_layout", input_softmax_layout, ("", "SBH", "TND"))
    require_floats(name, prev_attn_out=prev_attn_out, cur_attn_out=cur_attn_out)
    if cur_attn_out.dtype != prev_attn_out.dtype or prev_attn_out.ndim != 3:
        raise ValueError(
            f"{name}: prev_attn_out is {prev_attn_out.ndim}-d {prev_attn_out.dtype}, cur_attn_out "
            f"{cur_attn_out.dtype}; give one dtype and three dimensions"
        )
    require_shape(name, "cur_attn_out", cur_attn_out, tuple(prev_attn_out.shape))
    stats = (prev_softmax_max, prev_softmax_sum, cur_softmax_max, cur_softmax_sum)
    heads = _check_statistics(name, prev_attn_out, stats, input_layout)
    wide = wide_dtype(prev_attn_out)
    old_max, old_sum, new_max, new_sum = (tensor.to(wide) for tensor in stats)
    maximum = torch.maximum(old_max, new_max)
    old_part, new_part = old_sum * (old_max - maximum).exp(), new_sum * (new_max - maximum).exp()
    total = old_part + new_part
    weights = [(part / total).masked_fill(total == 0, 0.0) for part in (old_part, new_part)]
    if input_layout == "SBH":
        old_weight, new_weight = (w[..., :1].permute(2, 0, 1, 3) for w in weights)
        old, new = (t.to(wide).unflatten(-1, (heads, -1)) for t in (prev_attn_out, cur_attn_out))
        out = (old * old_weight + new * new_weight).flatten(-2)
    else:
        spans = _spans(name, actual_seq_qlen, prev_attn_out.shape[0])
        in_order = input_softmax_layout == "TND"
        old_weight, new_weight = (_in_token_order(w, spans, in_order) for w in weights)
        out = prev_attn_out.to(wide) * old_weight + cur_attn_out.to(wide) * new_weight
    stats_dtype = prev_softmax_max.dtype
    return out.to(prev_attn_out.dtype), maximum.to(stats_dtype), total.to(stats_dtype)


def _check_statistics(name: str, out: Tensor, stats: tuple[Tensor, ...], input_layout: str) -> int:
    """The number of heads, from statistics of a legal shape and dtype."""
    wanted = torch.float64 if out.dtype == torch.float64 else torch.float32
    dims = 4 if input_layout == "SBH" else 3
    first = stats[0]
    if first.ndim != dims or first.shape[-1] != 8:
        raise ValueError(
            f"{name}: prev_softmax_max has shape {list(first.shape)}; "
            f"{input_layout} takes {dims} dimensions, the last of 8"
        )
    if input_layout == "SBH":
        length, batch, hidden = out.shape
        heads = first.shape[1]
        shape: tuple[int, ...] = (batch, heads, length, 8)
        if not heads or hidden % heads:
            raise ValueError(f"{name}: {heads} heads do not divide the hidden size {hidden}")
    else:
        heads = out.shape[1]
        shape = (out.shape[0], heads, 8)
    labels = ("prev_softmax_max", "prev_softmax_sum", "cur_softmax_max", "cur_softmax_sum")
    for label, tensor in zip(labels, stats, strict=True):
        require_shape(name, label, tensor, shape)
        if tensor.dtype not in (torch.float32, wanted):
            raise TypeError(f"{name}: {label} is {tensor.dtype}; give {wanted}")
    return heads


def _spans(name: str, ends: Tensor | None, tokens: int) -> list[tuple[int, int]]:
    if ends is None:
        raise ValueError(f"{name}: give actual_seq_qlen for input_layout='TND'")
    if ends.dtype != torch.int64 or ends.ndim != 1:
        raise ValueError(f"{name}: actual_seq_qlen is {ends.ndim}-d {ends.dtype}; give 1-d int64")
    numbers = [int(end) for end in ends.tolist()]
    if numbers[:1] != [0]:
        # Called a prefix sum from 0, and given without the 0 in the operator's own test.
        numbers = [0, *numbers]
    spans = list(pairwise(numbers))
    if any(start > end for start, end in spans) or numbers[-1] != tokens:
        raise ValueError(
            f"{name}: actual_seq_qlen={ends.tolist()}; give ends that never fall, up to {tokens}"
        )
    return spans


def _in_token_order(weight: Tensor, spans: list[tuple[int, int]], in_order: bool) -> Tensor:
    """`[T, N, 1]` from `[T, N, 8]` in either order."""
    if in_order:
        return weight[..., :1]
    heads, repeats = weight.shape[1:]
    rows = weight.reshape(-1, repeats)
    parts = [
        rows[start * heads : end * heads].view(heads, end - start, repeats).transpose(0, 1)
        for start, end in spans
    ]
    return torch.cat(parts)[..., :1] if parts else weight[..., :1]


def npu_attention_update(
    lse: Sequence[Tensor], local_out: Sequence[Tensor], update_type: int
) -> tuple[Tensor, Tensor]:
    """Merge attention over parts of the keys by their log-sum-exp.

    Args:
        lse: 1 to 16 tensors `[rows]`, float32 (float64 for float64).
        local_out: As many tensors `[rows, D]`, D a multiple of 8 from 8 to 512.
        update_type: 1 to return the merged log-sum-exp too, 0 for an empty one.

    Returns:
        The merged output in the dtype of `local_out`, and the merged log-sum-exp. A row that no
        part attends to (every log-sum-exp -inf) is 0.
    """
    name = "npu_attention_update"
    require_choice(name, "update_type", update_type, (0, 1))
    if len(lse) != len(local_out) or not 1 <= len(lse) <= 16:
        raise ValueError(f"{name}: {len(lse)} lse and {len(local_out)} local_out; give 1 to 16")
    first = local_out[0]
    require_floats(name, local_out=first)
    rows, depth = first.shape if first.ndim == 2 else (-1, -1)
    if not 8 <= depth <= 512 or depth % 8:
        raise ValueError(f"{name}: local_out {list(first.shape)}; give [rows, 8, 16, .. 512]")
    for part, out in zip(lse, local_out, strict=True):
        require_shape(name, "lse", part, (rows,))
        require_shape(name, "local_out", out, (rows, depth))
        if out.dtype != first.dtype or part.dtype != lse[0].dtype:
            raise TypeError(f"{name}: give one dtype for lse and one for local_out")
    wide = wide_dtype(first)
    stacked = torch.stack([part.to(wide) for part in lse])
    merged = torch.logsumexp(stacked, 0)
    # Not exp(stacked - merged): in float32 a large merged value has lost the logarithm's digits.
    weights = torch.softmax(stacked, 0).masked_fill(merged == -torch.inf, 0.0)
    out = (torch.stack([out.to(wide) for out in local_out]) * weights.unsqueeze(-1)).sum(0)
    merged = merged.to(lse[0].dtype)
    return out.to(first.dtype), merged if update_type == 1 else merged.new_empty(0)
