"""What `sdpa` and `flex` make of a call: torch's arguments, and never all scores in memory.

FlexAttention computes on the CPU only uncompiled; there these tests prove the tables and functions
that it is given. On a GPU the compiled kernels themselves run.
"""

import itertools
import math
import random

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention import flex_attention as torch_flex
from torch.utils._python_dispatch import TorchDispatchMode

import accel
from accel.testing import assert_backward_stable
from accel_kernels.masks import (
    Sizes,
    as_mask,
    causal,
    dense_visibility,
    documents,
    key_lengths,
    prefix,
    row_bounds,
    visibility,
    window,
)
from accel_kernels.segmented_attention import flex, sdpa
from accel_kernels.segmented_attention.call import Bias, Call, alibi, relative_bias, sizes_of
from accel_kernels.segmented_attention.formula import whole_attention
from accel_kernels.segmented_attention.tiles import FULL, PARTIAL, tile_kinds
from tests.kernels.mask_rules import a_mask, some_sizes, table

CPU = torch.device("cpu")
SEEDS = range(25)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
QUERIES, KEYS = 13, 11


def draw(dtype, queries=QUERIES, keys=KEYS, heads=4, key_heads=2, size=16, value_size=16):
    shapes = [(heads, queries, size), (key_heads, keys, size), (key_heads, keys, value_size)]
    return [torch.randn(2, *shape, dtype=torch.float64).to(dtype) for shape in shapes]


def formula(call: Call):
    """The output as its definition says, with what the call holds on the CPU."""
    return lambda q, k, v: whole_attention(q, k, v, call)


# --- sdpa ----------------------------------------------------------------------------------------


def dense_masks(queries: int, keys: int) -> list[Tensor]:
    """Of every broadcast shape, with rows that see nothing."""
    masks = [
        torch.rand(shape) < 0.5
        for shape in (
            (queries, keys),
            (1, 1, queries, keys),
            (2, 1, queries, keys),
            (2, 4, 1, keys),
            (1, 4, queries, 1),
            (2, 4, queries, keys),
        )
    ]
    for mask in masks:
        mask[..., :1, :] = False
    return masks


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("number", range(6))
def test_sdpa_with_dense_masks(number, dtype) -> None:
    query, key, value = draw(dtype)
    mask = as_mask(dense_masks(QUERIES, KEYS)[number])
    out, lse = sdpa.segmented_attention(query, key, value, mask=mask)
    assert lse is None
    unseen = ~mask.allowed.any(-1).expand(2, 4, QUERIES)
    assert unseen.any()
    assert (out[unseen] == 0).all()
    assert_backward_stable(
        lambda *t: sdpa.segmented_attention(*t, mask=mask)[0],
        query,
        key,
        value,
        reference=lambda *t: formula(Call(mask, 0.25))(*t)[0],
    )


@pytest.mark.parametrize("added", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_sdpa_with_a_dense_bias(dtype, added, masked) -> None:
    """Of every dtype, beside a mask and alone."""
    query, key, value = draw(dtype)
    bias = Bias("dense", (3 * torch.randn(1, 4, QUERIES, KEYS, dtype=torch.float64)).to(added))
    bias.tensor[:, :, 2] = -math.inf
    mask = as_mask(dense_masks(QUERIES, KEYS)[2]) if masked else None
    assert_backward_stable(
        lambda *t: sdpa.segmented_attention(*t, mask=mask, bias=bias)[0],
        query,
        key,
        value,
        reference=lambda *t: formula(Call(mask, 0.25, bias=bias))(*t)[0],
    )


@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
@pytest.mark.parametrize("kernel", [sdpa, flex], ids=lambda module: module.__name__.split(".")[-1])
def test_a_bias_is_not_rounded_to_the_dtype_of_the_query(kernel, dtype, uncompiled) -> None:
    """A constant added to every score changes nothing: 1024 with 8 bits after the point neither."""
    inputs = draw(dtype)
    small = (torch.randn(1, 4, QUERIES, KEYS) * 256).round() / 256
    call = Call(None, 0.25, bias=Bias("dense", small))
    truth, _ = whole_attention(*(t.double() for t in inputs), call)
    errors = []
    for constant in (0.0, 1024.0):
        bias = Bias("dense", small + constant)
        out, _ = kernel.segmented_attention(*inputs, bias=bias)
        errors.append((out - truth).norm())
    assert errors[1] <= 2 * errors[0]
    rounded = Bias("dense", (small + 1024.0).to(dtype))
    out, _ = kernel.segmented_attention(*inputs, bias=rounded)
    assert (out - truth).norm() > 10 * errors[0]  # what it would be


@pytest.mark.parametrize("align", ["bottom_right", "top_left"])
@pytest.mark.parametrize(
    "mask", [causal, lambda a: causal(a) & causal(), lambda a: causal(a) | causal()]
)
def test_sdpa_takes_every_causal_mask_of_equal_lengths(mask, align) -> None:
    query, key, value = draw(torch.float32, 20, 20)
    assert_backward_stable(
        lambda *t: sdpa.segmented_attention(*t, mask=mask(align))[0],
        query,
        key,
        value,
        reference=lambda *t: formula(Call(causal(), 0.25))(*t)[0],
    )


@pytest.mark.parametrize("floating", [False, True])
def test_rows_that_see_nothing_are_kept_from_kernels_that_may_not_know_them(floating) -> None:
    """As on CUDA: the kernel sees all keys there, its output is replaced, no gradient comes."""
    query, key, value = (t.requires_grad_() for t in draw(torch.float64))
    allowed = torch.rand(2, 1, QUERIES, KEYS) < 0.3
    allowed[:, :, [0, 7]] = False
    added = torch.where(allowed, torch.randn(QUERIES, KEYS).double(), -math.inf)
    filled, seen = sdpa._without_empty_rows(added if floating else allowed)
    assert torch.equal(seen, allowed.any(-1, keepdim=True))
    some = filled != -math.inf if floating else filled
    assert some.any(-1).all()
    assert torch.equal(some & seen, allowed)
    bias = Bias("dense", added) if floating else None
    out = torch.where(
        seen, sdpa._attention(query, key, value, filled, is_causal=False, scale=None), 0.0
    )
    expected, _ = whole_attention(query, key, value, Call(as_mask(allowed), 0.25, bias=bias))
    grad = torch.randn_like(out)
    actual = [out, *torch.autograd.grad(out, (query, key, value), grad)]
    wanted = [expected, *torch.autograd.grad(expected, (query, key, value), grad)]
    for a, w in zip(actual, wanted, strict=True):
        assert torch.allclose(a, w, rtol=0, atol=1e-12)


class Operators(TorchDispatchMode):
    """Notes what runs, and how large the largest result is."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.names.add(func.overloadpacket.__name__)
        for item in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(item, Tensor):
                self.largest = max(self.largest, item.numel())
        return result


@pytest.mark.parametrize("mask", [None, causal(), "dense"], ids=str)
def test_sdpa_never_keeps_all_scores(mask) -> None:
    query, key, value = draw(torch.float32, 100, 100)
    given = as_mask(torch.rand(100, 100) < 0.5) if mask == "dense" else mask
    with Operators() as seen:
        sdpa.segmented_attention(query, key, value, mask=given)
    assert "_scaled_dot_product_flash_attention_for_cpu" in seen.names
    assert "_softmax" not in seen.names
    assert "bmm" not in seen.names


@pytest.mark.parametrize("how", ["eager", "traced"])
@pytest.mark.filterwarnings("ignore:.*(F|f)lash attention:UserWarning")
@pytest.mark.filterwarnings("ignore:.*fused kernels:UserWarning")
def test_sdpa_raises_where_torch_would_keep_all_scores(how) -> None:
    query, key, value = draw(torch.float32, value_size=24)

    def attention(*tensors: Tensor) -> Tensor:
        return sdpa.segmented_attention(*tensors)[0]

    if how == "traced":
        attention = torch.compile(attention, fullgraph=True, backend="eager")
    with pytest.raises(RuntimeError, match=r"keeps less than all scores|No available kernel"):
        attention(query, key, value)


def test_sdpa_does_not_override_the_choice_of_the_caller() -> None:
    query, key, value = draw(torch.float32)
    with (
        sdpa_kernel([SDPBackend.MATH]),
        pytest.raises(RuntimeError, match=r"sdpa_kernel forbids it\); take another backend"),
    ):
        sdpa.segmented_attention(query, key, value)


@pytest.mark.parametrize("what", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["key", "value"])
@pytest.mark.parametrize("kernel", [sdpa, flex], ids=lambda module: module.__name__.split(".")[-1])
def test_what_is_not_finite_and_not_visible_gives_nan_or_nothing(
    kernel, where, what, uncompiled
) -> None:
    """torch multiplies what is hidden by zero: NaN may come of it, but no other number."""
    for mask in (causal(), as_mask(torch.rand(40, 40) < 0.5)):
        query, key, value = draw(torch.float32, 40, 40)
        clean, _ = kernel.segmented_attention(query, key, value, mask=mask)
        (key if where == "key" else value)[:, :, 17, 3:5] = what
        out, _ = kernel.segmented_attention(query, key, value, mask=mask)
        sizes = sizes_of(query, key)
        sees = dense_visibility(visibility(mask, sizes, CPU), sizes, CPU)[0, 0, :, 17]
        assert sees.any()
        assert not torch.equal(out[:, :, sees], clean[:, :, sees])
        hidden = out[:, :, ~sees]
        assert (torch.isnan(hidden) | (hidden == clean[:, :, ~sees])).all()


@pytest.mark.parametrize("dynamic", [False, True])
def test_sdpa_traces(dynamic) -> None:
    mask = as_mask(dense_masks(QUERIES, KEYS)[2])

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return sdpa.segmented_attention(query, key, value, mask=mask)[0]

    torch._dynamo.reset()
    traced = torch.compile(attention, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    inputs = draw(torch.float32)
    assert torch.equal(traced(*inputs), attention(*inputs))


@pytest.fixture(autouse=True)
def no_tables(monkeypatch):
    """Tests change the size of blocks, which tables that are remembered keep."""
    monkeypatch.setattr(flex, "_tables", {})


# --- flex: tables --------------------------------------------------------------------------------


def as_dense(count: Tensor, index: Tensor, columns: int) -> Tensor:
    """Lists of columns as a table, `[B, 1, rows, columns]`; each named once and ascending."""
    found = torch.zeros(*count.shape, columns, dtype=torch.bool)
    for place in itertools.product(*(range(n) for n in count.shape)):
        named = index[place][: count[place]].tolist()
        assert named == sorted(set(named))
        found[place][named] = True
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_blocks_are_the_tiles(seed, monkeypatch) -> None:
    """Full and partial, by queries for the forward and by keys for the backward."""
    monkeypatch.setattr(flex, "_BLOCK", 4)
    draw_from = random.Random(seed)
    sizes = some_sizes(draw_from)
    if not sizes.query_length or not sizes.key_length:
        sizes = sizes._replace(query_length=9, key_length=6)
    ruled = a_mask(draw_from, sizes)
    made = flex.block_mask(ruled.mask, sizes, CPU)
    seen = visibility(ruled.mask, sizes, CPU)
    rows, columns = (math.ceil(n / 4) for n in sizes[2:])
    kinds = tile_kinds(seen, sizes, 4, 4).unsqueeze(1)
    assert made.seq_lengths == sizes[2:]
    for kind, counts, indices, by in (
        (PARTIAL, made.kv_num_blocks, made.kv_indices, "queries"),
        (FULL, made.full_kv_num_blocks, made.full_kv_indices, "queries"),
        (PARTIAL, made.q_num_blocks, made.q_indices, "keys"),
        (FULL, made.full_q_num_blocks, made.full_q_indices, "keys"),
    ):
        assert counts.dtype == indices.dtype == torch.int32
        expected = kinds == kind
        if by == "keys":
            expected = expected.mT
        assert indices.shape == expected.shape
        assert torch.equal(as_dense(counts, indices, rows if by == "keys" else columns), expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_mask_function_is_the_rule(seed) -> None:
    draw_from = random.Random(seed)
    sizes = some_sizes(draw_from)
    if not sizes.query_length or not sizes.key_length:  # the spec refuses them
        sizes = sizes._replace(query_length=1, key_length=1)
    ruled = a_mask(draw_from, sizes)
    function = flex.mask_function(visibility(ruled.mask, sizes, CPU), sizes, CPU)
    places = torch.meshgrid(*(torch.arange(n, dtype=torch.int32) for n in sizes), indexing="ij")
    actual = function(*places)
    assert torch.equal(actual.expand(sizes), table(ruled.rule, sizes))


def test_tables_are_made_without_a_tensor_of_all_pairs(monkeypatch) -> None:
    """At 16,384 tokens the largest on the way is as large as 512 queries' scores."""
    monkeypatch.setattr(torch_flex, "create_block_mask", None)
    length = 16384
    for mask in (
        causal(),
        window(4095, sinks=4),
        documents(list(range(0, length + 1, 1000)), within=causal()),
        key_lengths([10000]) & causal(),
        causal() | prefix(1000),
    ):
        with Operators() as seen:
            flex.block_mask(mask, Sizes(1, 8, length, length), CPU)
        assert 0 < seen.largest <= length * 512


def test_long_sequences_have_larger_blocks() -> None:
    """So that tables do not grow with the square of the length."""
    assert flex.block_size(Sizes(1, 1, 1, 1)) == 128
    assert flex.block_size(Sizes(1, 1, 131072, 5)) == 128
    assert flex.block_size(Sizes(1, 1, 5, 131073)) == 256
    assert flex.block_size(Sizes(1, 1, 1_000_000, 1_000_000)) == 1024


def test_tables_are_remembered_for_masks_of_numbers() -> None:
    sizes = Sizes(2, 1, 300, 300)
    first = flex.block_mask(window(9), sizes, CPU)
    assert flex.block_mask(window(9), sizes, CPU) is first
    assert flex.block_mask(window(8), sizes, CPU) is not first
    lengths = torch.tensor([300, 300])
    before = flex.block_mask(key_lengths(lengths), sizes, CPU)
    lengths[0] = 10
    after = flex.block_mask(key_lengths(lengths), sizes, CPU)
    assert before.full_kv_num_blocks.sum() > after.full_kv_num_blocks.sum()
    for length in range(1, 40):
        flex.block_mask(window(length), sizes, CPU)
        assert len(flex._tables) <= flex._TABLES_SIZE
    with torch.inference_mode():
        flex.block_mask(window(50), sizes, CPU)
    assert not flex.block_mask(window(50), sizes, CPU).kv_indices.is_inference()


# --- flex: numbers -------------------------------------------------------------------------------


@pytest.fixture
def uncompiled(monkeypatch):
    """FlexAttention as plain operators, with blocks small enough that short lengths have many."""
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(flex, "_BLOCK", 4)
    monkeypatch.setattr(flex, "_compiled", lambda kind: torch_flex.flex_attention)


MASKS = {
    "none": lambda: None,
    "causal": causal,
    "top left": lambda: causal("top_left"),
    "window": lambda: window(3, 1, sinks=2),
    "documents": lambda: documents([0, 5, 9], [0, 3, 3], within=None),
    "prefix": lambda: causal() | prefix([1, 4]),
    "key lengths": lambda: key_lengths([0, 7]) & window(4),
    "dense": lambda: as_mask(torch.rand(2, 4, QUERIES, KEYS) < 0.4),
    "dense row": lambda: as_mask(torch.rand(2, 1, 1, KEYS) < 0.6) & causal(),
    "one truth": lambda: as_mask(torch.ones(1, 1, dtype=torch.bool)),
}
BIASES = {
    "none": lambda: None,
    "alibi": lambda: alibi(torch.rand(4)),
    "alibi by entry": lambda: alibi(torch.rand(2, 4)),
    "alibi elsewhere": lambda: alibi(torch.rand(4))._replace(shift=5),
    "relative": lambda: relative_bias(torch.randn(4, 7)),
    "relative of all heads": lambda: relative_bias(torch.randn(1, 31)),
    "dense": lambda: Bias("dense", torch.randn(2, 4, QUERIES, KEYS)),
    "dense row": lambda: Bias("dense", torch.randn(1, 4, 1, KEYS)),
    "one number": lambda: Bias("dense", torch.randn(1, 1, 1, 1)),
}


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("mask", MASKS)
def test_flex_is_the_formula(mask, bias, uncompiled) -> None:
    """With and without cap, whatever the sign of the scale."""
    query, key, value = draw(torch.float64, value_size=24)
    seen, added = MASKS[mask](), BIASES[bias]()
    for softcap, scale in ((None, None), (2.0, -0.5)):
        out, lse = flex.segmented_attention(
            query, key, value, mask=seen, bias=added, softcap=softcap, scale=scale, return_lse=True
        )
        call = Call(seen, 0.25 if scale is None else scale, softcap, added)
        expected, expected_lse = whole_attention(query, key, value, call)
        assert torch.allclose(out, expected, rtol=0, atol=1e-12)
        assert torch.equal(lse == -math.inf, expected_lse == -math.inf)
        assert torch.allclose(lse, expected_lse, rtol=0, atol=1e-12)


def test_flex_with_a_scale_of_zero(uncompiled) -> None:
    query, key, value = draw(torch.float64)
    out, lse = flex.segmented_attention(
        query, key, value, mask=window(3), scale=0.0, return_lse=True
    )
    expected = whole_attention(query, key, value, Call(window(3), 0.0))
    assert torch.allclose(out, expected[0], rtol=0, atol=1e-12)
    assert torch.allclose(lse, expected[1], rtol=0, atol=1e-12)


def test_flex_gives_no_lse_unless_asked(uncompiled) -> None:
    out, lse = flex.segmented_attention(*draw(torch.float32))
    assert lse is None
    assert out.dtype == torch.float32


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("bias", ["none", "alibi", "relative", "dense"])
def test_flex_is_backward_stable(dtype, bias, device, request) -> None:
    """On a GPU the compiled kernels and their gradients; else the functions that they compile."""
    on_gpu = device.torch_device.type == "cuda"
    if not on_gpu:
        request.getfixturevalue("uncompiled")
    inputs = [t.to(device.torch_device) for t in draw(dtype)]
    added = BIASES[bias]()
    there = added and added._replace(tensor=added.tensor.to(device.torch_device))
    assert_backward_stable(
        lambda *t: flex.segmented_attention(*t, mask=window(4), bias=there, softcap=3.0)[0],
        *inputs,
        reference=lambda *t: formula(Call(window(4), 0.25, 3.0, added))(*t)[0],
        gradients=on_gpu,
    )


@pytest.mark.parametrize(("mask", "bias"), [("window", "relative"), ("key lengths", "alibi")])
def test_the_derivatives_of_cap_and_bias(mask, bias, uncompiled, monkeypatch) -> None:
    """FlexAttention has no backward on the CPU: its formula for one is run in spite of that."""
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", False)
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *tensors: None)
    traced = torch.compile(torch_flex.flex_attention, fullgraph=True, backend="eager")
    monkeypatch.setattr(flex, "_compiled", lambda kind: traced)
    seen, added = MASKS[mask](), BIASES[bias]()
    inputs = [t.requires_grad_() for t in draw(torch.float64)]
    out, lse = flex.segmented_attention(
        *inputs, mask=seen, bias=added, softcap=2.0, return_lse=True
    )
    expected, expected_lse = whole_attention(*inputs, Call(seen, 0.25, 2.0, added))
    some = expected_lse > -math.inf
    grad, weight = torch.randn_like(out), torch.randn_like(lse)
    actual = torch.autograd.grad((out * grad).sum() + (lse * weight)[some].sum(), inputs)
    wanted = torch.autograd.grad(
        (expected * grad).sum() + (expected_lse * weight)[some].sum(), inputs
    )
    for a, w in zip(actual, wanted, strict=True):
        assert torch.allclose(a, w, rtol=0, atol=1e-12)


def test_other_tensors_and_lengths_do_not_compile_anew(monkeypatch) -> None:
    """Once for the first lengths, once for any, whatever mask and slopes of the same form."""
    compiled = []

    def backend(module, inputs):
        compiled.append(module)
        return module

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **o: compile_(f, backend=backend, **o))
    flex._compiled.cache_clear()
    torch._dynamo.reset()
    for queries, keys in ((13, 11), (13, 11), (20, 31), (5, 40), (64, 64)):
        for mask in (window(3), documents([0, 2, 5])):
            query, key, value = draw(torch.float32, queries, keys)
            slopes = alibi(torch.rand(4))
            out, _ = flex.segmented_attention(query, key, value, mask=mask, bias=slopes)
            call = Call(mask, 0.25, bias=slopes)
            assert torch.allclose(out, whole_attention(query, key, value, call)[0], atol=1e-5)
    flex._compiled.cache_clear()
    assert len(compiled) == 2


def test_flex_raises_where_it_has_compiled_too_often(monkeypatch) -> None:
    """And does not compute all scores instead, as torch would without fullgraph."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **o: compile_(f, backend="eager", **o))
    flex._compiled.cache_clear()
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=1):
        flex.segmented_attention(*draw(torch.float32, heads=2))
        with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
            flex.segmented_attention(*draw(torch.float32, heads=4, size=32, value_size=32))
    flex._compiled.cache_clear()
    torch._dynamo.reset()


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("mask", ["causal", "window", "dense"])
def test_flex_within_traced_code(mask, dynamic) -> None:
    seen = MASKS[mask]()
    slopes = alibi(torch.rand(4))

    def attention(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        return flex.segmented_attention(
            query, key, value, mask=seen, bias=slopes, softcap=2.0, return_lse=True
        )

    torch._dynamo.reset()
    inputs = draw(torch.float32)
    traced = torch.compile(attention, fullgraph=True, backend="eager", dynamic=dynamic)
    expected = whole_attention(*inputs, Call(seen, 0.25, 2.0, slopes))
    for actual, wanted in zip(traced(*inputs), expected, strict=True):
        assert torch.allclose(actual, wanted, atol=1e-5)


def test_flex_says_that_it_needs_cuda() -> None:
    inputs = draw(torch.float32)
    with pytest.raises(accel.BackendError, match=r"'flex' .* runs on cuda, not on cpu"):
        accel.segmented_attention(*inputs, backend="flex")


def test_row_bounds_of_a_causal_mask_make_the_same_function() -> None:
    """A causal mask is compared by its shift; written out as intervals it says the same."""
    sizes = Sizes(1, 1, 5, 9)
    seen = visibility(causal(), sizes, CPU)
    places = torch.meshgrid(*(torch.arange(n, dtype=torch.int32) for n in sizes), indexing="ij")
    written = seen._replace(intervals=row_bounds(seen, sizes, CPU), causal=False)
    one, other = (flex.mask_function(s, sizes, CPU)(*places) for s in (seen, written))
    assert torch.equal(one, other)
    assert sizes_of(torch.empty(1, 1, 5, 2), torch.empty(1, 1, 9, 2)) == sizes
