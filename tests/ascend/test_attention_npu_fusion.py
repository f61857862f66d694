"""Attention on the simulated Ascend: torch_npu's operators, schemas and memory are the real ones.

What each mask becomes, and every mistake, is proven in tests/kernels/test_attention_npu_*.py. Here:
that the real signatures take these calls, and that results and gradients are right on the device.
"""

import math

import pytest
import torch

import accel
from accel.testing import assert_backward_stable
from accel.testing.cases import attention_formula
from accel_kernels import masks
from accel_kernels.masks import Sizes, as_mask, causal, documents, key_lengths, prefix, window
from accel_kernels.segmented_attention.call import Bias, alibi, relative_bias
from accel_kernels.segmented_attention.npu_fusion import infer as npu_infer
from accel_kernels.segmented_attention.npu_fusion import operators as npu_operators
from accel_kernels.segmented_attention.npu_fusion import segmented_attention
from accel_kernels.segmented_attention.npu_fusion.infer import npu_decode

NPU = torch.device("npu", 0)
CPU = torch.device("cpu")

MASKS = {
    "none": None,
    "causal": causal(),
    "causal top left": causal("top_left"),
    "window": window(9, 2),
    "window with sinks": window(9, 0, sinks=3),
    "documents": documents([0, 20, 50, 63], [0, 30, 41, 100]),
    "causal documents": documents([0, 20, 50, 63], [0, 30, 41, 100], within=causal()),
    "prefix": causal() | prefix(7),
    "key lengths": key_lengths([77, 3]),
    "no keys in one entry": key_lengths([0, 100]) & causal(),
    "row intervals": masks.RowIntervals(
        torch.stack([torch.arange(63) * 7 % 50, torch.arange(63) * 7 % 50 + 9])
        .int()
        .view(1, 2, 1, 63)
    ),
}


def visible(mask, sizes):
    return masks.dense_visibility(masks.visibility(mask, sizes, CPU), sizes, CPU)


def tensors(queries, keys, dtype=torch.float32, heads=4, size=16):
    torch.manual_seed(queries + keys)
    shapes = ((2, heads, queries, size), (2, 2, keys, size), (2, 2, keys, size))
    return [torch.randn(shape).to(dtype).to(NPU) for shape in shapes]


def check(mask, inputs, allowed=None, bias=None, whole=None, gradients=True, **options):
    """Output, log-sum-exp and, through both, gradients, against the definition in float64."""
    sizes = Sizes(2, inputs[0].shape[1], inputs[0].shape[2], inputs[1].shape[2])
    if allowed is None and mask is not None:
        allowed = visible(mask, sizes)
    some = None if allowed is None else allowed.any(-1).expand(sizes[:3])

    def run(*given):
        added = None if bias is None else bias(given[3])
        out, lse = segmented_attention(
            *given[:3], mask=mask, bias=added, return_lse=True, **options
        )
        assert out.device == given[0].device
        return out, torch.where(lse == -math.inf, 0.0, lse)

    def formula(query, key, value, added=None):
        extra = None if whole is None else whole(added)
        out = attention_formula(query, key, value, seen=allowed, bias=extra)
        scores = query @ key.repeat_interleave(sizes.heads // 2, 1).mT / math.sqrt(query.shape[-1])
        scores = scores if extra is None else scores + extra
        if allowed is not None:
            scores = scores.masked_fill(~allowed & some.unsqueeze(-1), -math.inf)
            return out, torch.where(some, scores.logsumexp(-1), 0.0)
        return out, scores.logsumexp(-1)

    assert_backward_stable(run, *inputs, reference=formula, gradients=gradients)


@pytest.mark.parametrize("segment", [None, 32])
@pytest.mark.parametrize("name", MASKS)
def test_masks(name, segment) -> None:
    check(MASKS[name], tensors(63, 100), segment_size=segment)


def test_dense_masks_on_the_device() -> None:
    allowed = torch.rand(2, 1, 63, 100) < 0.5
    allowed[0, :, 5] = False
    check(as_mask(allowed.to(NPU)), tensors(63, 100), allowed)
    both = allowed & torch.ones(63, 100).tril(37).bool()
    check(as_mask(allowed.to(NPU)) & causal(), tensors(63, 100), both, segment_size=32)


@pytest.mark.parametrize("size", [1, 63, 100, 300])
def test_odd_sizes(size) -> None:
    check(causal(), tensors(size, size, heads=2, size=8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["causal", "window", "documents"])
def test_16_bit_dtypes(dtype, name) -> None:
    check(MASKS[name], tensors(63, 100, dtype), segment_size=40)


def distances():
    return torch.arange(100) - (torch.arange(63)[:, None] + 37)


BIASES = {
    "alibi": (
        lambda: torch.rand(4),
        alibi,
        lambda slopes: -slopes[:, None, None] * distances().abs(),
    ),
    "relative": (
        lambda: torch.randn(4, 11),
        relative_bias,
        lambda table: table[:, distances().clamp(-5, 5) + 5],
    ),
    "dense": (
        lambda: torch.randn(2, 1, 63, 100),
        lambda tensor: Bias("dense", tensor),
        lambda tensor: tensor,
    ),
}


@pytest.mark.parametrize("name", BIASES)
def test_biases(name) -> None:
    make, bias, whole = BIASES[name]
    check(causal(), [*tensors(63, 100), make().to(NPU)], bias=bias, whole=whole)


def test_device_lengths_and_boundaries() -> None:
    """Masks whose numbers lie on the device."""
    lengths = torch.tensor([77, 3], device=NPU)
    check(
        key_lengths(lengths), tensors(63, 100), visible(MASKS["key lengths"], Sizes(2, 4, 63, 100))
    )


def test_what_is_not_seen_does_not_leak() -> None:
    query, key, value = tensors(40, 40)
    clean = segmented_attention(query, key, value, mask=causal())[0]
    value[:, :, 20] = math.nan
    leaf = query.clone().requires_grad_()
    out = segmented_attention(leaf, key, value, mask=causal())[0]
    torch.testing.assert_close(out[:, :, :20], clean[:, :, :20])
    assert torch.isnan(out[:, :, 20:]).all()
    out[:, :, :20].sum().backward()
    assert torch.isfinite(leaf.grad[:, :, :20]).all()


def test_autocast_does_not_narrow_a_bias() -> None:
    query, key, value = tensors(20, 20, torch.bfloat16)
    bias = Bias("dense", 1000.0 + torch.randn(1, 4, 20, 20, device=NPU))
    expected = segmented_attention(query, key, value, bias=bias)[0]
    with torch.autocast("npu", dtype=torch.bfloat16):
        found = segmented_attention(query, key, value, bias=bias)[0]
    assert torch.equal(found, expected)


def test_empty_tensors() -> None:
    query, key, value = tensors(5, 0)
    out, lse = segmented_attention(query, key, value, mask=causal(), return_lse=True)
    assert (out == 0).all()
    assert (lse == -math.inf).all()


def test_the_compressed_mask_is_made_once_a_device() -> None:
    npu_operators._triangles.clear()
    for index in (0, 1):
        there = [t.to(torch.device("npu", index)) for t in tensors(9, 9)]
        for _ in range(2):
            segmented_attention(*there, mask=causal())
    assert [mask.device for mask in npu_operators._triangles.values()] == [
        NPU, torch.device("npu", 1),
    ]  # fmt: skip


@pytest.mark.parametrize("rows", [1, 3])
def test_decoding(rows) -> None:
    query, key, value = tensors(rows, 50, torch.float16)
    counts = [50, 2]
    seen = torch.stack(
        [torch.ones(rows, 50).tril(n - rows).bool() & (torch.arange(50) < n) for n in counts]
    ).unsqueeze(1)

    def run(*given):
        return npu_decode(*given, lengths=counts, most_keys=32)[0]

    assert_backward_stable(
        run, query, key, value, gradients=False,
        reference=lambda *t: attention_formula(*t, seen=seen),
    )  # fmt: skip


def test_decoding_from_pages() -> None:
    query, key, value = tensors(1, 256, torch.bfloat16)
    table = torch.tensor([[2, 0], [3, 1]], dtype=torch.int32, device=NPU)
    pages = [
        torch.stack([c[0, :, 128:], c[1, :, 128:], c[0, :, :128], c[1, :, :128]])
        for c in (key, value)
    ]
    plain = npu_decode(query, key, value, lengths=[130, 256])
    for heads_first in (False, True):
        given = pages if heads_first else [p.transpose(1, 2).contiguous() for p in pages]
        paged = npu_decode(
            query, *given, lengths=[130, 256], block_table=table, heads_first=heads_first
        )
        assert all(torch.equal(a, b) for a, b in zip(plain, paged, strict=True))


@pytest.fixture
def decoded(monkeypatch):
    """The key caches that the operator for inference was given."""
    found, operator = [], npu_infer.operator

    def counted(name):
        assert name == "npu_fused_infer_attention_score"

        def run(*tensors, **arguments):
            found.append(tensors[1])
            return operator(name)(*tensors, **arguments)

        return run

    monkeypatch.setattr(npu_infer, "operator", counted)
    return found


DECODING = {
    "one query": (1, None),
    "several": (5, None),
    "causal": (5, causal()),
    "more queries than keys": (16, causal()),
    "lengths": (1, key_lengths([3, 0])),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", DECODING)
def test_attention_without_gradients_takes_the_operator_for_inference(name, dtype, decoded) -> None:
    rows, mask = DECODING[name]
    given = tensors(rows, 12, dtype)
    check(mask, given, gradients=False)
    assert len(decoded) == 1
    found = accel.segmented_attention(*given, mask=mask, backend="npu_fusion")
    assert len(decoded) == 2
    assert torch.equal(found, segmented_attention(*given, mask=mask)[0])


def test_training_and_what_it_cannot_do_do_not_take_it(decoded) -> None:
    check(causal(), tensors(5, 12, torch.float16))  # with gradients
    given = tensors(1, 12, torch.float16)
    leaf = given[0].clone().requires_grad_()
    accel.segmented_attention(leaf, *given[1:], backend="npu_fusion").sum().backward()
    assert leaf.grad is not None
    accel.segmented_attention(*given, mask=window(3, 0), backend="npu_fusion")
    accel.segmented_attention(*tensors(17, 12, torch.float16), backend="npu_fusion")
    accel.segmented_attention(*tensors(1, 12), backend="npu_fusion")
    assert decoded == []


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("counts", [[20, 20], [2, 20]], ids=str)
def test_decoding_from_a_cache_by_the_public_call(rows, counts, decoded) -> None:
    query, *caches = tensors(rows, 40, torch.float16)
    seen = torch.stack(
        [torch.ones(rows, 40).tril(n - rows).bool() & (torch.arange(40) < n) for n in counts]
    ).unsqueeze(1)

    def run(*given):
        return accel.segmented_attention_decode(*given, cache_seqlens=counts, backend="npu_fusion")

    assert_backward_stable(
        run, query, *caches, gradients=False, reference=lambda *t: attention_formula(*t, seen=seen)
    )
    assert len(decoded) == 1
    run(query, *caches)
    assert decoded[1].data_ptr() == caches[0].data_ptr()
    # Memory behind the keys may hold anything.
    clean = run(query, *caches)
    for cache in caches:
        cache[:, :, 20:] = math.nan
    assert torch.equal(run(query, *caches), clean)
    assert len(decoded) == 4


@pytest.mark.parametrize(("rows", "size", "taken"), [(1, 16, True), (3, 128, True), (3, 16, False)])
def test_decoding_from_pages_by_the_public_call(rows, size, taken, decoded) -> None:
    query, key, value = tensors(rows, 256, torch.bfloat16)
    counts, order = [130, 256], torch.randperm(512 // size)
    whole = [t.transpose(1, 2).reshape(-1, size, 2, 16) for t in (key, value)]
    paged = [torch.empty_like(t) for t in whole]
    for t, w in zip(paged, whole, strict=True):
        t[order.to(NPU)] = w
    options = {"cache_seqlens": counts, "return_lse": True, "backend": "npu_fusion"}
    table = order.view(2, -1).int().to(NPU)
    found = accel.segmented_attention_decode(query, *paged, block_table=table, **options)
    in_place = [cache.data_ptr() == paged[0].data_ptr() for cache in decoded]
    assert in_place == [taken]  # what is copied together is taken too
    plain = accel.segmented_attention_decode(query, key, value, **options)
    torch.testing.assert_close(found.out, plain.out)
    torch.testing.assert_close(found.lse, plain.lse)
    new = [torch.randn(2, 2, rows, 16, dtype=torch.bfloat16, device=NPU) for _ in range(2)]
    counts[1] -= rows
    grown = accel.segmented_attention_decode(
        query, *paged, block_table=table, key=new[0], value=new[1], **options
    )
    same = accel.segmented_attention_decode(query, key, value, key=new[0], value=new[1], **options)
    torch.testing.assert_close(grown.out, same.out)
