"""Attention over packed documents, called as FlashAttention's `flash_attn_varlen_func` is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor

from accel.attention.decode import segmented_attention_decode
from accel.attention.partial import attend
from accel.attention.state import AttentionState
from accel_kernels.masks import Mask, causal, documents, window
from accel_kernels.segmented_attention.call import Bias, alibi

Boundaries: TypeAlias = "Sequence[int] | Tensor"


def segmented_attention_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Boundaries,
    cu_seqlens_k: Boundaries,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
    *,
    dropout_seed: int | Tensor | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Exact attention of packed documents, each among its own keys.

    Names, order, defaults and meaning of the arguments are those of `flash_attn_varlen_func`
    (FlashAttention 2). It is `segmented_attention(mask=documents(...))` on tensors of another
    layout, so that everything said there holds.

    Args:
        query: `[total_q, H, D]`.
        key: `[total_k, H_kv, D]`; with `block_table` `[pages, page_size, H_kv, D]`.
        value: `[total_k, H_kv, D_v]`; with `block_table` `[pages, page_size, H_kv, D_v]`.
        cu_seqlens_q: `[N + 1]` ascending: document `n` holds the queries from entry `n` up to, not
            including, entry `n + 1`. Queries beyond the last are in none and get zeros.
        cu_seqlens_k: The same for keys.
        max_seqlen_q: The longest document's queries, or more. Not needed here; where the boundaries
            are on the CPU, one that is too small is an error.
        max_seqlen_k: The same for keys.
        dropout_p: Probability that a probability is dropped.
        softmax_scale: `1 / sqrt(D)` if None.
        causal: Query `i` of a document with `t` queries and `s` keys sees keys up to `i + s - t`.
        window_size: `(left, right)`: it sees keys from `i + s - t - left` to `i + s - t + right`;
            -1 is no limit. With `causal` the right one is 0.
        softcap: `softcap * tanh(score / softcap)` in place of each score; 0.0 is none.
        alibi_slopes: `[H]`, or `[N, H]` for slopes by document: `-slope * |i + s - t - j|` is added
            to each score. Slopes by document, or documents whose ends are not equally far apart
            among queries and keys, take one call for each document.
        deterministic: Accepted: the results always are.
        return_attn_probs: Return the log-sum-exp too. The probabilities, which FlashAttention
            returns for testing only, are not.
        block_table: `[N, most pages]` in int32: page numbers of each document's keys, of which it
            has `cu_seqlens_k[n + 1] - cu_seqlens_k[n]`. Inference only, one call a document.
        dropout_seed: As for `segmented_attention`.
        backend: As for `segmented_attention`.

    Returns:
        `out` `[total_q, H, D_v]` in the query's dtype; or `(out, lse)` with `lse` `[H, total_q]`,
        natural, -inf (FlashAttention: +inf) for a query that sees no key. Differentiable, `lse`
        too. With `causal` and slopes, FlashAttention's own `lse` is greater by
        `slope * (i + s - t)`, since its kernel adds `slope * j` there instead (`mask.h`).

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: Shapes, boundaries or numbers do not fit.
        accel.BackendError: The named backend, or every backend, cannot serve the call.
    """
    _check_packed(query, key, value, paged=block_table is not None)
    if isinstance(softcap, bool) or not isinstance(softcap, (int, float)):
        raise TypeError(f"softcap must be a number, not {type(softcap).__name__}")
    if softcap < 0:
        raise ValueError(f"softcap must be at least 0.0, which means none, not {softcap}")
    same = cu_seqlens_k is cu_seqlens_q
    bounds_q = _known("cu_seqlens_q", cu_seqlens_q, max_seqlen_q)
    bounds_k = _known("cu_seqlens_k", cu_seqlens_k, max_seqlen_k)
    options: dict[str, Any] = {
        "scale": softmax_scale,
        "softcap": softcap if softcap > 0 else None,
        "backend": backend,
    }
    within = _within(causal, window_size)
    if block_table is not None:
        if dropout_p != 0.0:
            raise ValueError("dropout_p and block_table exclude each other: a cache is inference")
        state = _paged(
            (query, key, value), (bounds_q, bounds_k), block_table, within, alibi_slopes, options
        )
    else:
        options |= {"dropout_p": dropout_p, "dropout_seed": dropout_seed}
        shift = None if alibi_slopes is None else _shift(alibi_slopes, bounds_q, bounds_k, same)
        if alibi_slopes is None or shift is not None:
            mask = documents(bounds_q, None if same else bounds_k, within=within)
            if alibi_slopes is not None:
                options["bias"] = alibi(alibi_slopes)._replace(shift=shift)
            state = attend(*map(_batched, (query, key, value)), mask=mask, **options)
        else:
            state = _by_document(
                (query, key, value), (bounds_q, bounds_k), within, alibi_slopes, options
            )
    out = state.out[0].transpose(0, 1)
    return (out, state.lse[0]) if return_attn_probs else out


def _within(is_causal: bool, window_size: tuple[int, int]) -> Mask | None:
    if not isinstance(is_causal, bool):
        raise TypeError(f"causal must be True or False, not {is_causal!r}")
    if not isinstance(window_size, (tuple, list)) or len(window_size) != 2:
        raise TypeError(f"window_size must be (left, right), not {window_size!r}")
    for number in window_size:
        if not isinstance(number, int) or isinstance(number, bool):
            raise TypeError(f"window_size must be two integers, not {window_size!r}")
        if number < -1:
            raise ValueError(f"window_size must be at least 0, or -1 for none, not {window_size}")
    left, right = (None if number == -1 else number for number in window_size)
    right = 0 if is_causal else right
    if left is None and right is None:
        return None
    return causal() if (left, right) == (None, 0) else window(left, right)


def _known(name: str, bounds: Any, longest: Any) -> tuple[int, ...] | Tensor:
    """Numbers where they are at hand, checked against the stated maximum; else the tensor."""
    if longest is not None and (not isinstance(longest, int) or isinstance(longest, bool)):
        raise TypeError(f"max_seqlen must be an integer or None, not {longest!r}")
    if isinstance(bounds, Tensor):
        if bounds.device.type != "cpu" or torch.compiler.is_compiling():
            return bounds
        if bounds.dim() != 1 or bounds.is_floating_point() or bounds.dtype == torch.bool:
            raise ValueError(
                f"{name} must be integers [N + 1], not {bounds.dtype} {tuple(bounds.shape)}"
            )
        bounds = bounds.tolist()
    numbers = tuple(bounds)
    if longest is not None:
        found = max((b - a for a, b in pairwise(numbers)), default=0)
        if found > longest:
            raise ValueError(
                f"a document of {name} is {found} long, and max_seqlen_{name[-1]} says {longest}"
            )
    return numbers


def _check_packed(query: object, key: object, value: object, *, paged: bool) -> None:
    form = "[pages, page_size, H_kv, D]" if paged else "[total, H, D]"
    for name, tensor, dims in (
        ("query", query, 3),
        ("key", key, 4 if paged else 3),
        ("value", value, 4 if paged else 3),
    ):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, not {type(tensor).__name__}")
        if tensor.dim() != dims:
            wanted = "[total_q, H, D]" if name == "query" else form
            raise ValueError(f"{name} must be packed as {wanted}, not {tuple(tensor.shape)}")


def _batched(packed: Tensor) -> Tensor:
    """`[total, H, D]` to `[1, H, total, D]`."""
    return packed.transpose(0, 1).unsqueeze(0)


def _numbers(bounds: tuple[int, ...] | Tensor) -> tuple[int, ...]:
    """Read, which waits for a device if they are there."""
    return tuple(bounds.tolist()) if isinstance(bounds, Tensor) else bounds


def _shift(
    slopes: Tensor,
    bounds_q: tuple[int, ...] | Tensor,
    bounds_k: tuple[int, ...] | Tensor,
    same: bool,
) -> int | None:
    """`c`, if in every document query `i` of the pack stands at key `i + c`; else None.

    In a document that ends at query `q1` and key `k1` it stands at `i + k1 - q1`.
    """
    if not isinstance(slopes, Tensor):
        raise TypeError(f"alibi_slopes must be a tensor, not {type(slopes).__name__}")
    if slopes.dim() == 2:
        return None
    if same:
        return 0
    ends_q, ends_k = _numbers(bounds_q), _numbers(bounds_k)
    shifts = {
        k1 - q1
        for (q0, q1), (k0, k1) in zip(pairwise(ends_q), pairwise(ends_k), strict=False)
        if q1 > q0 and k1 > k0
    }
    if len(shifts) > 1:
        return None
    return shifts.pop() if shifts else 0


def _spans(
    query: Tensor, bounds: tuple[tuple[int, ...] | Tensor, tuple[int, ...] | Tensor]
) -> list[tuple[slice, slice]]:
    """Each document's queries and keys, the boundaries checked as `documents` does."""
    ends_q, ends_k = map(_numbers, bounds)
    documents(ends_q, ends_k)
    if ends_q[-1] > query.shape[0]:
        raise ValueError(f"cu_seqlens_q ends at {ends_q[-1]}, beyond {query.shape[0]} queries")
    return [(slice(*q), slice(*k)) for q, k in zip(pairwise(ends_q), pairwise(ends_k), strict=True)]


def _slopes_of(slopes: Tensor, document: int, count: int) -> Tensor:
    if slopes.dim() == 2 and slopes.shape[0] != count:
        raise ValueError(
            f"alibi_slopes by document are [{count}, H] here, not {tuple(slopes.shape)}"
        )
    return slopes[document] if slopes.dim() == 2 else slopes


def _by_document(
    tensors: tuple[Tensor, Tensor, Tensor],
    bounds: tuple[tuple[int, ...] | Tensor, tuple[int, ...] | Tensor],
    within: Mask | None,
    slopes: Tensor,
    options: dict[str, Any],
) -> AttentionState:
    query, key, value = tensors
    spans = _spans(query, bounds)
    if spans[-1][1].stop > key.shape[0]:
        raise ValueError(f"cu_seqlens_k ends at {spans[-1][1].stop}, beyond {key.shape[0]} keys")
    parts = []
    for index, (rows, keys) in enumerate(spans):
        bias: Bias = alibi(_slopes_of(slopes, index, len(spans)))
        own = map(_batched, (query[rows], key[keys], value[keys]))
        parts.append(attend(*own, mask=within, bias=bias, **options))
    return _packed(query, value, spans, parts)


def _paged(
    tensors: tuple[Tensor, Tensor, Tensor],
    bounds: tuple[tuple[int, ...] | Tensor, tuple[int, ...] | Tensor],
    block_table: Tensor,
    within: Mask | None,
    slopes: Tensor | None,
    options: dict[str, Any],
) -> AttentionState:
    query, key, value = tensors
    spans = _spans(query, bounds)
    if block_table.dim() != 2 or block_table.shape[0] != len(spans):
        raise ValueError(
            f"block_table must be [{len(spans)}, pages], a row for each document, not "
            f"{tuple(block_table.shape)}"
        )
    parts = [
        segmented_attention_decode(
            _batched(query[rows]),
            key,
            value,
            cache_seqlens=[keys.stop - keys.start],
            block_table=block_table[index : index + 1],
            is_causal=False,
            mask=within,
            alibi_slopes=None if slopes is None else _slopes_of(slopes, index, len(spans)),
            return_lse=True,
            **options,
        )
        for index, (rows, keys) in enumerate(spans)
    ]
    return _packed(query, value, spans, parts)


def _packed(
    query: Tensor,
    value: Tensor,
    spans: list[tuple[slice, slice]],
    parts: list[AttentionState],
) -> AttentionState:
    """The documents' states in their places; queries in no document see nothing."""
    first, last = spans[0][0].start, spans[-1][0].stop
    heads, lse = query.shape[1], parts[0].lse

    def outside(rows: int) -> AttentionState:
        return AttentionState(
            query.new_zeros(1, heads, rows, value.shape[-1]),
            lse.new_full((1, heads, rows), -torch.inf),
        )

    whole = [outside(first), *parts, outside(query.shape[0] - last)]
    return AttentionState(
        torch.cat([part.out for part in whole], 2), torch.cat([part.lse for part in whole], 2)
    )
