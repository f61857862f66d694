"""`npu_fused_infer_attention_score` and its second form: attention over a key/value cache.

`attention_out = softmax(scale * query key^T, masked) value`, `scale` 1 by default. With one query
to an entry it is the incremental operator, else the one for prompts; they differ in what they take.
Layouts BNSD, BSND, BSH and BNSD_BSND. A paged cache is `[blocks, KV_N, block_size, D]` or
`[blocks, block_size, H]`, and `block_table` names the blocks of each entry in order.

The log-sum-exp of a row of which everything is masked is NaN here, as no page states it, and so is
its output unless `inner_precise` asks for such rows to be corrected; then it is 0.

Source: op-plugin's pages of both operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from accel_kernels.vendor.npu.fusion_masks import SIDE
from accel_kernels.vendor.npu.values import refuse, require_choice, require_shape, wide_dtype

UNLIMITED = 2147483647
LAYOUTS = ("BNSD", "BSND", "BSH", "BNSD_BSND")
KEYS_OF_ONE_QUERY = 262_144
CORRECTS_ROWS = 2
"""The bit of `inner_precise` that corrects rows of which everything is masked."""


@dataclass(frozen=True)
class InferenceCall:
    """What a call says besides its tensors; the names of the first form."""

    operator: str
    num_heads: int
    num_key_value_heads: int
    scale: float
    pre_tokens: int
    next_tokens: int
    input_layout: str
    sparse_mode: int
    inner_precise: int
    block_size: int
    atten_mask: Tensor | None
    block_table: Tensor | None
    lengths: Sequence[int] | None
    key_lengths: Sequence[int] | None

    @property
    def kv_heads(self) -> int:
        """Heads of key and value."""
        return self.num_key_value_heads or self.num_heads


def _refuse_given(operator: str, **arguments: object) -> None:
    for name, given in arguments.items():
        what = tuple(given.shape) if isinstance(given, Tensor) else given
        if what is not None and what != 0:
            refuse(operator, name, what, "this reference covers plain float16 and bfloat16 caches")


def _check(call: InferenceCall, query: Tensor, key: Tensor, value: Tensor) -> None:
    operator = call.operator
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        # Not float32, which the operator does not take; float64 for tests of formulas.
        if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float64):
            raise TypeError(f"{operator}: {name} is {tensor.dtype}; give float16 or bfloat16")
        if tensor.dtype != query.dtype:
            raise TypeError(f"{operator}: {name} is {tensor.dtype}, query {query.dtype}; give one")
        if not tensor.is_contiguous():
            raise ValueError(f"{operator}: {name} is not contiguous; give {name}.contiguous()")
    require_choice(operator, "input_layout", call.input_layout, LAYOUTS)
    require_choice(operator, "sparse_mode", call.sparse_mode, (0, 1, 2, 3, 4))
    if value.shape != key.shape:
        raise ValueError(f"{operator}: key {list(key.shape)} and value {list(value.shape)} differ")
    heads, kv_heads = call.num_heads, call.kv_heads
    if not 1 <= heads <= 256 or heads % kv_heads or heads // kv_heads > 64:
        raise ValueError(
            f"{operator}: num_heads={heads}, num_key_value_heads={kv_heads}; give up to 256, a "
            f"multiple of at most 64 times"
        )


def _queries(call: InferenceCall, query: Tensor) -> Tensor:
    """`[B, N, S, D]` of a layout."""
    dims = 3 if call.input_layout == "BSH" else 4
    if query.ndim != dims:
        raise ValueError(
            f"{call.operator}: query has {query.ndim} dimensions; {call.input_layout} has {dims}"
        )
    if call.input_layout == "BSH":
        if query.shape[-1] % call.num_heads:
            raise ValueError(
                f"{call.operator}: num_heads={call.num_heads} does not divide {query.shape[-1]}"
            )
        query = query.unflatten(-1, (call.num_heads, -1))
    rows = query if call.input_layout.startswith("BNSD") else query.transpose(1, 2)
    batch, heads, length, depth = rows.shape
    if heads != call.num_heads or batch > 65536 or not 1 <= depth <= 512:
        raise ValueError(
            f"{call.operator}: query {list(query.shape)} in {call.input_layout}, num_heads="
            f"{call.num_heads}; give one number of heads, head sizes to 512 and batches to 65536"
        )
    if length > 1 and depth % 16:
        raise ValueError(
            f"{call.operator}: head size {depth}; with more than one query give a multiple of 16"
        )
    allowed = (0, 1, 2, 3) if length > 1 else (0, 1)
    require_choice(call.operator, "inner_precise", call.inner_precise, allowed)
    if call.input_layout == "BNSD_BSND" and length == 1:
        raise ValueError(f"{call.operator}: BNSD_BSND needs more than one query")
    return rows


def _lengths(
    call: InferenceCall, name: str, given: Sequence[int] | None, batch: int, most: int
) -> list[int]:
    """A length for each entry of the batch."""
    if given is None:
        return [most] * batch
    numbers = [int(number) for number in given]
    if len(numbers) != 1 and len(numbers) < batch:
        raise ValueError(
            f"{call.operator}: {name} has {len(numbers)} numbers; give 1, or {batch} or more"
        )
    numbers = numbers * batch if len(numbers) == 1 else numbers[:batch]
    if any(not 0 <= number <= most for number in numbers):
        raise ValueError(f"{call.operator}: {name}={numbers}; give 0 to {most}")
    return numbers


def _plain_cache(call: InferenceCall, cache: Tensor, batch: int, length: int) -> list[Tensor]:
    """Per entry `[KV_N, S, D]` of a cache in the layout of the query."""
    if call.input_layout == "BSH":
        cache = cache.unflatten(-1, (call.kv_heads, -1))
    whole = cache if call.input_layout.startswith("BNSD") else cache.transpose(1, 2)
    if whole.ndim != 4 or whole.shape[:2] != (batch, call.kv_heads):
        raise ValueError(
            f"{call.operator}: key {list(cache.shape)} in {call.input_layout}; give {batch} "
            f"entries and {call.kv_heads} heads"
        )
    if length == 1 and whole.shape[2] > KEYS_OF_ONE_QUERY:
        raise ValueError(
            f"{call.operator}: {whole.shape[2]} keys for one query; give up to {KEYS_OF_ONE_QUERY}"
        )
    return list(whole.unbind(0))


def _paged_cache(
    call: InferenceCall, cache: Tensor, table: Tensor, numbers: list[int]
) -> list[Tensor]:
    """Per entry `[KV_N, used blocks * block_size, D]`."""
    if cache.ndim == 3:
        cache = cache.unflatten(-1, (call.kv_heads, -1)).transpose(1, 2)
    elif not call.input_layout.startswith("BNSD"):
        raise ValueError(
            f"{call.operator}: a cache of 4 dimensions needs BNSD, not {call.input_layout}"
        )
    if cache.shape[1:3] != (call.kv_heads, call.block_size):
        raise ValueError(
            f"{call.operator}: block_size={call.block_size}, num_key_value_heads={call.kv_heads}; "
            f"the cache is {list(cache.shape)}"
        )
    found = []
    for row, number in zip(table.tolist(), numbers, strict=True):
        used = row[: -(-number // call.block_size)]
        if any(not 0 <= block < cache.shape[0] for block in used):
            raise ValueError(f"{call.operator}: block_table {used}; give 0 to {cache.shape[0] - 1}")
        found.append(cache[used].transpose(0, 1).flatten(1, 2))
    return found


def _check_pages(call: InferenceCall, table: Tensor, batch: int, length: int) -> list[int]:
    """The lengths of the entries of a paged cache."""
    if call.key_lengths is None:
        raise ValueError(f"{call.operator}: block_table needs the lengths of the keys")
    step, most = (128, 512) if length > 1 else (16, 512)
    if call.block_size % step or not step <= call.block_size <= most:
        raise ValueError(
            f"{call.operator}: block_size={call.block_size}; give a multiple of {step} to {most}"
        )
    if table.dtype != torch.int32 or table.ndim != 2 or table.shape[0] != batch:
        raise ValueError(
            f"{call.operator}: block_table is {table.dtype} {list(table.shape)}; give int32 "
            f"[{batch}, blocks]"
        )
    if call.atten_mask is not None and call.sparse_mode not in (2, 3, 4):
        refuse(call.operator, "atten_mask", tuple(call.atten_mask.shape), "with a paged cache")
    most = table.shape[1] * call.block_size
    return _lengths(call, "actual_seq_lengths_kv", call.key_lengths, batch, most)


def _kept(
    call: InferenceCall, index: int, rows: int, columns: int, device: torch.device
) -> Tensor | None:
    """What entry `index` sees, `[rows, columns]`, or None for all; columns are its own length."""
    mask, mode = call.atten_mask, call.sparse_mode if rows > 1 else 0
    if mask is None:
        if mode:
            raise ValueError(f"{call.operator}: sparse_mode {mode} needs atten_mask")
        return None
    if mask.dtype not in (torch.bool, torch.int8, torch.uint8):
        raise TypeError(f"{call.operator}: atten_mask is {mask.dtype}; give bool, int8 or uint8")
    masked = mask.bool()
    if mode in (0, 1):
        if mode == 0 and rows > 1 and (call.pre_tokens, call.next_tokens) != (UNLIMITED,) * 2:
            why = "give them to sparse_mode 4, or in the mask"
            refuse(call.operator, "pre_tokens", (call.pre_tokens, call.next_tokens), why)
        while masked.ndim > 3 or (rows == 1 and masked.ndim > 2):
            masked = masked.squeeze(1)
        if rows == 1:
            masked = masked.unsqueeze(1)
        own = masked if masked.ndim == 2 else masked[index if masked.shape[0] > 1 else 0]
        if own.shape[0] < rows or own.shape[1] < columns:
            raise ValueError(f"{call.operator}: atten_mask {list(mask.shape)} is too small")
        return ~own[:rows, :columns]
    require_shape(
        call.operator, f"atten_mask of sparse_mode {mode}", mask,
        (SIDE, SIDE), (1, SIDE, SIDE), (1, 1, SIDE, SIDE),
    )  # fmt: skip
    if not torch.equal(masked.reshape(SIDE, SIDE), _triangle(device)):
        raise ValueError(f"{call.operator}: atten_mask: 1 above the diagonal and 0 elsewhere")
    shift = 0 if mode == 2 else columns - rows
    before, after = (call.pre_tokens, call.next_tokens) if mode == 4 else (UNLIMITED, 0)
    distance = torch.arange(columns, device=device) - torch.arange(rows, device=device)[:, None]
    return (distance >= shift - before) & (distance <= shift + after)


def _triangle(device: torch.device) -> Tensor:
    return torch.ones(SIDE, SIDE, dtype=torch.bool, device=device).triu(1)


def _run(
    call: InferenceCall, query: Tensor, key: Tensor, value: Tensor, with_lse: bool
) -> tuple[Tensor, Tensor]:
    _check(call, query, key, value)
    rows = _queries(call, query)
    batch, heads, length, _ = rows.shape
    if length > 1 and call.lengths is not None:
        valid = _lengths(call, "actual_seq_lengths", call.lengths, batch, length)
        if min(valid, default=length) < length:
            why = "no page says what the rows beyond it hold"
            refuse(call.operator, "actual_seq_lengths", valid, why)
    if call.block_table is not None:
        numbers = _check_pages(call, call.block_table, batch, length)
        keys, values = (
            _paged_cache(call, cache, call.block_table, numbers) for cache in (key, value)
        )
    else:
        keys, values = (_plain_cache(call, cache, batch, length) for cache in (key, value))
        most = keys[0].shape[1] if keys else 0
        numbers = _lengths(call, "actual_seq_lengths_kv", call.key_lengths, batch, most)
    wide = wide_dtype(query)
    out = torch.empty_like(rows, memory_format=torch.contiguous_format)
    lse = torch.empty((batch, heads, length, 1), dtype=wide, device=query.device)
    for index, number in enumerate(numbers):
        if not number:
            why = "no page says what an entry without keys gives"
            refuse(call.operator, "actual_seq_lengths_kv", numbers, why)
        part = (keys[index][:, :number].to(wide), values[index][:, :number].to(wide))
        out[index], lse[index] = _one(call, rows[index].to(wide), *part, index)
    if not with_lse:
        lse = lse.new_zeros(1)
    return _laid(call, out), lse


def _one(
    call: InferenceCall, query: Tensor, key: Tensor, value: Tensor, index: int
) -> tuple[Tensor, Tensor]:
    """One entry: `[N, S, D]` and `[N, S, 1]`."""
    groups = call.num_heads // call.kv_heads
    key, value = (tensor.repeat_interleave(groups, 0) for tensor in (key, value))
    scores = query @ key.transpose(-1, -2) * call.scale
    kept = _kept(call, index, query.shape[1], key.shape[1], query.device)
    if kept is None:
        return torch.softmax(scores, -1) @ value, torch.logsumexp(scores, -1, keepdim=True)
    scores = scores.masked_fill(~kept, -torch.inf)
    some = kept.any(-1).unsqueeze(-1)
    # A row of which all is masked is NaN by the formula itself.
    out = torch.softmax(scores, -1) @ value
    if call.inner_precise & CORRECTS_ROWS:
        out = torch.where(some, out, 0.0)
    lse = torch.logsumexp(scores, -1, keepdim=True)
    return out, torch.where(some, lse, torch.nan)


def _laid(call: InferenceCall, out: Tensor) -> Tensor:
    if call.input_layout == "BNSD":
        return out
    out = out.transpose(1, 2).contiguous()
    return out.flatten(2) if call.input_layout == "BSH" else out


def npu_fused_infer_attention_score(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    pse_shift: Tensor | None = None,
    atten_mask: Tensor | None = None,
    actual_seq_lengths: Sequence[int] | None = None,
    actual_seq_lengths_kv: Sequence[int] | None = None,
    dequant_scale1: Tensor | None = None,
    quant_scale1: Tensor | None = None,
    dequant_scale2: Tensor | None = None,
    quant_scale2: Tensor | None = None,
    quant_offset2: Tensor | None = None,
    antiquant_scale: Tensor | None = None,
    antiquant_offset: Tensor | None = None,
    key_antiquant_scale: Tensor | None = None,
    key_antiquant_offset: Tensor | None = None,
    value_antiquant_scale: Tensor | None = None,
    value_antiquant_offset: Tensor | None = None,
    block_table: Tensor | None = None,
    query_padding_size: Tensor | None = None,
    kv_padding_size: Tensor | None = None,
    key_shared_prefix: Tensor | None = None,
    value_shared_prefix: Tensor | None = None,
    actual_shared_prefix_len: Sequence[int] | None = None,
    query_rope: Tensor | None = None,
    key_rope: Tensor | None = None,
    key_rope_antiquant_scale: Tensor | None = None,
    num_heads: int = 1,
    scale: float = 1.0,
    pre_tokens: int = UNLIMITED,
    next_tokens: int = UNLIMITED,
    input_layout: str = "BSH",
    num_key_value_heads: int = 0,
    sparse_mode: int = 0,
    inner_precise: int = 0,
    block_size: int = 0,
    antiquant_mode: int = 0,
    key_antiquant_mode: int = 0,
    value_antiquant_mode: int = 0,
    softmax_lse_flag: bool = False,
) -> tuple[Tensor, Tensor]:
    """Attention over a cache of keys and values; see the module for the formula.

    Args:
        query: In `input_layout`, contiguous, float16 or bfloat16.
        key: In the same layout, or a paged cache.
        value: Of the key's shape.
        pse_shift: Not available.
        atten_mask: bool, int8 or uint8, 1 where left out. With one query `[B, KV_S]` with 1 or 2
            further dimensions of 1; else by `sparse_mode`.
        actual_seq_lengths: Queries an entry; only all of them.
        actual_seq_lengths_kv: Keys an entry, at least 1; one number for all, or one each.
        dequant_scale1: Not available, like all that follows to do with quantization.
        quant_scale1: Not available.
        dequant_scale2: Not available.
        quant_scale2: Not available.
        quant_offset2: Not available.
        antiquant_scale: Not available.
        antiquant_offset: Not available.
        key_antiquant_scale: Not available.
        key_antiquant_offset: Not available.
        value_antiquant_scale: Not available.
        value_antiquant_offset: Not available.
        block_table: int32 `[B, blocks]`: the cache is paged.
        query_padding_size: Not available.
        kv_padding_size: Not available.
        key_shared_prefix: Not available.
        value_shared_prefix: Not available.
        actual_shared_prefix_len: Not available.
        query_rope: Not available.
        key_rope: Not available.
        key_rope_antiquant_scale: Not available.
        num_heads: Of the query.
        scale: Of the scores; 1, not 1/sqrt(D).
        pre_tokens: Keys kept before a query; mode 4, from the bottom right.
        next_tokens: Keys kept after it, likewise.
        input_layout: BSH, BSND, BNSD or BNSD_BSND.
        num_key_value_heads: 0 for as many as `num_heads`.
        sparse_mode: Ignored with one query. 0 and 1 the mask as given, 2 causal from the top left,
            3 from the bottom right of an entry's own lengths, 4 band.
        inner_precise: 0 or 1; with more queries also 2 and 3, which correct rows of which
            everything is masked.
        block_size: Keys of a block: a multiple of 128 to 512, with one query of 16.
        antiquant_mode: Only 0.
        key_antiquant_mode: Only 0.
        value_antiquant_mode: Only 0.
        softmax_lse_flag: Whether the second result is wanted.

    Returns:
        The output in the query's layout (BSND for BNSD_BSND), and the log-sum-exp
        `[B, N, Q_S, 1]` in float32 (float64 for float64), or one 0.
    """
    name = "npu_fused_infer_attention_score"
    _refuse_given(
        name, pse_shift=pse_shift, dequant_scale1=dequant_scale1, quant_scale1=quant_scale1,
        dequant_scale2=dequant_scale2, quant_scale2=quant_scale2, quant_offset2=quant_offset2,
        antiquant_scale=antiquant_scale, antiquant_offset=antiquant_offset,
        key_antiquant_scale=key_antiquant_scale, key_antiquant_offset=key_antiquant_offset,
        value_antiquant_scale=value_antiquant_scale, value_antiquant_offset=value_antiquant_offset,
        query_padding_size=query_padding_size, kv_padding_size=kv_padding_size,
        key_shared_prefix=key_shared_prefix, value_shared_prefix=value_shared_prefix,
        actual_shared_prefix_len=actual_shared_prefix_len, query_rope=query_rope,
        key_rope=key_rope, key_rope_antiquant_scale=key_rope_antiquant_scale,
        antiquant_mode=antiquant_mode, key_antiquant_mode=key_antiquant_mode,
        value_antiquant_mode=value_antiquant_mode,
    )  # fmt: skip
    call = InferenceCall(
        name, num_heads, num_key_value_heads, scale, pre_tokens, next_tokens, input_layout,
        sparse_mode, inner_precise, block_size, atten_mask, block_table, actual_seq_lengths,
        actual_seq_lengths_kv,
    )  # fmt: skip
    return _run(call, query, key, value, softmax_lse_flag)


def npu_fused_infer_attention_score_v2(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    query_rope: Tensor | None = None,
    key_rope: Tensor | None = None,
    pse_shift: Tensor | None = None,
    atten_mask: Tensor | None = None,
    actual_seq_qlen: Sequence[int] | None = None,
    actual_seq_kvlen: Sequence[int] | None = None,
    block_table: Tensor | None = None,
    dequant_scale_query: Tensor | None = None,
    dequant_scale_key: Tensor | None = None,
    dequant_offset_key: Tensor | None = None,
    dequant_scale_value: Tensor | None = None,
    dequant_offset_value: Tensor | None = None,
    dequant_scale_key_rope: Tensor | None = None,
    quant_scale_out: Tensor | None = None,
    quant_offset_out: Tensor | None = None,
    quant_scale_p: Tensor | None = None,
    learnable_sink: Tensor | None = None,
    num_query_heads: int = 1,
    num_key_value_heads: int = 0,
    softmax_scale: float = 1.0,
    pre_tokens: int = UNLIMITED,
    next_tokens: int = UNLIMITED,
    input_layout: str = "BSH",
    sparse_mode: int = 0,
    block_size: int = 0,
    query_quant_mode: int = 0,
    key_quant_mode: int = 0,
    value_quant_mode: int = 0,
    inner_precise: int = 0,
    return_softmax_lse: bool = False,
    query_dtype: int | None = None,
    key_dtype: int | None = None,
    value_dtype: int | None = None,
    query_rope_dtype: int | None = None,
    key_rope_dtype: int | None = None,
    key_shared_prefix_dtype: int | None = None,
    value_shared_prefix_dtype: int | None = None,
    dequant_scale_query_dtype: int | None = None,
    dequant_scale_key_dtype: int | None = None,
    dequant_scale_value_dtype: int | None = None,
    dequant_scale_key_rope_dtype: int | None = None,
    out_dtype: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`npu_fused_infer_attention_score` with other names of the arguments.

    Available are the tensors, `atten_mask`, `actual_seq_qlen`, `actual_seq_kvlen`, `block_table`,
    `num_query_heads`, `num_key_value_heads`, `softmax_scale`, the two token limits, `input_layout`,
    `sparse_mode`, `block_size`, `inner_precise` and `return_softmax_lse`; the first form says what
    they mean.
    """
    name = "npu_fused_infer_attention_score_v2"
    _refuse_given(
        name, query_rope=query_rope, key_rope=key_rope, pse_shift=pse_shift,
        dequant_scale_query=dequant_scale_query, dequant_scale_key=dequant_scale_key,
        dequant_offset_key=dequant_offset_key, dequant_scale_value=dequant_scale_value,
        dequant_offset_value=dequant_offset_value, dequant_scale_key_rope=dequant_scale_key_rope,
        quant_scale_out=quant_scale_out, quant_offset_out=quant_offset_out,
        quant_scale_p=quant_scale_p, learnable_sink=learnable_sink,
        query_quant_mode=query_quant_mode, key_quant_mode=key_quant_mode,
        value_quant_mode=value_quant_mode, query_dtype=query_dtype, key_dtype=key_dtype,
        value_dtype=value_dtype, query_rope_dtype=query_rope_dtype, key_rope_dtype=key_rope_dtype,
        key_shared_prefix_dtype=key_shared_prefix_dtype,
        value_shared_prefix_dtype=value_shared_prefix_dtype,
        dequant_scale_query_dtype=dequant_scale_query_dtype,
        dequant_scale_key_dtype=dequant_scale_key_dtype,
        dequant_scale_value_dtype=dequant_scale_value_dtype,
        dequant_scale_key_rope_dtype=dequant_scale_key_rope_dtype, out_dtype=out_dtype,
    )  # fmt: skip
    call = InferenceCall(
        name, num_query_heads, num_key_value_heads, softmax_scale, pre_tokens, next_tokens,
        input_layout, sparse_mode, inner_precise, block_size, atten_mask, block_table,
        actual_seq_qlen, actual_seq_kvlen,
    )  # fmt: skip
    return _run(call, query, key, value, return_softmax_lse)
