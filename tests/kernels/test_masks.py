"""Every mask and combination against its rule, and what masks refuse."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_kernels import masks
from accel_kernels.masks import (
    RowIntervals,
    Sizes,
    as_mask,
    causal,
    dense_visibility,
    documents,
    key_lengths,
    prefix,
    row_bounds,
    visibility,
    visible,
    window,
)
from tests.kernels.mask_rules import SIMPLE, STRUCTURED, Ruled, a_mask, some_sizes, table

CPU = torch.device("cpu")
SEEDS = st.integers(0, 2**32 - 1)
many = settings(deadline=None, max_examples=100)
SIX = Sizes(2, 3, 4, 6)


def agrees(ruled: Ruled, sizes: Sizes) -> None:
    seen = visibility(ruled.mask, sizes, CPU)
    actual = dense_visibility(seen, sizes, CPU)
    assert actual.dtype == torch.bool
    for given_size, size in zip(actual.shape, sizes, strict=True):
        assert given_size in (1, size)
    assert torch.equal(actual.expand(sizes), table(ruled.rule, sizes)), ruled.mask


def is_well_formed(seen: masks.Visibility, sizes: Sizes) -> None:
    """Int32, within `[0, S]`, and disjoint within each row."""
    if seen.causal:
        assert seen.intervals is None
        assert seen.dense is None
        return
    if seen.intervals is None:
        return
    bounds = seen.intervals
    assert bounds.dtype == torch.int32
    assert bounds.shape[1:] in ((2, 1, sizes.query_length), (2, sizes.batch, sizes.query_length))
    assert ((bounds >= 0) & (bounds <= sizes.key_length)).all()
    at = torch.arange(sizes.key_length)
    low, high = bounds.unsqueeze(-1).unbind(1)
    assert (((at >= low) & (at < high)).sum(0) <= 1).all()


@pytest.mark.parametrize("kind", SIMPLE, ids=lambda kind: kind.__name__)
@many
@given(seed=SEEDS)
def test_each_mask_is_its_rule(kind, seed) -> None:
    draw = random.Random(seed)
    sizes = some_sizes(draw)
    ruled = kind(draw, sizes)
    agrees(ruled, sizes)
    is_well_formed(visibility(ruled.mask, sizes, CPU), sizes)


@many
@given(seed=SEEDS)
def test_combinations_are_the_combination_of_rules(seed) -> None:
    draw = random.Random(seed)
    sizes = some_sizes(draw)
    ruled = a_mask(draw, sizes, depth=3)
    agrees(ruled, sizes)
    is_well_formed(visibility(ruled.mask, sizes, CPU), sizes)


@many
@given(seed=SEEDS)
def test_structured_combinations_never_become_dense(seed) -> None:
    draw = random.Random(seed)
    sizes = some_sizes(draw)
    ruled = a_mask(draw, sizes, depth=3, kinds=STRUCTURED)
    seen = visibility(ruled.mask, sizes, CPU)
    assert seen.dense is None
    is_well_formed(seen, sizes)
    written = RowIntervals(row_bounds(seen, sizes, CPU))
    agrees(Ruled(written, ruled.rule), sizes)
    other = a_mask(draw, sizes, depth=1)
    agrees(Ruled(written & other.mask, lambda *at: ruled.rule(*at) and other.rule(*at)), sizes)
    agrees(Ruled(other.mask | written, lambda *at: ruled.rule(*at) or other.rule(*at)), sizes)


@many
@given(seed=SEEDS)
def test_a_tile_is_the_part_of_the_whole(seed) -> None:
    draw = random.Random(seed)
    sizes = Sizes(2, 3, 13, 9)
    ruled = a_mask(draw, sizes)
    seen = visibility(ruled.mask, sizes, CPU)
    q0, q1 = sorted(draw.randint(0, 13) for _ in range(2))
    k0, k1 = sorted(draw.randint(0, 9) for _ in range(2))
    tile = visible(seen, sizes, CPU, slice(q0, q1), slice(k0, k1))
    expected = table(ruled.rule, sizes)[:, :, q0:q1, k0:k1]
    assert torch.equal(tile.expand(expected.shape), expected)


def test_no_mask_sees_everything() -> None:
    seen = visibility(None, SIX, CPU)
    assert seen == (None, None, False)
    assert dense_visibility(seen, SIX, CPU).expand(SIX).all()


@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (1, 6), (6, 1), (3, 4)])
def test_a_causal_mask_stays_a_word(queries, keys) -> None:
    """At the bottom right always; at the top left where the two are one."""
    sizes = Sizes(1, 1, queries, keys)
    assert visibility(causal(), sizes, CPU).causal
    assert visibility(causal("top_left"), sizes, CPU).causal == (queries == keys)


def test_intervals_are_few() -> None:
    """What kernels pay for: one interval, two with sinks or a prefix, none for what is covered."""
    sizes = Sizes(1, 1, 100, 100)

    def count(mask: masks.Mask) -> int:
        bounds = visibility(mask, sizes, CPU).intervals
        assert bounds is not None
        return bounds.shape[0]

    cuts = [0, 30, 31, 100]
    assert count(window(9)) == count(documents(cuts, within=causal())) == 1
    assert count(causal() | prefix(10)) <= 2
    assert count(window(9, sinks=4)) == 2
    assert count(window(9, sinks=4) & documents(cuts)) == 2
    assert count(window(200, sinks=4) & documents(cuts)) == 1


def test_documents_within_is_documents_and_where_boundaries_are_equal() -> None:
    sizes, cuts = Sizes(1, 1, 9, 9), [0, 2, 2, 7, 9]
    for inner in (causal(), window(1), window(0, 1)):
        one = visibility(documents(cuts, within=inner), sizes, CPU)
        other = visibility(documents(cuts) & inner, sizes, CPU)
        assert torch.equal(dense_visibility(one, sizes, CPU), dense_visibility(other, sizes, CPU))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_a_tensor_may_stand_on_either_side(dtype) -> None:
    allowed = torch.rand(4, 6) < 0.5
    for mask in (allowed & causal(), causal() & allowed):
        actual = dense_visibility(visibility(mask, SIX, CPU), SIX, CPU)
        assert torch.equal(actual[0, 0], allowed & torch.ones(4, 6, dtype=torch.bool).tril(2))
    for mask in (allowed | causal(), causal() | allowed):
        actual = dense_visibility(visibility(mask, SIX, CPU), SIX, CPU)
        assert torch.equal(actual[0, 0], allowed | torch.ones(4, 6, dtype=torch.bool).tril(2))
    lengths = torch.tensor([1, 5], dtype=dtype)
    actual = dense_visibility(visibility(key_lengths(lengths), SIX, CPU), SIX, CPU)
    assert torch.equal(actual[:, 0, 0], torch.arange(6) < lengths[:, None])


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: causal("bottom right"), ValueError, "align must be one of bottom_right, top_left"),
        (lambda: window(1, align="left"), ValueError, "align must be one of"),
        (lambda: window(-1), ValueError, "window's left must be at least 0, not -1"),
        (lambda: window(1, -1), ValueError, "window's right must be at least 0, not -1"),
        (lambda: window(1.0), TypeError, "window's left must be an integer, not 1.0"),
        (lambda: window(True), TypeError, "window's left must be an integer, not True"),
        (lambda: window(1, sinks=-2), ValueError, "window's sinks must be at least 0, not -2"),
        (lambda: window(1, sinks=None), TypeError, "window's sinks must be an integer, not None"),
        (lambda: prefix(-3), ValueError, "prefix's length must be at least 0, not -3"),
        (lambda: prefix(2.0), TypeError, "prefix's lengths must be integers"),
        (lambda: prefix(False), TypeError, "prefix's lengths must be integers"),
        (lambda: prefix([1, -1]), ValueError, "prefix's lengths must be at least 0, not -1"),
        (lambda: prefix(torch.tensor([1.0])), ValueError, "one dimension of integers, not"),
        (lambda: prefix(torch.tensor([True])), ValueError, "one dimension of integers, not"),
        (lambda: prefix(torch.tensor(3)), ValueError, "one dimension of integers, not"),
        (lambda: prefix(torch.tensor([3, -1])), ValueError, "must be at least 0, not -1"),
        (lambda: key_lengths([1, 2.0]), TypeError, "key_lengths must be integers"),
        (lambda: key_lengths(4), TypeError, "key_lengths must be integers"),
        (lambda: key_lengths([-1]), ValueError, "key_lengths must be at least 0, not -1"),
        (lambda: documents([0, 5, 3]), ValueError, "cu_seqlens must not descend"),
        (lambda: documents(torch.tensor([0, 5, 3])), ValueError, "cu_seqlens must not descend"),
        (lambda: documents([0]), ValueError, "cu_seqlens needs at least two boundaries, not 1"),
        (lambda: documents([-1, 4]), ValueError, "cu_seqlens must be at least 0, not -1"),
        (lambda: documents([0, 4.0]), TypeError, "cu_seqlens must be integers"),
        (lambda: documents(None), TypeError, "cu_seqlens must be integers"),
        (lambda: documents([0, 4], [0, 2, 4]), ValueError, "cu_seqlens has 2 and cu_seqlens_k 3"),
        (lambda: documents([0, 2, 4], [0, 3, 1]), ValueError, "cu_seqlens_k must not descend"),
        (lambda: documents([0, 4], within="causal"), TypeError, "within must be a mask such as"),
        (lambda: documents([0, 4], within=prefix(1)), ValueError, "only causal and window"),
        (lambda: documents([0, 4], within=causal() | prefix(1)), ValueError, "only causal and"),
        (lambda: as_mask(torch.zeros(3, 3)), TypeError, "a mask tensor is bool.*goes into bias="),
        (lambda: as_mask(torch.ones(3, dtype=torch.bool)), ValueError, r"\[T, S\] to \[B, H, T"),
        (lambda: as_mask(True), TypeError, "a mask is one of causal, window, documents, prefix"),
        (lambda: causal() & 1, TypeError, "a mask is one of causal, window, documents, prefix"),
        (lambda: causal() | torch.zeros(3, 3), TypeError, "a mask tensor is bool"),
        (lambda: RowIntervals(torch.zeros(0, 2, 1, 4, dtype=torch.int32)), ValueError, "int32"),
        (lambda: RowIntervals(torch.zeros(1, 2, 1, 4)), ValueError, r"int32 \[m"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_no_mask_can_be(build, error, message) -> None:
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (documents([0, 5]), "cu_seqlens ends at 5, beyond the length 4"),
        (documents([0, 5]) & causal(), "cu_seqlens ends at 5, beyond the length 4"),
        (documents([0, 4], [0, 7]), "cu_seqlens_k ends at 7, beyond the length 6"),
        (prefix(1) | documents([0, 4], [0, 7]), "cu_seqlens_k ends at 7, beyond the length 6"),
        (key_lengths([1, 2, 3]), "key_lengths has 3 lengths for a batch of 2"),
        (prefix([1, 2, 3]) & causal(), "prefix has 3 lengths for a batch of 2"),
        (as_mask(torch.ones(4, 5, dtype=torch.bool)), "S must be 1 or 6, not 5"),
        (as_mask(torch.ones(3, 1, 4, 6, dtype=torch.bool)), "B must be 1 or 2, not 3"),
        (as_mask(torch.ones(2, 4, 6, dtype=torch.bool)) | causal(), "H must be 1 or 3, not 2"),
        (
            as_mask(torch.ones(4, 6, dtype=torch.bool, device="meta")),
            "on meta and the query on cpu; move it",
        ),
        (RowIntervals(torch.zeros(1, 2, 1, 5, dtype=torch.int32)), "do not fit 4 queries"),
        (RowIntervals(torch.zeros(1, 2, 1, 1, dtype=torch.int32)) & causal(), "do not fit"),
        (RowIntervals(torch.zeros(1, 2, 3, 4, dtype=torch.int32)) | causal(), "do not fit"),
    ],
    ids=str,
)
def test_what_does_not_fit_the_call(mask, message) -> None:
    with pytest.raises(ValueError, match=message):
        visibility(mask, SIX, CPU)


def test_bounds_stay_within_the_keys_where_values_are_not_checked() -> None:
    """A kernel reads what the bounds say: on a device they must not lead beyond the keys."""
    mask = documents([0, 2, 4])
    mask.cu_seqlens = torch.tensor([0, 2, 9])
    mask.cu_seqlens_k = torch.tensor([0, 5, 9])
    is_well_formed(mask.resolve(SIX, CPU), SIX)


@pytest.mark.parametrize(
    "mask",
    [
        causal("top_left"),
        window(2, 1, 1),
        documents([0, 2, 4], within=causal()),
        documents(torch.tensor([0, 2, 4])),
        prefix(2) | causal(),
        key_lengths([2, 3]),
    ],
    ids=str,
)
def test_masks_of_numbers_are_resolved_once(mask) -> None:
    first = visibility(mask, SIX, CPU)
    assert visibility(mask, SIX, CPU).intervals is first.intervals
    other = visibility(mask, SIX._replace(query_length=5, key_length=8), CPU)
    assert other.intervals is not first.intervals
    assert other.intervals.shape[-1] == 5


def test_no_two_masks_share_a_key() -> None:
    different = [
        causal(),
        causal("top_left"),
        window(1),
        window(1, 1),
        window(1, 0, 1),
        window(None),
        window(1, align="top_left"),
        prefix(2),
        prefix([2]),
        prefix([2, 3]),
        documents([0, 2]),
        documents([0, 2], [0, 3]),
        documents([0, 2], within=causal()),
        causal() & prefix(2),
        causal() | prefix(2),
        window(1) & prefix(2),
    ]
    keys = [mask.key() for mask in different]
    assert None not in keys
    assert len(set(keys)) == len(keys)


def test_the_memory_of_masks_is_bounded(monkeypatch) -> None:
    monkeypatch.setattr(masks, "_resolved", {})
    for length in range(3 * masks._RESOLVED_SIZE):
        visibility(window(1), Sizes(1, 1, length, 5), CPU)
        assert len(masks._resolved) <= masks._RESOLVED_SIZE


@pytest.mark.parametrize(
    ("tensor", "make"),
    [
        (torch.tensor([1, 2]), key_lengths),
        (torch.tensor([1, 2]), lambda lengths: prefix(lengths) | window(0)),
        (torch.zeros(4, 6, dtype=torch.bool), as_mask),
        (torch.zeros(1, 2, 1, 4, dtype=torch.int32), RowIntervals),
    ],
    ids=["key_lengths", "prefix", "dense", "row intervals"],
)
def test_a_mask_that_holds_a_tensor_follows_it(tensor, make) -> None:
    mask = make(tensor)
    assert mask.key() is None
    before = dense_visibility(visibility(mask, SIX, CPU), SIX, CPU).clone()
    if tensor.dtype == torch.bool:
        tensor.logical_not_()
    elif tensor.dim() == 4:
        tensor[:, 1] += 3
    else:
        tensor += 1
    after = dense_visibility(visibility(mask, SIX, CPU), SIX, CPU)
    assert not torch.equal(before, after)


def test_what_inference_mode_resolved_can_be_saved_for_a_backward(monkeypatch) -> None:
    monkeypatch.setattr(masks, "_resolved", {})
    mask = window(1)
    with torch.inference_mode():
        visibility(mask, SIX, CPU)
    assert not visibility(mask, SIX, CPU).intervals.is_inference()


def test_what_fake_tensors_resolved_is_not_remembered(monkeypatch) -> None:
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    monkeypatch.setattr(masks, "_resolved", {})
    mask = window(1) & prefix(3)
    with FakeTensorMode():
        visibility(mask, SIX, CPU)
    assert not isinstance(visibility(mask, SIX, CPU).intervals, FakeTensor)


def test_what_torch_func_resolved_is_not_remembered(monkeypatch) -> None:
    monkeypatch.setattr(masks, "_resolved", {})
    mask = window(1) & prefix(3)

    def resolving(x):
        visibility(mask, SIX, CPU)
        return x.sum()

    torch.func.grad(resolving)(torch.ones(2))
    torch.func.vmap(resolving)(torch.ones(2, 2))
    assert visibility(mask, SIX, CPU).intervals.data_ptr()  # a wrapper has none


LENGTHS = torch.tensor([3, 5])
CUTS = torch.tensor([0, 3, 4])


@pytest.mark.parametrize(
    "build",
    [
        causal,
        lambda: causal("top_left"),
        lambda: window(2, 1, 1),
        lambda: documents(CUTS, within=causal()),
        lambda: documents([0, 3, 4], [0, 2, 6]),
        lambda: documents(CUTS) & causal(),
        lambda: prefix(2) | causal(),
        lambda: key_lengths([3, 5]) & prefix([4]),
        lambda: key_lengths(LENGTHS) & (window(1, sinks=1) | prefix(LENGTHS)),
        # Dynamo takes a bare tensor beside `&` for a tensor's operation, hence `as_mask`.
        lambda: causal() & as_mask((torch.arange(6) < 4).unsqueeze(0)),
        lambda: as_mask((torch.arange(6) < 2).unsqueeze(0)) | window(1),
    ],
    ids=range(11),
)
@pytest.mark.parametrize("dynamic", [False, True])
def test_masks_trace(build, dynamic) -> None:
    """Made and resolved inside a traced function, in one graph, for any length if asked."""

    def function(query, key):
        sizes = Sizes(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
        return (
            dense_visibility(visibility(build(), sizes, query.device), sizes, query.device) & True
        )

    torch._dynamo.reset()
    traced = torch.compile(function, fullgraph=True, backend="eager", dynamic=dynamic)
    for queries, keys in ((4, 6), (5, 6), (7, 6)):
        query, key = torch.zeros(2, 3, queries, 8), torch.zeros(2, 3, keys, 8)
        assert torch.equal(traced(query, key), function(query, key))


@pytest.mark.parametrize("dynamic", [False, True])
def test_masks_made_before_trace(dynamic) -> None:
    torch._dynamo.reset()

    def function(query, mask):
        sizes = Sizes(2, 1, query.shape[2], 6)
        return dense_visibility(visibility(mask, sizes, query.device), sizes, query.device)

    traced = torch.compile(function, fullgraph=True, backend="eager", dynamic=dynamic)
    for mask in (causal(), window(1) | prefix(LENGTHS), documents([0, 1, 4]), key_lengths([1, 6])):
        for queries in (4, 9):
            query = torch.zeros(2, 1, queries, 8)
            assert torch.equal(traced(query, mask), function(query, mask))
