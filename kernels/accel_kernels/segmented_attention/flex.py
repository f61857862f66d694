"""Compiled FlexAttention (`torch.nn.attention.flex_attention`, arXiv 2412.05496) on CUDA.

The mask becomes a table of blocks, built from row intervals in memory `O(T + (T / block)^2)`;
torch's own `create_block_mask` evaluates every pair. Cap and bias become its function of a score.

What its kernels would do by another rule, the spec refuses: dropout, a gradient of the bias (it is
summed by atomic additions, so that the same inputs give other bits each time), a segment size.
Its kernels multiply what a row must not see by zero, so that a NaN or an infinity in such a value
gives NaN there: never another number.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import types
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from accel_kernels.masks import Mask, Sizes, Visibility, row_bounds, visibility
from accel_kernels.segmented_attention.call import Bias, Dropout, sizes_of
from accel_kernels.segmented_attention.state import accumulation_dtype
from accel_kernels.segmented_attention.tiles import FULL, PARTIAL, tile_kinds

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
ScoreFunction = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]

_BLOCK = 128  # the least that every configuration of torch's kernels divides
_MOST_BLOCKS = 1024  # along a side: four tables of 4 MB each


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
    """Attention by torch's FlexAttention, compiled at the first call of its kind.

    Args:
        query: `[B, H, T, D]`, `D` at least 16.
        key: `[B, H_kv, S, D]`; `H` is a multiple of `H_kv`.
        value: `[B, H_kv, S, D_v]`, `D_v` at least 16.
        mask: Any.
        scale: Of the scores; `1/sqrt(D)` if None.
        dropout: None.
        softcap: Any.
        bias: Any whose tensor needs no gradient.
        segment_size: None: torch's kernels have blocks of their own.
        return_lse: Also return the log-sum-exp, differentiable.

    Returns:
        `out` `[B, H, T, D_v]` in the query's dtype, and `lse` `[B, H, T]` in float32 or None.
    """
    assert dropout is None, "the spec refuses dropout"  # noqa: S101
    assert segment_size is None, "the spec refuses segment_size"  # noqa: S101
    sizes = sizes_of(query, key)
    dtype = accumulation_dtype(query.dtype)
    return attend(
        _flex_attention(mask, bias, query, key, softcap, return_lse),
        query,
        key,
        value,
        score_mod=score_function(softcap, bias, sizes, dtype),
        block_mask=block_mask(mask, sizes, query.device),
        scale=1.0 / math.sqrt(query.shape[3]) if scale is None else scale,
        return_lse=return_lse,
    )


def attend(
    flex_attention: Callable[..., Any],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    score_mod: ScoreFunction | None,
    block_mask: Any,
    scale: float,
    return_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """Call FlexAttention, compiled or not, as this operation's conventions are.

    Args:
        flex_attention: torch's function, or what `torch.compile` makes of it.
        query: `[B, H, T, D]`.
        key: `[B, H_kv, S, D]`.
        value: `[B, H_kv, S, D_v]`.
        score_mod: What becomes of a scaled score; None: nothing.
        block_mask: Of `block_mask`; None: all is visible.
        scale: Of the scores.
        return_lse: Whether the log-sum-exp is wanted.

    Returns:
        `out` `[B, H, T, D_v]`, and `lse` `[B, H, T]`, a natural logarithm, or None.
    """
    from torch.nn.attention.flex_attention import AuxRequest

    grouped = False
    if query.shape[1] != key.shape[1]:  # decided here: torch takes no symbolic truth
        grouped = True
    out, aux = flex_attention(
        query,
        key,
        value,
        score_mod=score_mod,
        block_mask=block_mask,
        scale=scale,
        enable_gqa=grouped,
        return_aux=AuxRequest(lse=return_lse),
    )
    return out, aux.lse


def _flex_attention(
    mask: Mask | None,
    bias: Bias | None,
    query: Tensor,
    key: Tensor,
    softcap: float | None,
    return_lse: bool,
) -> Callable[..., Any]:
    """FlexAttention, compiled for calls of this kind; in traced code as it is."""
    if torch.compiler.is_compiling():
        from torch.nn.attention.flex_attention import flex_attention

        return flex_attention
    seen = visibility(mask, sizes_of(query, key), query.device)
    added = None if bias is None else (bias.kind, bias.tensor)
    return _compiled(
        (
            seen.causal,
            *(_form(tensor) for tensor in (seen.intervals, seen.dense)),
            *((None, None) if added is None else (added[0], _form(added[1]))),
            softcap,
            return_lse,
            query.dtype,
            torch.is_grad_enabled(),
        )
    )


def _form(tensor: Tensor | None) -> tuple[Any, ...] | None:
    """What of a tensor of mask or bias makes another function of it."""
    if tensor is None:
        return None
    return (tensor.dtype, tensor.shape[0], *(size > 1 for size in tensor.shape[1:]))


@functools.cache
def _compiled(kind: tuple[Any, ...]) -> Callable[..., Any]:
    """FlexAttention, to be compiled for calls of one kind in the shapes in which they come.

    With `fullgraph`, because without it torch would in silence compute all scores where it has
    compiled too often; and each kind by itself, so that many kinds are not too often.
    """
    from torch.nn.attention.flex_attention import flex_attention

    known = inspect.signature(torch.compile).parameters
    if "isolate_recompiles" in known:
        compiled = cast(Any, torch.compile)(flex_attention, fullgraph=True, isolate_recompiles=True)
        return cast("Callable[..., Any]", compiled)
    # Before torch 2.13 the limit is per code object: each kind gets one of its own.
    code = flex_attention.__code__.replace()
    own = types.FunctionType(
        code, flex_attention.__globals__, flex_attention.__name__, flex_attention.__defaults__,
        flex_attention.__closure__,
    )  # fmt: skip
    own.__kwdefaults__ = flex_attention.__kwdefaults__
    return torch.compile(own, fullgraph=True)


def score_function(
    softcap: float | None, bias: Bias | None, sizes: Sizes, dtype: torch.dtype
) -> ScoreFunction | None:
    """`softcap * tanh(score / softcap) + bias` as a function of one score and its place.

    Args:
        softcap: None: no cap.
        bias: None: no bias.
        sizes: Of the call.
        dtype: Of the scores: slopes and tables are read in it.

    Returns:
        What FlexAttention calls `score_mod`, or None if there is nothing to do.
    """
    if bias is None:
        return None if softcap is None else _capped(softcap)
    added = _bias_function(bias, sizes, dtype)
    if softcap is None:

        def biased(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return score + added(b, h, q, k)

        return biased
    cap = _capped(softcap)

    def capped_and_biased(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return cap(score, b, h, q, k) + added(b, h, q, k)

    return capped_and_biased


def _capped(softcap: float) -> ScoreFunction:
    def capped(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return capped


def _bias_function(bias: Bias, sizes: Sizes, dtype: torch.dtype) -> MaskFunction:
    """The bias of one score by its place."""
    if bias.kind == "dense":
        return _at_place(bias.tensor, sizes)
    table = bias.tensor.to(dtype)
    # A tensor, so that another difference of lengths does not compile anew.
    shift = torch.full((), bias.place(sizes), dtype=torch.int32, device=table.device)
    if bias.kind == "alibi":

        def alibi(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            slope = table[h] if table.dim() == 1 else table[b, h]
            return -slope * (k - q - shift).abs()

        return alibi
    reach = table.shape[1] // 2
    by_head = table.shape[0] > 1
    entries = table if by_head else table[0]

    def relative(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        entry = (k - q - shift).clamp(-reach, reach) + reach
        return entries[h, entry] if by_head else entries[entry]

    return relative


def _at_place(tensor: Tensor, sizes: Sizes) -> MaskFunction:
    """An element of `[B or 1, H or 1, T or 1, S or 1]` by its place."""
    if tensor.numel() == 1:
        tensor = tensor.expand(1, 1, 1, sizes.key_length)
    counts = tuple(size > 1 for size in tensor.shape)
    elements = tensor.squeeze()
    if not any(counts):  # a single key
        return lambda b, h, q, k: elements.unsqueeze(0)[k]

    def element(*place: Tensor) -> Tensor:
        index = tuple(at for at, there in zip(place, counts, strict=True) if there)
        return elements[index]

    return element


def mask_function(seen: Visibility, sizes: Sizes, device: torch.device) -> MaskFunction:
    """Whether a place is visible, as FlexAttention calls `mask_mod`.

    Args:
        seen: What is visible.
        sizes: Of the call.
        device: Of the call.
    """
    if seen.causal:
        shift = torch.full(
            (), sizes.key_length - sizes.query_length, dtype=torch.int32, device=device
        )
        return lambda b, h, q, k: k <= q + shift
    inside = None if seen.intervals is None else _inside(seen.intervals)
    dense = None if seen.dense is None else _at_place(seen.dense, sizes)
    if dense is None:
        assert inside is not None  # noqa: S101
        return inside
    if inside is None:
        return dense
    one, other = inside, dense
    return lambda b, h, q, k: one(b, h, q, k) & other(b, h, q, k)


def _inside(intervals: Tensor) -> MaskFunction:
    """Whether a key is in one of its row's intervals, `[m, 2, B or 1, T]`."""
    by_entry = intervals.shape[2] > 1
    bounds = [
        (low.contiguous(), high.contiguous()) if by_entry else (low[0], high[0])
        for low, high in intervals.unbind(0)
    ]

    def inside(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        row = (b, q) if by_entry else (q,)
        found = [(k >= low[row]) & (k < high[row]) for low, high in bounds]
        return cast(Tensor, functools.reduce(torch.Tensor.logical_or, found))

    return inside


_tables: dict[tuple[Any, ...], Any] = {}
_TABLES_SIZE = 8


def block_mask(mask: Mask | None, sizes: Sizes, device: torch.device) -> Any:
    """A mask as FlexAttention's `BlockMask`; remembered for masks without tensors.

    Args:
        mask: None: all is visible.
        sizes: Of the call.
        device: Of the call.

    Returns:
        The `BlockMask`, with the transposed tables that the backward reads, or None.
    """
    if mask is None:
        return None
    key = mask.key() if _makes_plain_tensors() else None
    place = (key, sizes, device)
    if key is not None and place in _tables:
        return _tables[place]
    # What inference mode makes could not be saved for a later backward.
    normal = contextlib.nullcontext() if key is None else torch.inference_mode(False)
    with normal, torch.no_grad():
        found = _block_mask(visibility(mask, sizes, device), sizes, device)
    if key is not None:
        if len(_tables) >= _TABLES_SIZE:
            _tables.clear()
        _tables[place] = found
    return found


def _makes_plain_tensors() -> bool:
    """Not while tracing, nor under fake tensors or torch.func, whose wrappers must not stay."""
    return (
        not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._are_functorch_transforms_active()
    )


def _block_mask(seen: Visibility, sizes: Sizes, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import BlockMask

    block = block_size(sizes)
    known = seen
    if seen.dense is None and seen.intervals is None:
        # Written out, since a mask without tensors would be looked at on the CPU.
        known = Visibility(row_bounds(seen, sizes, device), None)
    kinds = tile_kinds(known, sizes, block, block).unsqueeze(1)
    partial, full = kinds == PARTIAL, kinds == FULL
    return BlockMask(
        (sizes.query_length, sizes.key_length),
        *_listed(partial),
        *_listed(full),
        *_listed(partial.mT),
        *_listed(full.mT),
        BLOCK_SIZE=(block, block),
        mask_mod=mask_function(seen, sizes, device),
    )


def block_size(sizes: Sizes) -> int:
    """Queries and keys of a block: 128, or more where the tables would have too many."""
    block = _BLOCK
    while math.ceil(max(sizes.query_length, sizes.key_length) / block) > _MOST_BLOCKS:
        block *= 2
    return block


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """How many columns each row has, and which: those first, ascending; int32."""
    count = chosen.sum(-1, dtype=torch.int32)
    order = torch.argsort(chosen.to(torch.uint8), dim=-1, descending=True, stable=True)
    return count, order.to(torch.int32)
