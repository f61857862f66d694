"""Attention of a few queries to a long key/value cache, in one piece or in pages."""

from __future__ import annotations

import math
from typing import Any, Literal, overload

import torch
from torch import Tensor

from accel.attention.choice import kernel_of_call
from accel.attention.kv_cache import (
    Cache,
    Lengths,
    append,
    cache_of,
    check_reach,
    lengths_of,
    room_for,
    segment,
)
from accel.attention.partial import attend
from accel.attention.state import AttentionState, empty_state, merge
from accel_kernels.masks import Mask, RowIntervals, Rows, causal, key_lengths
from accel_kernels.segmented_attention.call import Bias, Call, alibi

DEFAULT_SEGMENT_SIZE = 8192
# Keys of all sequences together that are copied from pages at a time.
_MOST_KEYS = 32768
# Segments merged at a time: each merge rounds once, however many there are.
_STATES = 16
_MASKS = {"causal", "window", "sinks"}


@overload
def segmented_attention_decode(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    *,
    cache_seqlens: Lengths | None = None,
    block_table: Tensor | None = None,
    key: Tensor | None = None,
    value: Tensor | None = None,
    is_causal: bool = True,
    mask: Mask | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    segment_size: int | None = None,
    return_lse: Literal[False] = False,
    backend: str | None = None,
) -> Tensor: ...


@overload
def segmented_attention_decode(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    *,
    cache_seqlens: Lengths | None = None,
    block_table: Tensor | None = None,
    key: Tensor | None = None,
    value: Tensor | None = None,
    is_causal: bool = True,
    mask: Mask | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    segment_size: int | None = None,
    return_lse: Literal[True],
    backend: str | None = None,
) -> AttentionState: ...


def segmented_attention_decode(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    *,
    cache_seqlens: Lengths | None = None,
    block_table: Tensor | None = None,
    key: Tensor | None = None,
    value: Tensor | None = None,
    is_causal: bool = True,
    mask: Mask | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    segment_size: int | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | AttentionState:
    """Exact attention of the last `T` queries of each sequence to its cached keys.

    Names are those of `flash_attn_with_kvcache` where there is such an argument. The cache in one
    piece is laid out as everywhere here, a paged one as FlashAttention and vLLM lay it out. The
    keys of pages are copied together one segment at a time, and the segments' states merged, so
    that a long cache is never in memory twice; `npu_fusion` reads pages in place, of sizes that its
    operator takes. Inference only.

    Args:
        query: `[B, H, T, D]`: with `n` keys in a sequence, query `i` stands at key `i + n - T`; the
            last query sees the last key.
        key_cache: `[B, H_kv, S, D]`; with `block_table` `[pages, page_size, H_kv, D]`, of any page
            size.
        value_cache: The same with `D_v`.
        cache_seqlens: Keys that each sequence has in the cache, before those appended by this call:
            an int for all, or `[B]` in int32. None: `S` for each; not for pages. What lies beyond
            is not read.
        block_table: int32 `[B, most pages]`: where the keys of each sequence lie, in order. Entries
            beyond a sequence's last page are not looked at.
        key: `[B, H_kv, n, D]`, written to the cache in place, behind each sequence's keys, before
            attention, which sees them. `cache_seqlens` is left for the caller to advance by `n`.
        value: `[B, H_kv, n, D_v]`; given with `key`.
        is_causal: Query `i` sees no key beyond its own place.
        mask: `causal` or `window` (with sinks), and `&` or `|` of them, within each sequence.
        scale: Of the scores; `1 / sqrt(D)` if None.
        softcap: As for `segmented_attention`.
        alibi_slopes: `[H]` or `[B, H]`: `-slope * |i + n - T - j|` is added to each score.
            Sequences of different lengths then take one call each.
        segment_size: Most keys of each sequence that are copied at a time from pages (a page at
            least), 8192 if None; in one piece, as for `segmented_attention`.
        return_lse: Return the log-sum-exp too.
        backend: As for `segmented_attention`.

    Returns:
        `[B, H, T, D_v]` in the query's dtype, or an `AttentionState` with `lse` if `return_lse`.
        Lengths and table are read on the host, which waits for a device that holds them.

    Raises:
        TypeError: An argument is of the wrong type, or dtypes differ.
        ValueError: Shapes, devices, lengths or page numbers do not fit; keys would be written to a
            page that is named more than once; or a gradient is wanted. Nothing is written then.
        accel.BackendError: The named backend, or every backend, cannot serve the call.
    """
    cache = cache_of(key_cache, value_cache, block_table)
    tensors = {"query": query, "key_cache": key_cache, "value_cache": value_cache}
    new = _new_keys(key, value)
    if new is not None:
        tensors |= {"key": new[0], "value": new[1]}
        if cache_seqlens is None:
            raise ValueError("key and value are written behind cache_seqlens; give it too")
    _check(tensors, cache, segment_size)
    lengths = lengths_of(cache_seqlens, cache)
    check_reach(cache, lengths, 0 if new is None else new[0].shape[2])
    within = _within(mask, is_causal, query.shape[2])
    bias = None if alibi_slopes is None else _slopes(alibi_slopes, query)
    options: dict[str, Any] = {"scale": scale, "softcap": softcap, "backend": backend}
    with torch.no_grad():
        if new is not None:
            _kernel(query, cache, bias, options)  # finds what is wrong before anything is written
            append(cache, lengths, *new)
            lengths = [n + new[0].shape[2] for n in lengths]
        state = _state(query, cache, lengths, within, bias, segment_size, options)
    state = AttentionState(state.out.to(query.dtype), state.lse)
    return state if return_lse else state.out


def _state(
    query: Tensor,
    cache: Cache,
    lengths: list[int],
    within: Mask | None,
    bias: Bias | None,
    segment_size: int | None,
    options: dict[str, Any],
) -> AttentionState:
    if bias is not None and len(set(lengths)) > 1:
        parts = []
        for b, length in enumerate(lengths):
            own, its_bias = slice(b, b + 1), _only_bias(bias, slice(b, b + 1))
            parts.append(
                _state(
                    query[own], _only(cache, own), [length], within, its_bias, segment_size, options
                )
            )
        return AttentionState(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
    if cache.table is not None:
        found = _in_place(query, cache, lengths, within, bias, options)
        if found is not None:
            return found
        size = DEFAULT_SEGMENT_SIZE if segment_size is None else segment_size
        return _attend_pages(query, cache, lengths, within, bias, size, options)
    longest = max(lengths, default=0)
    if len(set(lengths)) > 1 and within is None:
        within = key_lengths(lengths)
    elif len(set(lengths)) > 1:
        within = RowIntervals(_bounds(query, lengths, within).to(query.device))
    return attend(
        query,
        cache.key[:, :, :longest],
        cache.value[:, :, :longest],
        mask=within,
        bias=bias,
        segment_size=segment_size,
        **options,
    )


def _in_place(
    query: Tensor,
    cache: Cache,
    lengths: list[int],
    within: Mask | None,
    bias: Bias | None,
    options: dict[str, Any],
) -> AttentionState | None:
    """By the chosen kernel, if it reads pages where they lie, and takes this call."""
    if not any(lengths):
        return None
    read = getattr(_kernel(query, cache, bias, options), "from_pages", None)
    if read is None:
        return None
    scale = 1 / math.sqrt(query.shape[3]) if options["scale"] is None else options["scale"]
    call = Call(within, scale, options["softcap"], bias)
    found = read(query, cache.key, cache.value, cache.table, lengths, call)
    return None if found is None else AttentionState(*found)


def _attend_pages(
    query: Tensor,
    cache: Cache,
    lengths: list[int],
    within: Mask | None,
    bias: Bias | None,
    segment_size: int,
    options: dict[str, Any],
) -> AttentionState:
    """Segment by segment, of those sequences alone that see a key in it."""
    page = cache.key.shape[1]
    longest = -(-max(lengths, default=0) // page) * page
    step = max(min(segment_size, longest) // page, 1) * page
    together = min(max(_MOST_KEYS // step, 1), len(lengths))
    room = room_for(cache, step * together)
    bounds = _bounds(query, lengths, within)
    states = [empty_state(query, cache.value.shape[3])]
    for start in range(0, max(lengths, default=0), step):
        stop = min(start + step, max(lengths))
        inside = (bounds - start).clamp(0, stop - start)
        visible = (inside[:, 1] - inside[:, 0]).clamp(min=0).sum(0)
        if bias is not None:
            bias = bias._replace(shift=lengths[0] - query.shape[2] - start)
        seeing = (visible > 0).any(-1).nonzero().flatten()
        if not len(seeing):
            continue
        states.append(empty_state(query, cache.value.shape[3]))
        for rows in seeing.split(together):
            whole = bool((visible[rows] == stop - start).all())
            at = rows.to(query.device)
            part = attend(
                query[at],
                *segment(cache, rows, start, stop, room),
                mask=None if whole else RowIntervals(inside[:, :, rows].to(query.device)),
                bias=None if bias is None else _only_bias(bias, at),
                **options,
            )
            states[-1].out[at], states[-1].lse[at] = part.out.to(states[-1].out.dtype), part.lse
        if len(states) == _STATES:
            states = [merge(states)]
    return merge(states)


def _bounds(query: Tensor, lengths: list[int], within: Mask | None) -> Tensor:
    """What each query sees, as `RowIntervals` takes it, on the CPU."""
    keys = torch.tensor(lengths, dtype=torch.int64).unsqueeze(1)
    rows = Rows(torch.arange(query.shape[2]).unsqueeze(0), query.shape[2], keys)
    mask = key_lengths(lengths) if within is None else within
    shape = (len(lengths), query.shape[2])
    found = [bound.expand(shape) for pair in mask.intervals(rows, len(lengths)) for bound in pair]
    bounds: Tensor = torch.stack(found).unflatten(0, (-1, 2)).to(torch.int32)
    return bounds


def _within(mask: object, is_causal: object, queries: int) -> Mask | None:
    if not isinstance(is_causal, bool):
        raise TypeError(f"is_causal must be True or False, not {is_causal!r}")
    if mask is None:
        return causal() if is_causal and queries != 1 else None
    if not isinstance(mask, Mask):
        raise TypeError(f"mask must be made of causal and window, not {type(mask).__name__}")
    if not mask.kinds() <= _MASKS:
        raise ValueError(
            f"within a cached sequence only causal and window masks apply, not {mask}; lengths go "
            "into cache_seqlens"
        )
    return mask & causal() if is_causal else mask


def _new_keys(key: Tensor | None, value: Tensor | None) -> tuple[Tensor, Tensor] | None:
    if key is None and value is None:
        return None
    if key is None or value is None:
        raise ValueError("key and value are appended together; give both or neither")
    return key, value


def _check(tensors: dict[str, Tensor], cache: Cache, segment_size: object) -> None:
    query = tensors["query"]
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, not {type(tensor).__name__}")
        if tensor.dtype != query.dtype or not tensor.dtype.is_floating_point:
            raise TypeError(
                f"query, cache and new keys must have one floating dtype, but query has "
                f"{query.dtype} and {name} {tensor.dtype}"
            )
        if tensor.device != query.device:
            raise ValueError(f"query is on {query.device} and {name} on {tensor.device}")
        if torch.is_grad_enabled() and tensor.requires_grad:
            raise ValueError(
                f"{name} requires a gradient, and attention to a cache is inference only; call it "
                "under torch.no_grad(), or segmented_attention"
            )
    if query.dim() != 4 or query.shape[0] != cache.batch:
        raise ValueError(
            f"query must be [B, H, T, D] with the {cache.batch} sequences of the cache, not "
            f"{tuple(query.shape)}"
        )
    if "key" in tensors:
        n = tensors["key"].shape[2] if tensors["key"].dim() == 4 else 0
        for name, width in (("key", cache.key.shape[3]), ("value", cache.value.shape[3])):
            wanted = (cache.batch, cache.heads, n, width)
            if tensors[name].shape != wanted:
                raise ValueError(
                    f"{name} must be [B, H_kv, n, D] = {list(wanted)} for this cache, not "
                    f"{tuple(tensors[name].shape)}"
                )
    if segment_size is not None and (not isinstance(segment_size, int) or segment_size < 1):
        raise ValueError(f"segment_size must be an integer of at least 1, not {segment_size!r}")


def _slopes(slopes: Tensor, query: Tensor) -> Bias:
    bias = alibi(slopes)
    if torch.is_grad_enabled() and slopes.requires_grad:
        raise ValueError("alibi_slopes require a gradient, and attention to a cache has none")
    if tuple(slopes.shape) not in ((query.shape[1],), tuple(query.shape[:2])):
        raise ValueError(
            f"alibi_slopes must be [H] or [B, H] = {list(query.shape[:2])}, not "
            f"{tuple(slopes.shape)}"
        )
    return bias


def _kernel(query: Tensor, cache: Cache, bias: Bias | None, options: dict[str, Any]) -> Any:
    """The kernel that serves these options."""
    key, value = cache.key, cache.value
    if cache.table is not None:
        key, value = (
            whole[:1].transpose(1, 2).expand(query.shape[0], -1, -1, -1) for whole in cache[:2]
        )
    chosen = kernel_of_call(
        query, key, value, None, False, options["scale"], 0.0, None, options["softcap"], bias,
        None, True, options["backend"],
    )  # fmt: skip
    return chosen.kernel


def _only_bias(bias: Bias, rows: slice | Tensor) -> Bias:
    """The bias of some sequences."""
    return bias if bias.tensor.dim() == 1 else bias._replace(tensor=bias.tensor[rows])


def _only(cache: Cache, rows: slice) -> Cache:
    """The cache of some sequences."""
    if cache.table is not None:
        return cache._replace(table=cache.table[rows])
    return Cache(cache.key[rows], cache.value[rows], None)
