"""segmented_attention_decode beside the definition, sequence by sequence."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import accel.attention.decode as module
from accel import BackendError
from accel.attention import causal, documents, segmented_attention, window
from accel.attention.decode import segmented_attention_decode
from accel.testing import assert_backward_stable

BATCH, HEADS, KEY_HEADS, WIDTH, VALUE_WIDTH = 4, 4, 2, 8, 5
LENGTHS = [0, 1, 37, 20]
CAPACITY = 40
BACKENDS = [None, "reference"]


def by_definition(
    query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool = True, left: int | None = None,
    sinks: int = 0, softcap: float | None = None, scale: float | None = None,
    slopes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One sequence, `[H, T, D]` and `[H_kv, n, D]`; an empty row's lse reads 0."""
    group, (count, keys) = query.shape[0] // key.shape[0], (query.shape[1], key.shape[1])
    key, value = (t.repeat_interleave(group, 0) for t in (key, value))
    scores = query @ key.mT * (1 / math.sqrt(query.shape[2]) if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    at = torch.arange(count).unsqueeze(1) + keys - count
    j = torch.arange(keys)
    if slopes is not None:
        scores = scores - slopes[:, None, None] * (at - j).abs()
    seen = (j <= at) | torch.tensor(not is_causal)
    if left is not None:
        seen = seen & ((j >= at - left) | (j < sinks))
    none = ~seen.any(1)
    scores = scores.masked_fill(~seen, -1e30)
    if keys == 0:
        return query.new_zeros(*query.shape[:2], value.shape[2]), query.new_zeros(query.shape[:2])
    probabilities = torch.softmax(scores, -1).masked_fill(none.unsqueeze(1), 0.0)
    return probabilities @ value, torch.logsumexp(scores, -1).masked_fill(none, 0.0)


class Held:
    """Keys of each sequence, and the same keys in a cache of either kind."""

    def __init__(
        self,
        page_size: int | None,
        lengths: list[int] = LENGTHS,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.lengths, self.page_size = lengths, page_size
        self.keys = [torch.randn(KEY_HEADS, n, WIDTH).to(dtype) for n in lengths]
        self.values = [torch.randn(KEY_HEADS, n, VALUE_WIDTH).to(dtype) for n in lengths]
        self.table: Tensor | None = None
        if page_size is None:
            shape: tuple[int, ...] = (len(lengths), KEY_HEADS, CAPACITY)
        else:
            most = -(-CAPACITY // page_size)
            pages = len(lengths) * most + 3
            self.table = torch.randperm(pages)[: len(lengths) * most].view(-1, most).int()
            shape = (pages, page_size, KEY_HEADS)
        # What no sequence holds must not be read.
        self.key_cache = torch.full((*shape, WIDTH), math.nan, dtype=dtype)
        self.value_cache = torch.full((*shape, VALUE_WIDTH), math.nan, dtype=dtype)
        for b, n in enumerate(lengths):
            self.place(b, range(n), self.keys[b], self.values[b])

    def place(self, b: int, places: range, key: Tensor, value: Tensor) -> None:
        for row, j in enumerate(places):
            for cache, new in ((self.key_cache, key), (self.value_cache, value)):
                if self.table is None:
                    cache[b, :, j] = new[:, row]
                else:
                    assert self.page_size is not None
                    cache[self.table[b, j // self.page_size], j % self.page_size] = new[:, row]

    def call(self, query: Tensor, **options: Any) -> Any:
        return segmented_attention_decode(
            query, self.key_cache, self.value_cache,
            **{"cache_seqlens": self.lengths, "block_table": self.table} | options,
        )  # fmt: skip

    def truth(self, query: Tensor, slopes: Tensor | None = None, **options: Any) -> Any:
        found = [
            by_definition(
                query[b], self.keys[b].to(query.dtype), self.values[b].to(query.dtype), **options,
                slopes=slopes[b] if slopes is not None and slopes.dim() == 2 else slopes,
            )
            for b in range(len(self.lengths))
        ]  # fmt: skip
        return tuple(torch.stack(part) for part in zip(*found, strict=True))


def finite(state: Any) -> tuple[Tensor, Tensor]:
    return state.out, state.lse.masked_fill(state.lse == -math.inf, 0.0)


def check(held: Held, query: Tensor, rules: dict[str, Any], **options: Any) -> None:
    """Against float64; only the query is an argument, so that no other's noise counts."""
    assert_backward_stable(
        lambda q: finite(held.call(q, **options, return_lse=True)),
        query,
        reference=lambda q: held.truth(q, **rules),
        gradients=False,
    )


PAGES = [None, 1, 7, 16, 64]
CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"is_causal": False}, {"is_causal": False}),
    ({"left": 5}, {"mask": window(5, 0)}),
    ({"left": 5, "is_causal": False}, {"mask": window(5, None), "is_causal": False}),
    ({"left": 5, "sinks": 2}, {"mask": window(5, None, sinks=2)}),
    ({"softcap": 1.5}, {"softcap": 1.5}),
    ({"scale": 0.7}, {"scale": 0.7, "mask": causal()}),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("page_size", [None, 7])
@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize(("rules", "options"), CASES)
def test_equals_the_definition(rules, options, queries, page_size, backend) -> None:
    query = torch.randn(BATCH, HEADS, queries, WIDTH)
    check(Held(page_size), query, rules, **options, segment_size=8, backend=backend)


@pytest.mark.parametrize("page_size", PAGES)
def test_any_page_size(page_size) -> None:
    check(Held(page_size), torch.randn(BATCH, HEADS, 2, WIDTH), {}, segment_size=8)


@pytest.mark.parametrize("page_size", [None, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype, page_size) -> None:
    """16-bit parts are merged in float32 and rounded once more."""
    query = torch.randn(BATCH, HEADS, 2, WIDTH).to(dtype)
    held = Held(page_size, dtype=dtype)
    check(held, query, {}, segment_size=8)
    assert held.call(query).dtype == dtype
    state = held.call(query, return_lse=True)
    assert state.out.dtype == dtype
    assert state.lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("page_size", [None, 7])
@pytest.mark.parametrize("lengths", [LENGTHS, [23] * BATCH])
@pytest.mark.parametrize("shape", [(HEADS,), (BATCH, HEADS)])
def test_alibi_counts_within_each_sequence(shape, lengths, page_size) -> None:
    slopes = torch.rand(shape)
    query = torch.randn(BATCH, HEADS, 2, WIDTH)
    rules = {"slopes": slopes}
    check(Held(page_size, lengths), query, rules, alibi_slopes=slopes, segment_size=8)


@pytest.mark.parametrize("queries", [1, 3, 50])
@pytest.mark.parametrize("page_size", [None, 7])
@pytest.mark.parametrize("form", ["int", "int32", "int64", "none"])
def test_lengths_in_every_form(form, page_size, queries) -> None:
    """Equal lengths take another path than ragged ones; 50 queries are more than there are keys."""
    held = Held(page_size, [CAPACITY] * BATCH)
    given = {
        "int": CAPACITY,
        "int32": torch.full((BATCH,), CAPACITY, dtype=torch.int32),
        "int64": torch.full((BATCH,), CAPACITY),
        "none": None,
    }[form]
    query = torch.randn(BATCH, HEADS, queries, WIDTH)
    if form == "none" and page_size is not None:
        with pytest.raises(ValueError, match="paged cache needs cache_seqlens"):
            held.call(query, cache_seqlens=given)
        return
    check(held, query, {}, cache_seqlens=given)


@pytest.mark.parametrize("page_size", [None, 7])
def test_sequences_without_keys_see_nothing(page_size) -> None:
    held = Held(page_size, [0] * BATCH)
    state = held.call(torch.randn(BATCH, HEADS, 2, WIDTH), return_lse=True)
    assert (state.out == 0).all()
    assert (state.lse == -math.inf).all()


def test_no_sequences_and_no_queries() -> None:
    held = Held(None)
    none = segmented_attention_decode(
        torch.randn(0, HEADS, 1, WIDTH), held.key_cache[:0], held.value_cache[:0]
    )
    assert none.shape == (0, HEADS, 1, VALUE_WIDTH)
    assert held.call(torch.randn(BATCH, HEADS, 0, WIDTH)).shape == (BATCH, HEADS, 0, VALUE_WIDTH)


def test_entries_beyond_the_last_page_are_not_looked_at() -> None:
    held, query = Held(7), torch.randn(BATCH, HEADS, 1, WIDTH)
    clean = held.call(query)
    assert held.table is not None
    for b, n in enumerate(LENGTHS):
        held.table[b, -(-n // 7) :] = torch.tensor([-1, 10**6] * 3)[: 6 - -(-n // 7)]
    assert torch.equal(held.call(query), clean)


def test_a_table_on_several_sequences_shares_their_prefix() -> None:
    held = Held(4, [16, 16])
    assert held.table is not None
    held.table[1, :3] = held.table[0, :3]
    held.keys[1] = torch.cat([held.keys[0][:, :12], held.keys[1][:, 12:]], 1)
    held.values[1] = torch.cat([held.values[0][:, :12], held.values[1][:, 12:]], 1)
    check(held, torch.randn(2, HEADS, 1, WIDTH), {})


# --- appending --------------------------------------------------------------------------------


@pytest.mark.parametrize("page_size", PAGES)
@pytest.mark.parametrize("new", [1, 3])
@pytest.mark.parametrize("queries", [1, 3])
def test_new_keys_are_written_and_seen(queries, new, page_size) -> None:
    held = Held(page_size)
    key = torch.randn(BATCH, KEY_HEADS, new, WIDTH)
    value = torch.randn(BATCH, KEY_HEADS, new, VALUE_WIDTH)
    query = torch.randn(BATCH, HEADS, queries, WIDTH)
    wanted = Held(page_size)
    wanted.table, wanted.keys, wanted.values = held.table, held.keys, held.values
    wanted.key_cache, wanted.value_cache = held.key_cache.clone(), held.value_cache.clone()
    lengths = torch.tensor(LENGTHS, dtype=torch.int32)
    for b, n in enumerate(LENGTHS):
        wanted.place(b, range(n, n + new), key[b], value[b])
    found = held.call(query, cache_seqlens=lengths, key=key, value=value)
    torch.testing.assert_close(held.key_cache, wanted.key_cache, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(held.value_cache, wanted.value_cache, rtol=0, atol=0, equal_nan=True)
    assert lengths.tolist() == LENGTHS
    longer = [n + new for n in LENGTHS]
    assert torch.equal(found, held.call(query, cache_seqlens=longer))
    held.keys = [torch.cat([k, key[b]], 1) for b, k in enumerate(held.keys)]
    held.values = [torch.cat([v, value[b]], 1) for b, v in enumerate(held.values)]
    check(held, query, {}, cache_seqlens=longer)


@pytest.mark.parametrize("page_size", [None, 4])
def test_a_prompt_and_then_token_by_token_is_causal_attention(page_size) -> None:
    held = Held(page_size, [0, 0])
    query = torch.randn(2, HEADS, 23, WIDTH)
    key, value = torch.randn(2, KEY_HEADS, 23, WIDTH), torch.randn(2, KEY_HEADS, 23, VALUE_WIDTH)
    outs, done = [], 0
    for count in [10, *[1] * 13]:
        rows = slice(done, done + count)
        outs.append(
            held.call(
                query[:, :, rows],
                cache_seqlens=done,
                key=key[:, :, rows],
                value=value[:, :, rows],
            )
        )
        done += count
    whole = segmented_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(torch.cat(outs, 2), whole, rtol=1e-5, atol=1e-5)


def test_a_cache_that_is_a_view_is_written_through() -> None:
    pool = torch.full((2, KEY_HEADS, CAPACITY, WIDTH + VALUE_WIDTH), math.nan)
    key_cache, value_cache = pool[..., :WIDTH], pool[..., WIDTH:]
    new = torch.randn(2, KEY_HEADS, 2, WIDTH + VALUE_WIDTH)
    out = segmented_attention_decode(
        torch.randn(2, HEADS, 2, WIDTH), key_cache, value_cache, cache_seqlens=[0, 3],
        key=new[..., :WIDTH], value=new[..., WIDTH:], is_causal=False, mask=window(0, None),
    )  # fmt: skip
    assert torch.equal(pool[0, :, 0:2], new[0])
    assert torch.equal(pool[1, :, 3:5], new[1])
    assert out.isfinite().all()


# --- segments ---------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """The most elements that an operator made anew, the cache's own memory left out."""

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        self.known = {t.untyped_storage().data_ptr() for t in known}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(item, Tensor) and item.untyped_storage().data_ptr() not in self.known:
                self.most = max(self.most, item.untyped_storage().nbytes() // item.element_size())
        return result


@pytest.mark.parametrize("most_keys", [None, 128])
def test_pages_are_never_copied_together_at_once(most_keys, monkeypatch) -> None:
    pages, page_size, batch, width = 256, 16, 4, 32
    if most_keys is not None:  # fewer sequences at a time
        monkeypatch.setattr(module, "_MOST_KEYS", most_keys)
    caches = [torch.randn(pages, page_size, 1, width) for _ in range(2)]
    table = torch.randperm(pages).view(batch, -1).int()
    query = torch.randn(batch, 1, 1, width)
    with Largest(*caches, table, query) as counted:
        segmented_attention_decode(
            query, *caches, cache_seqlens=1024, block_table=table, segment_size=64,
            backend="reference",
        )  # fmt: skip
    at_a_time = batch * 64 if most_keys is None else most_keys
    assert at_a_time * width <= counted.most <= 2 * at_a_time * width
    assert counted.most < caches[0].numel() / 8


def test_segments_that_nobody_sees_are_not_read(monkeypatch) -> None:
    """With a window only its end, and for short sequences nothing beyond theirs."""
    read: list[tuple[int, list[int]]] = []
    segment = module.segment

    def counted(cache: Any, rows: Tensor, start: int, *rest: Any) -> Any:
        read.append((start, rows.tolist()))
        return segment(cache, rows, start, *rest)

    monkeypatch.setattr(module, "segment", counted)
    held = Held(4)
    held.call(torch.randn(BATCH, HEADS, 1, WIDTH), segment_size=8)
    assert read == [(0, [1, 2, 3]), (8, [2, 3]), (16, [2, 3]), (24, [2]), (32, [2])]
    read.clear()
    held.call(torch.randn(BATCH, HEADS, 1, WIDTH), segment_size=8, mask=window(3, 0))
    assert read == [(0, [1]), (16, [3]), (32, [2])]


@pytest.mark.parametrize("segment_size", [1, 16, 33, 4096])
def test_the_segment_size_changes_roundings_alone(segment_size) -> None:
    held, query = Held(1), torch.randn(BATCH, HEADS, 2, WIDTH)
    check(held, query, {}, segment_size=segment_size)


# --- what is refused, before anything is written -----------------------------------------------


def new_keys(n: int = 2, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {
        "key": torch.randn(BATCH, KEY_HEADS, n, WIDTH, dtype=dtype),
        "value": torch.randn(BATCH, KEY_HEADS, n, VALUE_WIDTH, dtype=dtype),
    }


def table_with(held: Held, row: int, column: int, number: int) -> dict[str, Any]:
    assert held.table is not None
    table = held.table.clone()
    table[row, column] = number
    return {"block_table": table}


@pytest.mark.parametrize(
    ("page_size", "change", "error", "message"),
    [
        (None, lambda h: {"cache_seqlens": [0, 1, 39, 20]}, ValueError, "sequence 2 has 39 and 2"),
        (7, lambda h: {"cache_seqlens": [0, 1, 41, 20]}, ValueError, "41 and 2 more keys"),
        (7, lambda h: {"cache_seqlens": [0, -1, 4, 20]}, ValueError, "sequence 1 has -1"),
        (7, lambda h: {"cache_seqlens": [0, 1, 4]}, ValueError, "3 lengths for 4 sequences"),
        (7, lambda h: {"cache_seqlens": None}, ValueError, "give it too"),
        (7, lambda h: {"cache_seqlens": [0.5] * 4}, TypeError, r"int or int32 \[B\]"),
        (7, lambda h: {"cache_seqlens": torch.rand(4)}, TypeError, "not torch.float32"),
        (7, lambda h: table_with(h, 2, 5, 27), ValueError, r"\[2, 5\] is 27, but .* 27 pages"),
        (7, lambda h: table_with(h, 3, 1, -1), ValueError, r"block_table\[3, 1\] is -1"),
        (7, lambda h: table_with(h, 0, 0, int(h.table[2, 0])), ValueError, "more than once"),
        (7, lambda h: {"block_table": h.table.float()}, TypeError, "an int32 tensor"),
        (7, lambda h: {"block_table": h.table[0]}, ValueError, r"\[B, most pages\]"),
        (7, lambda h: {"block_table": h.table[:3]}, ValueError, "3 lengths|3 sequences"),
        (7, lambda h: new_keys(dtype=torch.float16), TypeError, "key torch.float16"),
        (7, lambda h: {"value": None}, ValueError, "both or neither"),
        (7, lambda h: {"value": torch.randn(BATCH, 2, 1, 5)}, ValueError, "value must be"),
        (7, lambda h: {"key": torch.randn(BATCH, 4, 2, 8)}, ValueError, "key must be"),
        (7, lambda h: {"mask": documents([0, 4])}, ValueError, "only causal and window"),
        (7, lambda h: {"mask": torch.ones(1, 40).bool()}, TypeError, "made of causal and window"),
        (7, lambda h: {"is_causal": 1}, TypeError, "is_causal must be True or False"),
        (7, lambda h: {"scale": math.nan}, ValueError, "scale must be finite"),
        (None, lambda h: {"softcap": -1.0}, ValueError, "softcap must be positive"),
        (None, lambda h: {"backend": "none"}, ValueError, "none"),
        (7, lambda h: {"segment_size": 0}, ValueError, "segment_size must be"),
        (7, lambda h: {"alibi_slopes": torch.rand(3)}, ValueError, "alibi_slopes must be"),
        (7, lambda h: {"alibi_slopes": [1.0]}, TypeError, "floating tensor"),
    ],
)
def test_what_is_refused_leaves_the_cache_alone(page_size, change, error, message) -> None:
    held = Held(page_size)
    before = held.key_cache.clone(), held.value_cache.clone()
    given = new_keys() | change(held)
    with pytest.raises(error, match=message):
        held.call(torch.randn(BATCH, HEADS, 1, WIDTH), **given)
    for cache, old in zip((held.key_cache, held.value_cache), before, strict=True):
        torch.testing.assert_close(cache, old, rtol=0, atol=0, equal_nan=True)


def test_a_backend_that_cannot_is_found_before_writing() -> None:
    held = Held(None)
    before = held.key_cache.clone()
    with pytest.raises(BackendError):
        held.call(torch.randn(BATCH, HEADS, 1, WIDTH), **new_keys(), backend="sdpa", softcap=2.0)
    torch.testing.assert_close(held.key_cache, before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query": torch.randn(3, HEADS, 1, WIDTH)}, ValueError, "the 4 sequences"),
        ({"query": torch.randn(HEADS, 1, WIDTH)}, ValueError, r"\[B, H, T, D\]"),
        ({"query": torch.randn(BATCH, HEADS, 1, WIDTH).half()}, TypeError, "one floating dtype"),
        ({"query": torch.randn(BATCH, HEADS, 1, WIDTH + 1)}, ValueError, "one head size"),
        ({"query": torch.randn(BATCH, 3, 1, WIDTH)}, ValueError, "multiple of the key's 2 heads"),
        ({"query": None}, TypeError, "query must be a tensor"),
        ({"value_cache": torch.randn(4, 2, 39, 5)}, ValueError, r"agree in \[B, H_kv, S\]"),
        ({"value_cache": torch.randn(4, 2, 5)}, ValueError, r"value_cache must be \[B, H_kv, S"),
        ({"key_cache": [1]}, TypeError, "key_cache must be a tensor"),
        ({"value_cache": torch.randn(4, 2, 40, 5, device="meta")}, ValueError, "meta"),
        ({"query": torch.randn(BATCH, HEADS, 1, WIDTH, device="meta")}, ValueError, "on meta"),
    ],
)
def test_tensors_that_do_not_fit(change, error, message) -> None:
    held = Held(None)
    given = {
        "query": torch.randn(BATCH, HEADS, 1, WIDTH),
        "key_cache": held.key_cache,
        "value_cache": held.value_cache,
        "cache_seqlens": LENGTHS,
    }
    with pytest.raises(error, match=message):
        segmented_attention_decode(**(given | change))


@pytest.mark.parametrize("page_size", [None, 7])
def test_gradients_are_refused_not_dropped(page_size) -> None:
    held = Held(page_size)
    query = torch.randn(BATCH, HEADS, 1, WIDTH, requires_grad=True)
    with pytest.raises(ValueError, match=r"query requires a gradient, .* inference only"):
        held.call(query)
    with torch.no_grad():
        assert not held.call(query).requires_grad
    held.key_cache.requires_grad_()
    with pytest.raises(ValueError, match="key_cache requires a gradient"):
        held.call(query.detach())
    with pytest.raises(ValueError, match="alibi_slopes require a gradient"):
        Held(page_size).call(query.detach(), alibi_slopes=torch.rand(HEADS, requires_grad=True))
