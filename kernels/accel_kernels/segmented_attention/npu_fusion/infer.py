"""Decoding on Ascend: a few queries against a long cache, also a paged one, without gradients.

`npu_fused_infer_attention_score` splits the keys over the chip's cores by itself, shares those of
grouped heads and reads pages in place. Longer caches than it takes are cut, and the states merged.

It has not been run on a chip; see `npu_fusion`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from accel_kernels.segmented_attention.npu_fusion.operators import operator, triangle
from accel_kernels.segmented_attention.state import accumulation_dtype, merge

# op-plugin's page of the operator: KV S up to 262,144 with one query, D up to 512, N up to 256.
MOST_KEYS = 262_144
LARGEST_HEAD, MOST_HEADS, LARGEST_GROUP = 512, 256, 64
# The same page, on pages: block_size, and KV_N * D where they are [blocks, block_size, H].
LARGEST_BLOCK, LARGEST_ROW = 512, 65_535
BOTTOM_RIGHT = 3
ROWS_MAY_BE_EMPTY = 2


def npu_decode(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    lengths: Sequence[int] | Tensor | None = None,
    block_table: Tensor | None = None,
    heads_first: bool = False,
    scale: float | None = None,
    most_keys: int = MOST_KEYS,
) -> tuple[Tensor, Tensor]:
    """Attention of the last `T` positions of each entry over its cache, causal.

    Query `i` of entry `b` sees the keys up to and with `lengths[b] - T + i`.

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
        keys, values, pages = _segment(key, value, table, size, first, last)
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
    step = 16 if rows == 1 else 128
    if size % step or not step <= size <= LARGEST_BLOCK:
        raise NotImplementedError(
            f"npu_decode takes blocks of a multiple of {step} keys up to {LARGEST_BLOCK} for "
            f"{rows} queries, not {size}; use another backend"
        )
    if row > LARGEST_ROW:
        raise NotImplementedError(
            f"npu_decode takes up to {LARGEST_ROW} values of a key over all heads, not {row}; "
            "give pages with heads_first=True"
        )


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
    key: Tensor, value: Tensor, table: Tensor | None, size: int, first: int, last: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cache and table of the keys `first:last`."""
    if table is not None:
        if first % size:
            raise ValueError(f"most_keys must be a multiple of the block size {size}, not {first}")
        return key, value, table[:, first // size : -(-last // size)].contiguous()
    if (first, last) == (0, key.shape[2]):
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
    given = torch.tensor(counts, device=device)
    if table is not None:
        table = torch.where((given == 0).unsqueeze(1), 0, table)
        arguments = arguments | {"block_table": table}
    out, lse = operator("npu_fused_infer_attention_score")(
        query.contiguous(),
        key,
        value,
        actual_seq_lengths_kv=[max(count, 1) for count in counts],
        **arguments,
    )
    places = given.unsqueeze(1) - rows + torch.arange(rows, device=device)
    some = (places >= 0)[:, None, :]
    out = torch.where(some.unsqueeze(-1), out, 0.0)
    return out, torch.where(some, lse.squeeze(-1), -torch.inf)
