"""Decoding on Ascend, on the CPU, with the vendor's operator from `accel_kernels.vendor.npu`."""

import math

import pytest
import torch

from accel.testing import assert_backward_stable
from accel.testing.cases import attention_formula
from accel_kernels.segmented_attention.npu_fusion.infer import npu_decode
from accel_kernels.vendor.npu import REFERENCES
from tests.kernels.npu_chip import Chip

NAME = "npu_fused_infer_attention_score"


@pytest.fixture(autouse=True)
def chip(monkeypatch):
    return Chip().install(monkeypatch)


def sees(counts, rows, keys):
    """Query i of an entry with n keys sees keys up to n - rows + i."""
    return torch.stack(
        [torch.ones(rows, keys).tril(n - rows).bool() & (torch.arange(keys) < n) for n in counts]
    ).unsqueeze(1)


def expected(query, key, value, counts):
    seen = sees(counts, query.shape[2], key.shape[2])
    scale = 1 / math.sqrt(query.shape[-1])
    scores = query @ key.repeat_interleave(query.shape[1] // key.shape[1], 1).mT * scale
    return (
        attention_formula(query, key, value, seen=seen),
        scores.masked_fill(~seen, -math.inf).logsumexp(-1),
    )


def check(query, key, value, counts, **options):
    out, lse = npu_decode(query, key, value, lengths=counts, **options)
    wanted, sums = expected(*(t.double() for t in (query, key, value)), counts)
    assert torch.equal(lse == -math.inf, sums == -math.inf)
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(lse, sums)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("counts", [[37, 37], [5, 37], [0, 37], [2, 0], [0, 0]], ids=str)
def test_the_last_queries_against_a_cache_of_which_a_part_is_filled(rows, counts) -> None:
    query = torch.randn(2, 6, rows, 16, dtype=torch.float64)
    key, value = (torch.randn(2, 2, 37, 16, dtype=torch.float64) for _ in range(2))
    check(query, key, value, counts)
    check(query, key, value, torch.tensor(counts))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_dtypes(dtype) -> None:
    query = torch.randn(2, 4, 1, 16).to(dtype)
    key, value = (torch.randn(2, 4, 100, 16).to(dtype) for _ in range(2))

    def run(*tensors):
        return npu_decode(*tensors, most_keys=32)

    out, lse = run(query, key, value)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    assert_backward_stable(
        run, query, key, value, reference=lambda *t: expected(*t, [100, 100]), gradients=False
    )


def test_what_lies_beyond_the_lengths_is_not_read() -> None:
    query = torch.randn(2, 2, 1, 16, dtype=torch.float64)
    key, value = (torch.randn(2, 2, 50, 16, dtype=torch.float64) for _ in range(2))
    clean = npu_decode(query, key, value, lengths=[20, 0], most_keys=16)
    key[0, :, 20:], value[0, :, 20:], key[1] = math.nan, math.nan, math.nan
    found = npu_decode(query, key, value, lengths=[20, 0], most_keys=16)
    assert all(torch.equal(a, b) for a, b in zip(clean, found, strict=True))


@pytest.mark.parametrize("counts", [[50, 50], [3, 49], [0, 17]], ids=str)
def test_a_longer_cache_than_one_call_takes_is_cut_and_merged(counts, chip) -> None:
    query = torch.randn(2, 4, 1, 16, dtype=torch.float64)
    key, value = (torch.randn(2, 2, 50, 16, dtype=torch.float64) for _ in range(2))
    check(query, key, value, counts, most_keys=16)
    assert [t[1].shape[2] for _, t, _ in chip.calls] == [
        min(16, max(counts) - n) for n in range(0, max(counts), 16)
    ]
    lengths = [a["actual_seq_lengths_kv"] for a in chip.arguments(NAME)]
    assert lengths[0] == [min(max(n, 1), 16) for n in counts]


def pages(counts, size, heads=2):
    """A paged cache and its table, with blocks in no order, and the cache that it stands for."""
    most = -(-max(counts) // size)
    order = torch.randperm(len(counts) * most + 1)[: len(counts) * most].view(len(counts), most)
    table = order.to(torch.int32)
    caches = [
        torch.randn(len(counts) * most + 1, heads, size, 16, dtype=torch.float64) for _ in range(2)
    ]
    plain = [cache[order].transpose(1, 2).flatten(2, 3) for cache in caches]
    return caches, table, plain


@pytest.mark.parametrize("heads_first", [False, True])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("counts", [[300, 41], [0, 128], [129, 256]], ids=str)
def test_a_paged_cache(rows, counts, heads_first) -> None:
    (key, value), table, plain = pages(counts, 128)
    if not heads_first:
        key, value = (t.transpose(1, 2).contiguous() for t in (key, value))
    query = torch.randn(2, 4, rows, 16, dtype=torch.float64)
    for b, count in enumerate(counts):
        table[b, -(-count // 128) :] = -1  # what no key is in may be anything
    options = {"lengths": counts, "block_table": table, "heads_first": heads_first}
    out, lse = npu_decode(query, key, value, **options)
    wanted, sums = expected(query, *plain, counts)
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(lse, sums)
    if rows == 1:
        cut = npu_decode(query, key, value, **options, most_keys=128)
        torch.testing.assert_close(cut[0], out)
        torch.testing.assert_close(cut[1], lse)


def test_merging_equals_the_vendors() -> None:
    query = torch.randn(1, 2, 1, 16, dtype=torch.float64)
    key, value = (torch.randn(1, 2, 40, 16, dtype=torch.float64) for _ in range(2))
    parts = [
        npu_decode(query, k.contiguous(), v.contiguous())
        for k, v in zip(key.split(16, 2), value.split(16, 2), strict=True)
    ]
    out, lse = REFERENCES["npu_attention_update"](
        [part[1].reshape(-1) for part in parts], [part[0].reshape(-1, 16) for part in parts], 1
    )
    found = npu_decode(query, key, value, most_keys=16)
    torch.testing.assert_close(found[0].reshape(-1, 16), out)
    torch.testing.assert_close(found[1].reshape(-1), lse)


@pytest.mark.parametrize("mistake", ["scale", "atten_mask", "actual_seq_lengths_kv"])
def test_mistakes_that_are_silent_on_a_chip_are_seen(mistake, chip) -> None:
    query = torch.randn(2, 2, 3, 16, dtype=torch.float64)
    key, value = (torch.randn(2, 2, 9, 16, dtype=torch.float64) for _ in range(2))

    def change(name, arguments):
        arguments.pop(mistake)
        if mistake == "atten_mask":
            arguments["sparse_mode"] = 0

    chip.mistake = change
    with pytest.raises(AssertionError, match="not close"):
        check(query, key, value, [9, 6])


def test_what_it_cannot_do_is_refused(chip) -> None:
    def tensors(heads=2, kv=2, size=16, rows=1, dtype=torch.float16):
        cache = torch.zeros(1, kv, 9, size, dtype=dtype)
        return torch.zeros(1, heads, rows, size, dtype=dtype), cache, cache.clone()

    for given, message in (
        ({"dtype": torch.float32}, "float32"),
        ({"size": 520}, "not 520"),
        ({"size": 8, "rows": 2}, "not 8"),
        ({"heads": 260, "kv": 130}, "not 260"),
        ({"heads": 130, "kv": 2}, "not 130 to 2"),
    ):
        with pytest.raises(NotImplementedError, match=message):
            npu_decode(*tensors(**given))
    table = torch.zeros(1, 1, dtype=torch.int32)
    for shape, rows, message in (
        ((1, 24, 2, 16), 1, "16 keys"),
        ((1, 64, 2, 16), 2, "128 keys"),
        ((1, 528, 2, 16), 1, "up to 512"),
        ((1, 16, 200, 512), 1, "heads_first"),
    ):
        cache = torch.zeros(shape, dtype=torch.float16)
        query = torch.zeros(1, shape[2], rows, shape[3], dtype=torch.float16)
        with pytest.raises(NotImplementedError, match=message):
            npu_decode(query, cache, cache.clone(), lengths=[3], block_table=table)
    query, key, value = tensors()
    for arguments, message in (
        ({"lengths": [10]}, "0 to 9"),
        ({"lengths": [1, 2]}, "1 numbers"),
        ({"block_table": table}, "needs lengths"),
    ):
        with pytest.raises(ValueError, match=message):
            npu_decode(query, key, value, **arguments)
    with pytest.raises(ValueError, match="contiguous"):
        npu_decode(query, key[:, :, :5], value[:, :, :5])
    with pytest.raises(ValueError, match="agree"):
        npu_decode(query, key, value[:, :, :5])
    assert chip.calls == []


@pytest.mark.parametrize("shape", [(0, 2, 1), (1, 2, 0)], ids=str)
def test_empty_tensors(shape, chip) -> None:
    batch, heads, rows = shape
    query = torch.zeros(batch, heads, rows, 16, dtype=torch.float16)
    cache = torch.zeros(batch, heads, 5, 16, dtype=torch.float16)
    out, lse = npu_decode(query, cache, cache)
    assert (out.shape, lse.shape) == (query.shape, query.shape[:3])
    assert chip.calls == []
