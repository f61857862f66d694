"""Decoding on Ascend: a few queries against a long cache, also a paged one, without gradients.

`npu_fused_infer_attention_score` splits the keys over the chip's cores by itself, shares those of
grouped heads and reads pages in place. Longer caches than it takes are cut, and the states merged.
`inference` and `inference_from_pages` find the calls of `npu_fusion` that it may serve.

It has not been run on a chip; see `npu_fusion`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from accel_kernels.masks import Mask, Sizes, causal, visibility
from accel_kernels.segmented_attention.call import Call, sizes_of
from accel_kernels.segmented_attention.npu_fusion.operators import operator, triangle
from accel_kernels.segmented_attention.state import accumulation_dtype, merge

# op-plugin's page of the operator: KV S up to 262,144 with one query, D up to 512, N up to 256.
MOST_KEYS = 262_144
LARGEST_HEAD, MOST_HEADS, LARGEST_GROUP = 512, 256, 64
# The same page: keys with more than one query; B; D that is no multiple of 32 bytes.
MOST_KEYS_OF_QUERIES, MOST_ENTRIES, LARGEST_ODD_HEAD = 20_971_520, 65_536, 128
# The same page, wherever it limits the queries of decoding: 1 to 16. `inference` takes no more.
MOST_QUERIES = 16
# The same page, on pages: block_size, and KV_N * D where they are [blocks, block_size, H].
LARGEST_BLOCK, LARGEST_ROW = 512, 65_535
BOTTOM_RIGHT = 3
ROWS_MAY_BE_EMPTY = 2
# Masks that may come to a number of keys an entry.
_MASKS = frozenset({"causal", "key_lengths", "rowintervals"})


def inference(
    query: Tensor, key: Tensor, value: Tensor, call: Call
) -> tuple[Tensor, Tensor] | None:
    """Output and log-sum-exp of a call that `npu_decode` computes exactly; None for any other.

    Those are calls of up to 16 queries in float16 or bfloat16, that nothing records, with no mask,
    a causal one, or one that comes to a number of keys an entry, and nothing else to do to scores.
    If it hides any of the keys, these are looked at first, which waits for the device: in a call
    with one that is not finite the operator might not leave it out.

    Keys and values that are the first of a longer contiguous cache are read where they lie; what
    lies behind them the operator is told is not in use.

    Args:
        query: `[B, H, T, D]`.
        key: `[B, H_kv, S, D]`.
        value: `[B, H_kv, S, D_v]`.
        call: The other arguments.
    """
    if _recorded(query, key, value) or not _takes(query, key, value, call):
        return None
    sizes = sizes_of(query, key)
    found = _seen(call.mask, sizes)
    if found is None:
        return None
    counts, is_causal = found
    first = max(min(counts) - (sizes.query_length - 1 if is_causal else 0), 0)
    if first < sizes.key_length and not _finite(key[:, :, first:], value[:, :, first:]):
        return None
    most = MOST_KEYS if sizes.query_length == 1 else MOST_KEYS_OF_QUERIES
    keys, values = _whole(key, most), _whole(value, most)
    if keys.shape != values.shape:
        keys, values = key.contiguous(), value.contiguous()
    return npu_decode(
        query,
        keys,
        values,
        lengths=counts,
        is_causal=is_causal,
        scale=call.scale,
        most_keys=MOST_KEYS if call.segment_size is None else min(call.segment_size, MOST_KEYS),
    )


def inference_from_pages(
    query: Tensor, key: Tensor, value: Tensor, table: Tensor, lengths: list[int], call: Call
) -> tuple[Tensor, Tensor] | None:
    """The same for the last queries of sequences whose keys lie in pages, read in place.

    Of what a causal mask hides, it looks at the last keys of each sequence, as `inference` does.

    Args:
        query: `[B, H, T, D]`.
        key: `[pages, page_size, H_kv, D]`.
        value: `[pages, page_size, H_kv, D_v]`.
        table: `[B, most pages]`, int64 or int32, on any device; checked by the caller.
        lengths: Keys of each sequence.
        call: The other arguments; positions of its mask count within each sequence.
    """
    views = (key.transpose(1, 2), value.transpose(1, 2))
    if _recorded(query, key, value) or not _takes(query, *views, call):
        return None
    rows, (_, size, kv_heads, depth) = query.shape[2], key.shape
    if call.mask is not None and call.mask.key() != causal().key():
        return None
    if not (_takes_pages(size, rows, kv_heads * depth) and max(lengths) <= MOST_KEYS_OF_QUERIES):
        return None
    if not (key.is_contiguous() and value.is_contiguous()):
        return None
    is_causal = call.mask is not None and rows > 1
    if is_causal:
        last = torch.tensor(lengths).unsqueeze(1) + torch.arange(1 - rows, 0)
        at = last.clamp(min=0)
        # A sequence without keys may be without pages, and its first is then not one to look at.
        page = torch.where(last < 0, 0, table.to("cpu").gather(1, at // size))
        here = (page.to(key.device), (at % size).to(key.device))
        if not _finite(key[here], value[here]):
            return None
    return npu_decode(
        query,
        key,
        value,
        lengths=lengths,
        block_table=table.to(query.device, torch.int32),
        is_causal=is_causal,
        scale=call.scale,
        most_keys=MOST_KEYS // size * size,
    )


def npu_decode(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    lengths: Sequence[int] | Tensor | None = None,
    block_table: Tensor | None = None,
    heads_first: bool = False,
    is_causal: bool = True,
    scale: float | None = None,
    most_keys: int = MOST_KEYS,
) -> tuple[Tensor, Tensor]:
    """Attention of the last `T` positions of each entry over its cache.

    Query `i` of entry `b` sees the keys up to and with `lengths[b] - T + i`, or all `lengths[b]`.

    Args:
        query: `[B, H, T, D]`, float16 or bfloat16, on an NPU; D at most 512.
        key: `[B, H_kv, S, D]`; with `block_table` `[blocks, block_size, H_kv, D]` as FlashAttention
            and vLLM have it, with `H_kv * D` up to 65,535. Contiguous.
        value: As the key.
        lengths: Keys of each entry, `[B]`; reading them off a device waits for it. None: all. A
            paged cache needs them.
        block_table: int32 `[B, most blocks]`: the blocks of each entry, in order. Those past its
            length may be anything. `block_size` is a multiple of 16, with more than one query of
            128, and at most 512.
        heads_first: The paged cache is `[blocks, H_kv, block_size, D]`, which the vendor calls the
            faster one.
        is_causal: Whether a query sees no key behind its own place.
        scale: `1/sqrt(D)` if None.
        most_keys: That one call is given, with one query; a multiple of the block size.

    Returns:
        `out` `[B, H, T, D]` in the query's dtype, and `lse` `[B, H, T]` in float32; 0 and -inf for
        a query that sees no key.

    Raises:
        NotImplementedError: The operator does not take this dtype or these sizes.
        ValueError: Lengths, table or memory layout do not fit.
    """
    paged = block_table is not None
    kv_heads = key.shape[2 if paged and not heads_first else 1]
    _check(query, key, value, kv_heads)
    batch, heads, rows, depth = query.shape
    size = key.shape[1] if paged and not heads_first else key.shape[2]
    counts = _counts(size, lengths, block_table, batch)
    if 0 in query.shape or not any(counts):
        wide = accumulation_dtype(query.dtype)
        return torch.zeros_like(query), query.new_full(query.shape[:3], -torch.inf, dtype=wide)
    arguments: dict[str, Any] = {
        "num_heads": heads,
        "num_key_value_heads": kv_heads,
        "scale": 1.0 / math.sqrt(depth) if scale is None else scale,
        "input_layout": "BNSD",
        "softmax_lse_flag": True,
    }
    if paged:
        _check_pages(size, rows, kv_heads * depth if not heads_first else 0)
        arguments["block_size"] = size
        # Heads and head size as one dimension: the operator has no name for four in this order.
        key, value = (t if heads_first else t.flatten(2) for t in (key, value))
    if rows > 1:
        if is_causal:
            arguments |= {
                "atten_mask": triangle(query.device),
                "sparse_mode": BOTTOM_RIGHT,
                "inner_precise": ROWS_MAY_BE_EMPTY,
            }
        return _part(query, key, value, counts, block_table, arguments)
    return _in_segments(query, key, value, counts, block_table, size, arguments, most_keys)


def _in_segments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    counts: list[int],
    table: Tensor | None,
    size: int,
    arguments: dict[str, Any],
    most_keys: int,
) -> tuple[Tensor, Tensor]:
    """One query an entry, against so many keys at a time."""
    longest, state = max(counts), None
    for first in range(0, longest, most_keys):
        last = min(first + most_keys, longest)
        keys, values, pages = _segment(key, value, table, size, first, last, most_keys)
        inside = [min(max(count - first, 0), last - first) for count in counts]
        found = _part(query, keys, values, inside, pages, arguments)
        if state is None:
            state = found
        else:
            wide = state[1].dtype
            state = merge(state[0].to(wide), state[1], found[0].to(wide), found[1])
    assert state is not None  # noqa: S101
    return state[0].to(query.dtype), state[1]


def _check(query: Tensor, key: Tensor, value: Tensor, kv_heads: int) -> None:
    if query.dtype not in (torch.float16, torch.bfloat16, torch.float64):
        raise NotImplementedError(
            f"npu_decode takes float16 and bfloat16, not {query.dtype}; cast, or use npu_fusion"
        )
    heads, depth = query.shape[1], query.shape[3]
    if depth > LARGEST_HEAD or (query.shape[2] > 1 and depth % 16):
        raise NotImplementedError(
            f"npu_decode takes head sizes up to {LARGEST_HEAD}, with more than one query multiples "
            f"of 16, not {depth}; use npu_fusion"
        )
    if heads > MOST_HEADS or heads > LARGEST_GROUP * kv_heads:
        raise NotImplementedError(
            f"npu_decode takes up to {MOST_HEADS} heads, {LARGEST_GROUP} to one of the key, not "
            f"{heads} to {kv_heads}; use npu_fusion"
        )
    if key.shape != value.shape or key.shape[3] != depth:
        raise ValueError(
            f"key and value must agree, and with the query's head size, but are {tuple(key.shape)} "
            f"and {tuple(value.shape)} for a query {tuple(query.shape)}"
        )
    if not (key.is_contiguous() and value.is_contiguous()):
        raise ValueError("key and value must be contiguous: give the whole cache, with lengths")


def _check_pages(size: int, rows: int, row: int) -> None:
    step = _step(rows)
    if not _takes_pages(size, rows, 0):
        raise NotImplementedError(
            f"npu_decode takes blocks of a multiple of {step} keys up to {LARGEST_BLOCK} for "
            f"{rows} queries, not {size}; use another backend"
        )
    if row > LARGEST_ROW:
        raise NotImplementedError(
            f"npu_decode takes up to {LARGEST_ROW} values of a key over all heads, not {row}; "
            "give pages with heads_first=True"
        )


def _step(rows: int) -> int:
    return 16 if rows == 1 else 128


def _takes_pages(size: int, rows: int, row: int) -> bool:
    """Whether the operator takes pages of `size` keys of `row` values over all heads."""
    step = _step(rows)
    return size % step == 0 and step <= size <= LARGEST_BLOCK and row <= LARGEST_ROW


def _counts(
    size: int, lengths: Sequence[int] | Tensor | None, table: Tensor | None, batch: int
) -> list[int]:
    """Keys of each entry, of a cache or of blocks of so many."""
    most = size if table is None else table.shape[1] * size
    if lengths is None:
        if table is not None:
            raise ValueError("a paged cache needs lengths, one for each entry of the batch")
        return [most] * batch
    counts = [int(n) for n in (lengths.tolist() if isinstance(lengths, Tensor) else lengths)]
    if len(counts) != batch or any(not 0 <= count <= most for count in counts):
        raise ValueError(f"lengths must be {batch} numbers from 0 to {most}, not {counts[:8]}")
    return counts


def _segment(
    key: Tensor, value: Tensor, table: Tensor | None, size: int, first: int, last: int, most: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cache and table of the keys `first:last`, perhaps with more behind, up to `most`."""
    if table is not None:
        if first % size:
            raise ValueError(f"most_keys must be a multiple of the block size {size}, not {first}")
        return key, value, table[:, first // size : -(-last // size)].contiguous()
    if first == 0 and key.shape[2] <= most:
        return key, value, None
    # A view of several heads is not contiguous, which the operator asks for.
    keys = slice(first, last)
    return key[:, :, keys].contiguous(), value[:, :, keys].contiguous(), None


def _part(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    counts: list[int],
    table: Tensor | None,
    arguments: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """The state over one segment of the cache.

    What the operator gives for an entry without keys no page says: it is shown one key, and its
    result is not used.
    """
    device, rows = query.device, query.shape[2]
    least = rows if "atten_mask" in arguments else 1
    full = min(counts) >= least
    given = None if full and table is None else torch.tensor(counts, device=device)
    if table is not None and given is not None:
        table = torch.where((given == 0).unsqueeze(1), 0, table)
        arguments = arguments | {"block_table": table}
    out, lse = operator("npu_fused_infer_attention_score")(
        query.contiguous(),
        key,
        value,
        actual_seq_lengths_kv=[max(count, 1) for count in counts],
        **arguments,
    )
    if full or given is None:
        return out, lse.squeeze(-1)
    places = given.unsqueeze(1) - least + torch.arange(rows, device=device)
    some = (places >= 0)[:, None, :] & (given > 0)[:, None, None]
    out = torch.where(some.unsqueeze(-1), out, 0.0)
    return out, torch.where(some, lse.squeeze(-1), -torch.inf)


def _recorded(*tensors: Tensor) -> bool:
    """Whether something wants to know how the result came about, which the operator cannot say."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
    )


def _takes(query: Tensor, key: Tensor, value: Tensor, call: Call) -> bool:
    """Whether the operator takes a call, as far as shapes and dtype decide."""
    batch, heads, rows, depth = query.shape
    keys, kv_heads = key.shape[2], key.shape[1]
    if query.dtype not in (torch.float16, torch.bfloat16) or value.shape[3] != depth:
        return False
    if any(asked is not None for asked in (call.bias, call.softcap, call.dropout)):
        return False
    if not (0 < batch <= MOST_ENTRIES and 0 < rows <= MOST_QUERIES and keys > 0):
        return False
    if not (0 < heads <= MOST_HEADS and heads <= LARGEST_GROUP * kv_heads):
        return False
    if rows == 1:
        return depth <= (LARGEST_ODD_HEAD if depth % 16 else LARGEST_HEAD)
    whole = call.segment_size is None or call.segment_size >= keys
    return depth % 16 == 0 and depth <= LARGEST_HEAD and keys <= MOST_KEYS_OF_QUERIES and whole


def _seen(mask: Mask | None, sizes: Sizes) -> tuple[list[int], bool] | None:
    """What a mask comes to: keys of each entry, and whether they end at each query's place.

    None if it comes to something else.
    """
    batch, _, rows, keys = sizes
    if mask is None:
        return [keys] * batch, False
    if not mask.kinds() <= _MASKS:
        return None
    seen = visibility(mask, sizes, torch.device("cpu"))
    if seen.intervals is None:
        return [keys] * batch, seen.causal
    if seen.intervals.shape[0] != 1:
        return None
    low, high = seen.intervals[0]
    if bool(((low > 0) & (low < high)).any()):
        return None
    ends = torch.where(low < high, high, 0).clamp(0, keys).expand(batch, rows)
    counts = ends[:, -1:]
    steps = torch.arange(1 - rows, 1, dtype=counts.dtype)
    for is_causal, expected in ((False, counts), (True, (counts + steps).clamp(min=0))):
        if torch.equal(ends, expected.expand_as(ends)):
            return [int(count) for count in counts.flatten().tolist()], is_causal
    return None


def _finite(key: Tensor, value: Tensor) -> bool:
    # In float32: a sum of many float16 numbers may well be too large for float16.
    wide = accumulation_dtype(key.dtype)
    return bool(torch.isfinite(key.sum(dtype=wide) + value.sum(dtype=wide)))


def _whole(tensor: Tensor, most: int) -> Tensor:
    """The contiguous cache whose first keys these are, or a contiguous copy of them.

    Args:
        tensor: `[B, H_kv, S, D]`.
        most: Keys that the cache may have.
    """
    batch, heads, keys, depth = tensor.shape
    capacity = tensor.stride(1) // depth
    shape = (batch, heads, capacity, depth)
    laid_out = tensor.stride() == (heads * capacity * depth, capacity * depth, depth, 1)
    end = (tensor.storage_offset() + math.prod(shape)) * tensor.element_size()
    if laid_out and keys <= capacity <= most and end <= tensor.untyped_storage().nbytes():
        return tensor.as_strided(shape, tensor.stride())
    return tensor.contiguous()
