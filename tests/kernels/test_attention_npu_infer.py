"""Decoding on Ascend, on the CPU, with the vendor's operator from `accel_kernels.vendor.npu`."""

import math

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from accel.testing import assert_backward_stable
from accel.testing.cases import attention_formula
from accel_kernels.masks import (
    RowIntervals,
    Sizes,
    as_mask,
    causal,
    key_lengths,
    prefix,
    window,
)
from accel_kernels.segmented_attention import npu_fusion
from accel_kernels.segmented_attention.call import Call, Dropout, alibi
from accel_kernels.segmented_attention.npu_fusion import infer as npu_infer
from accel_kernels.segmented_attention.npu_fusion.infer import npu_decode
from accel_kernels.vendor.npu import REFERENCES
from tests.kernels.npu_chip import Chip, visible

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


# --- what attention's own call gives to it ------------------------------------------------------


def ragged(counts, rows):
    """Row intervals of the last queries of entries of so many keys."""
    ends = torch.tensor(counts).unsqueeze(1) + torch.arange(1 - rows, 1)
    return RowIntervals(torch.stack([ends * 0, ends.clamp(min=0)]).unsqueeze(0).int())


TAKEN = {
    "one query": (1, None, None),
    "one causal query": (1, causal(), None),
    "16 queries": (16, None, None),
    "causal": (3, causal(), None),
    "more queries than keys": (16, causal(), None),
    "lengths": (1, key_lengths([0, 9]), None),
    "lengths of several queries": (3, key_lengths([5, 9]), None),
    "an entry without keys": (3, key_lengths([0, 9]), None),
    "causal from the top left": (3, causal("top_left"), None),
    "lengths, causal": (3, ragged([2, 9], 3), None),
    "one query in segments": (1, None, 4),
    "one query of lengths in segments": (1, key_lengths([2, 9]), 4),
}


def cache_tensors(rows, dtype, keys=9, size=16):
    query = torch.randn(2, 4, rows, size).to(dtype)
    return [query, *(torch.randn(2, 2, keys, size).to(dtype) for _ in range(2))]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", TAKEN)
def test_attention_without_gradients_takes_it(name, dtype, chip) -> None:
    rows, mask, segment = TAKEN[name]
    allowed = None if mask is None else visible(mask, Sizes(2, 4, rows, 9))
    some = torch.ones(2, 4, rows, dtype=torch.bool)
    if allowed is not None:
        some = allowed.any(-1).expand(2, 4, rows)

    def run(*tensors):
        out, lse = npu_fusion.segmented_attention(
            *tensors, mask=mask, segment_size=segment, return_lse=True
        )
        assert torch.equal(lse == -math.inf, ~some)
        return out, torch.where(some, lse, 0.0)

    def formula(query, key, value):
        scores = query @ key.repeat_interleave(2, 1).mT / 4
        if allowed is not None:
            scores = scores.masked_fill(~allowed & some.unsqueeze(-1), -math.inf)
        out = attention_formula(query, key, value, seen=allowed)
        return out, torch.where(some, scores.logsumexp(-1), 0.0)

    tensors = cache_tensors(rows, dtype)
    assert_backward_stable(run, *tensors, reference=formula, gradients=False)
    assert {called for called, _, _ in chip.calls} == {NAME}
    calls = len(chip.calls)
    assert npu_fusion.segmented_attention(*tensors, mask=mask, segment_size=segment)[1] is None
    assert len(chip.calls) - calls == (1 if segment is None else 3)


LATER = torch.tensor([2, 9]).int().view(1, 2, 1, 1)
NOT_TAKEN = {
    "float32": {"dtype": torch.float32},
    "17 queries": {"rows": 17},
    "a window": {"mask": window(2, 0)},
    "row intervals that begin later": {"mask": RowIntervals(LATER)},
    "a union": {"mask": causal() | prefix(7)},
    "causal and shorter": {"rows": 3, "mask": causal() & key_lengths([8, 9])},
    "a tensor": {"mask": as_mask(torch.ones(1, 9, dtype=torch.bool))},
    "a bias": {"bias": alibi(torch.rand(4))},
    "a head of 24 for several queries": {"rows": 2, "size": 24},
    "an odd head of more than 128": {"size": 136},
    "a head of more than 512": {"size": 528},
    "several queries in segments": {"rows": 2, "segment_size": 4},
}


@pytest.mark.parametrize("name", NOT_TAKEN)
def test_attention_does_not_give_it_what_it_does_not_take(name, chip) -> None:
    options = dict(NOT_TAKEN[name])
    given = {name: options.pop(name) for name in ("rows", "dtype", "size") if name in options}
    query, key, value = cache_tensors(**{"rows": 1, "dtype": torch.float16} | given)
    npu_fusion.segmented_attention(query, key, value, **options)
    assert chip.calls
    assert NAME not in {called for called, _, _ in chip.calls}


def test_values_of_another_size_and_empty_tensors_are_not_given_to_it(chip) -> None:
    query, key, value = cache_tensors(1, torch.float16)
    npu_fusion.segmented_attention(query, key, value[..., :8])
    npu_fusion.segmented_attention(query, key[:, :, :0], value[:, :, :0])
    assert NAME not in {called for called, _, _ in chip.calls}
    for option in ({"softcap": 3.0}, {"dropout": Dropout(0.5, 1)}):
        with pytest.raises(NotImplementedError, match=next(iter(option))):
            npu_fusion.segmented_attention(query, key, value, **option)


@pytest.mark.parametrize("leaf", range(3))
def test_a_gradient_is_not_lost_to_it(leaf, chip) -> None:
    tensors = cache_tensors(1, torch.float16)
    tensors[leaf].requires_grad_()
    npu_fusion.segmented_attention(*tensors)[0].sum().backward()
    assert tensors[leaf].grad is not None
    assert NAME not in {called for called, _, _ in chip.calls}
    with torch.no_grad():
        npu_fusion.segmented_attention(*tensors)
    assert chip.calls[-1][0] == NAME


def test_modes_transforms_and_forward_derivatives_do_not_meet_it(chip) -> None:
    tensors = cache_tensors(1, torch.float16)
    with torch.no_grad(), FlopCounterMode(display=False):
        npu_fusion.segmented_attention(*tensors)
    torch.func.vmap(lambda *t: npu_fusion.segmented_attention(*t)[0])(*(t[None] for t in tensors))
    call = Call(None, 0.25)
    with forward_ad.dual_level():
        assert npu_infer.inference(*tensors, call) is None
    assert NAME not in {called for called, _, _ in chip.calls}
    assert npu_infer.inference(*tensors, call) is not None


@pytest.mark.parametrize("mask", [causal(), key_lengths([8, 8]), ragged([8, 8], 3)], ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("which", [1, 2])
def test_what_is_not_finite_and_hidden_does_not_reach_it(mask, bad, which, chip) -> None:
    tensors = cache_tensors(3, torch.float16)
    clean = npu_fusion.segmented_attention(*tensors, mask=mask)[0]
    assert {called for called, _, _ in chip.calls} == {NAME}
    chip.calls.clear()
    tensors[which][:, :, 8] = bad
    found = npu_fusion.segmented_attention(*tensors, mask=mask)[0]
    assert NAME not in {called for called, _, _ in chip.calls}
    rows = visible(mask, Sizes(2, 4, 3, 9))[0, 0, :, 8].logical_not()
    torch.testing.assert_close(found[:, :, rows], clean[:, :, rows])


def test_the_first_keys_of_a_cache_are_read_in_place(chip) -> None:
    query = torch.randn(2, 4, 1, 16).half()
    cache = [torch.full((3, 2, 40, 16), math.nan).half() for _ in range(2)]
    for whole in cache:
        whole[1:, :, :9] = torch.randn(2, 2, 9, 16)
    keys, values = (whole[1:, :, :9] for whole in cache)
    found = npu_fusion.segmented_attention(query, keys, values)[0]
    ((_, given, arguments),) = chip.calls
    assert [t.data_ptr() for t in given[1:]] == [t.data_ptr() for t in (keys, values)]
    assert given[1].shape[2] == 40
    assert arguments["actual_seq_lengths_kv"] == [9, 9]
    whole = npu_fusion.segmented_attention(query, keys.contiguous(), values.contiguous())[0]
    assert torch.equal(found, whole)


def test_other_views_are_copied(chip) -> None:
    query, key, value = cache_tensors(1, torch.float16, keys=40)
    expected = npu_fusion.segmented_attention(
        query, key[:, :, 31:].contiguous(), value[:, :, 31:].contiguous()
    )[0]
    moved = value.transpose(1, 2).contiguous().transpose(1, 2)
    narrow = torch.cat([key, key], -1)[..., :16]
    for k, v in (
        (key, value),
        (key, moved),
        (key[:, :, 20:].contiguous()[:, :, -20:], value),
    ):
        found = npu_fusion.segmented_attention(query, k[:, :, -9:], v[:, :, -9:])[0]
        assert torch.equal(found, expected)
        _, given, _ = chip.calls[-1]
        assert [t.shape[2] for t in given[1:]] == [9, 9]
    found = npu_fusion.segmented_attention(query, narrow, value)[0]
    assert torch.equal(found, npu_fusion.segmented_attention(query, key, value)[0])
    # The first keys of caches of two sizes.
    short, long = key[:, :, :9], value[:, :, :9]
    expected = npu_fusion.segmented_attention(query, short.contiguous(), long.contiguous())[0]
    short = key[:, :, :12].contiguous()[:, :, :9]
    assert torch.equal(npu_fusion.segmented_attention(query, short, long)[0], expected)
    assert [called for called, _, _ in chip.calls] == [NAME] * len(chip.calls)


def paged_call(rows, counts, size, dtype, **options):
    """What a decoding call of attention gives to it, and the cache that the pages stand for."""
    caches, table, plain = pages(counts, size)
    key, value = (t.transpose(1, 2).contiguous().to(dtype) for t in caches)
    query = torch.randn(len(counts), 4, rows, 16).to(dtype)
    call = Call(options.pop("mask", causal() if rows > 1 else None), 0.25, **options)
    return [query, key, value, table.long(), counts, call], [t.to(dtype) for t in plain]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "size"), [(1, 16), (1, 48), (3, 128)])
@pytest.mark.parametrize("counts", [[130, 41], [0, 128], [2, 1]], ids=str)
def test_pages_are_read_in_place_by_attention(rows, size, counts, dtype, chip) -> None:
    (query, *given), plain = paged_call(rows, counts, size, dtype)
    for b, count in enumerate(counts):
        given[2][b, -(-count // size) :] = -1

    def run(query, *_):
        out, lse = npu_infer.inference_from_pages(query, *given)
        assert (out.dtype, lse.dtype) == (dtype, torch.float32)
        return out, torch.where(lse == -math.inf, 0.0, lse)

    def formula(*tensors):
        out, lse = expected(*tensors, counts)
        return out, torch.where(lse == -math.inf, 0.0, lse)

    assert_backward_stable(run, query, *plain, reference=formula, gradients=False)
    ((name, (_, key, value), arguments),) = chip.calls
    assert name == NAME
    assert (key.data_ptr(), value.data_ptr()) == (given[0].data_ptr(), given[1].data_ptr())
    assert arguments["block_size"] == size


@pytest.mark.parametrize(
    ("rows", "size", "options"),
    [
        (1, 24, {}),
        (1, 528, {}),
        (3, 64, {}),
        (17, 128, {}),
        (1, 16, {"mask": window(3, 0)}),
        (3, 128, {"mask": causal("top_left")}),
        (1, 16, {"softcap": 2.0}),
        (1, 16, {"bias": alibi(torch.rand(4))}),
    ],
    ids=str,
)
def test_pages_and_calls_that_it_does_not_take_are_left_to_be_copied(
    rows, size, options, chip
) -> None:
    given, _ = paged_call(rows, [130, 41], size, torch.float16, **options)
    assert npu_infer.inference_from_pages(*given) is None
    assert chip.calls == []


def test_pages_with_a_hidden_key_that_is_not_finite_are_left_to_be_copied(chip) -> None:
    given, _ = paged_call(3, [130, 41], 128, torch.float16)
    # The last key of the first sequence, of the second one of its first query's.
    for b, place, taken in ((0, 129, False), (1, 38, True), (1, 39, False)):
        value = given[2].clone()
        value[given[3][b, place // 128], place % 128] = math.nan
        found = npu_infer.inference_from_pages(*given[:2], value, *given[3:])
        assert (found is not None) == taken
    assert len(chip.calls) == 1
    single, _ = paged_call(1, [130, 41], 128, torch.float32)
    assert npu_infer.inference_from_pages(*single) is None
    halves, _ = paged_call(1, [130, 41], 128, torch.float16)
    strided = [t.repeat_interleave(2, -1)[..., ::2] for t in halves[1:3]]
    assert npu_infer.inference_from_pages(halves[0], *strided, *halves[3:]) is None
    assert npu_infer.inference_from_pages(halves[0].requires_grad_(), *halves[1:]) is None


def test_a_scale_is_handed_on() -> None:
    assert_backward_stable(
        lambda *t: npu_fusion.segmented_attention(*t, scale=-0.7)[0],
        *cache_tensors(1, torch.float16),
        reference=lambda *t: attention_formula(*t, scale=-0.7),
        gradients=False,
    )
    (query, *given, call), plain = paged_call(1, [130, 41], 16, torch.float16)
    seen = sees([130, 41], 1, plain[0].shape[2])
    assert_backward_stable(
        lambda q, *_: npu_infer.inference_from_pages(q, *given, call._replace(scale=-0.7))[0],
        query,
        *plain,
        reference=lambda *t: attention_formula(*t, scale=-0.7, seen=seen),
        gradients=False,
    )


def test_more_pages_than_one_call_takes_are_cut_between_pages(chip, monkeypatch) -> None:
    monkeypatch.setattr(npu_infer, "MOST_KEYS", 100)
    (query, *given), plain = paged_call(1, [130, 41], 48, torch.bfloat16)
    assert_backward_stable(
        lambda q, *_: npu_infer.inference_from_pages(q, *given),
        query,
        *plain,
        reference=lambda *t: expected(*t, [130, 41]),
        gradients=False,
    )
    assert [a["block_table"].shape[1] for a in chip.arguments(NAME)] == [2, 1]
