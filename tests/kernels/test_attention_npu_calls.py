"""Which calls of the vendor's operator a mask becomes; see `test_attention_npu_fusion`."""

import math

import pytest
import torch

from accel.testing.cases import attention_formula
from accel_kernels import masks
from accel_kernels.masks import Sizes, as_mask, causal, documents, key_lengths, prefix, window
from accel_kernels.segmented_attention.call import Call
from accel_kernels.segmented_attention.npu_fusion import job as npu_job
from accel_kernels.segmented_attention.npu_fusion import segmented_attention as attention
from accel_kernels.segmented_attention.npu_fusion.calls import (
    BAND,
    BOTTOM_RIGHT,
    TOP_LEFT,
    UNLIMITED,
    WHOLE_MASK,
)
from accel_kernels.segmented_attention.npu_fusion.job import Job
from accel_kernels.segmented_attention.npu_fusion.limits import LIMITS, Limits, within_limits
from accel_kernels.segmented_attention.npu_fusion.pieces import Piece, tightened
from tests.kernels.npu_chip import FORWARD, GRADIENT, Chip, visible


@pytest.fixture(autouse=True)
def chip(monkeypatch):
    return Chip().install(monkeypatch)


def ends(*numbers, batch=2):
    """Of the sequences of all entries, one after the other."""
    whole = [entry * numbers[-1] + n for entry in range(batch) for n in numbers]
    return {"actual_seq_qlen": whole, "actual_seq_kvlen": whole}


STRUCTURES = {
    "none": (None, 50, 50, [{}]),
    "causal": (causal(), 50, 50, [{"sparse_mode": BOTTOM_RIGHT}]),
    "causal, more keys": (causal(), 20, 50, [{"sparse_mode": BOTTOM_RIGHT}]),
    "causal, more queries": (causal(), 50, 20, [{"sparse_mode": BOTTOM_RIGHT}]),
    # what is above the last key is cut off, so that the corners agree
    "causal top left": (causal("top_left"), 50, 20, [{"sparse_mode": TOP_LEFT}]),
    # keys that nobody sees are cut off
    "causal top left, more keys": (causal("top_left"), 20, 50, [{"sparse_mode": BOTTOM_RIGHT}]),
    "window": (
        window(9, 2), 50, 50, [{"sparse_mode": BAND, "pre_tockens": 9, "next_tockens": 2}],
    ),
    "window before": (
        window(9, None), 50, 70,
        [{"sparse_mode": BAND, "pre_tockens": 9, "next_tockens": UNLIMITED}],
    ),
    "documents": (
        documents([0, 20, 50], within=causal()), 50, 50,
        [{"sparse_mode": BOTTOM_RIGHT, **ends(20, 50)}],
    ),
    "whole documents": (documents([0, 20, 50]), 50, 50, [ends(20, 50)]),
    # a query that is alone sees all of its document, and is causal too
    "documents, one of a query": (
        documents([0, 20, 49, 50], within=causal()), 50, 50,
        [{"sparse_mode": BOTTOM_RIGHT, **ends(20, 49, 50)}],
    ),
    # what more queries than keys do not see parts them
    "documents of other lengths": (
        documents([0, 20, 50], [0, 30, 40], within=causal()), 50, 40,
        [{"sparse_mode": BOTTOM_RIGHT}] * 2,
    ),
    "prefix": (prefix(7) | causal(), 50, 50, [{}, {"sparse_mode": BOTTOM_RIGHT}]),
    # the same the other way around: causal, and a small corner above the diagonal
    "causal with prefix": (
        causal() | prefix(7), 50, 50,
        [
            {"sparse_mode": BOTTOM_RIGHT},
            {"sparse_mode": BAND, "pre_tockens": 0, "next_tockens": UNLIMITED},
        ],
    ),
    "key lengths": (key_lengths([30, 7]), 50, 50, [{}] * 2),
    "equal key lengths": (key_lengths([30, 30]), 50, 50, [{}]),
    "dense": (as_mask(torch.ones(50, 50).tril(-3).bool()), 50, 50, [{"sparse_mode": WHOLE_MASK}]),
}  # fmt: skip


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_mask_is_the_calls_that_it_should_be(name, chip) -> None:
    """One for each band, in both directions, with the mask that the mode needs and the scale."""
    mask, queries, keys, expected = STRUCTURES[name]
    leaves = [torch.randn(2, 2, t, 8, requires_grad=True) for t in (queries, keys, keys)]
    attention(*leaves, mask=mask, scale=0.3)[0].sum().backward()
    for operator, scale in ((FORWARD, "scale"), (GRADIENT, "scale_value")):
        asked = chip.arguments(operator)
        told = ("sparse_mode", "pre_tockens", "next_tockens", *ends(1))
        assert [{k: a[k] for k in told if k in a} for a in asked] == expected
        for arguments in asked:
            assert arguments[scale] == 0.3
            # Without a mask the operator ignores the mode, and computes everything.
            assert ("atten_mask" in arguments) == ("sparse_mode" in arguments)


def test_the_compressed_mask_is_made_once(chip) -> None:
    query = torch.randn(1, 1, 9, 8, requires_grad=True)
    for mask in (causal(), window(3), causal("top_left")):
        attention(query, query, query, mask=mask)[0].sum().backward()
    given = [a["atten_mask"] for _, _, a in chip.calls]
    assert len(given) == 6
    assert len({mask.data_ptr() for mask in given}) == 1
    assert torch.equal(given[0], torch.ones(2048, 2048).triu(1).bool())


@pytest.mark.parametrize("queries", [1, 50])
@pytest.mark.parametrize("limits", [LIMITS, Limits(7, 2, 1, 10_000), Limits(13, 1, 2, 300)])
@pytest.mark.parametrize("segment", [None, 9])
def test_pieces_cover_what_is_visible_once_and_within_limits(queries, limits, segment) -> None:
    sizes, width, groups = Sizes(2, 6, queries, 50), 4, 2
    for name, (mask, *_) in STRUCTURES.items():
        if mask is not None and (mask.kinds() & {"dense", "documents"}):
            mask = as_mask(torch.rand(2, 1, queries, 50) < 0.3)
        query, key = torch.randn(2, 6, queries, width), torch.randn(2, 3, 50, width)
        job = Job(query, key, key, Call(mask, 1.0, segment_size=segment))
        count = torch.zeros(tuple(sizes), dtype=torch.int64)
        for whole in job._pieces():
            for piece in within_limits(whole, groups, width, segment, limits):
                at = (slice(*piece.batch), slice(*piece.heads), piece.rows, piece.keys)
                sees = job.seen(piece)
                count[at] += 1 if sees is None else sees
                batch, heads, rows, keys = count[at].shape
                assert heads <= limits.heads
                assert batch <= limits.batch
                assert max(rows, keys) <= limits.length
                assert keys <= (segment or keys)
                work = batch * heads * rows * piece.visible_keys * width
                assert work <= limits.work or (batch, heads, rows, keys) == (1, 1, 1, 1)
                # Whole groups of heads, or heads of one group.
                first, last = piece.heads
                assert (first % groups == last % groups == 0) or first // groups == (
                    last - 1
                ) // groups
                if not piece.masked and sees is not None:
                    assert sees.any(-1).all()
                    assert sees.any(-2).all()
        wanted = torch.ones(tuple(sizes), dtype=torch.bool)
        if mask is not None:
            wanted = visible(mask, sizes).expand(tuple(sizes))
        assert torch.equal(count, wanted.long()), name


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("name", ["none", "causal", "window", "documents", "key lengths"])
def test_calls_within_tiny_limits_give_the_same(name, heads, chip, monkeypatch) -> None:
    """Batch, heads within their groups, queries and keys are all cut, in both directions."""
    mask = STRUCTURES[name][0]
    leaves = [torch.randn(2, h, 50, 4, dtype=torch.float64, requires_grad=True) for h in (6, 3, 3)]

    def run():
        found = attention(*leaves, mask=mask, return_lse=True)
        return *found, *torch.autograd.grad(found, leaves, [torch.ones_like(t) for t in found])

    whole, once = run(), len(chip.calls)
    monkeypatch.setattr(npu_job, "LIMITS", Limits(30, heads, 1, 4_000))
    torch.testing.assert_close(run(), whole)
    assert len(chip.calls) - once > 6 * once


def test_a_million_tokens_are_planned_without_touching_them() -> None:
    million = 1_048_576
    whole = Piece(0, million, 0, million, (0, 1), (0, 4), upper=0)
    parts = list(within_limits(whole, 1, 128, None))
    assert 4 < len(parts) < 64
    for part in parts:
        area = (part.q1 - part.q0) * (part.k1 - part.k0) * (part.heads[1] - part.heads[0])
        assert area * 128 <= LIMITS.work
    # A window is as long, and little work: only the greatest length cuts it.
    band = tightened(whole._replace(lower=-1023))
    assert band is not None
    assert len(list(within_limits(band, 1, 128, None))) == 3


@pytest.mark.parametrize("within", [None, causal()], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_many_documents_share_calls(within, batch, chip) -> None:
    """As many as one call may have, and no call has more; with gradients."""
    bounds = list(range(0, 1204, 3))
    leaves = [
        torch.randn(batch, heads, 1203, 4, dtype=torch.float64, requires_grad=True)
        for heads in (2, 1, 1)
    ]
    out, lse = attention(*leaves, mask=documents(bounds, within=within), return_lse=True)
    grad, more = torch.randn_like(out), torch.randn_like(lse)
    found = torch.autograd.grad([out, lse], leaves, [grad, more])
    numbers = [len(a["actual_seq_qlen"]) for a in chip.arguments()]
    assert sum(numbers) == 401 * batch
    assert len(numbers) == (1 if batch == 1 else 2)
    assert max(numbers) <= 1000
    # Each document is an entry of its own.
    query, key, value = (
        leaf.unflatten(2, (401, 3)).transpose(1, 2).flatten(0, 1) for leaf in leaves
    )
    key, value = (t.repeat_interleave(2, 1) for t in (key, value))
    scores = query @ key.mT / 2
    if within is not None:
        scores = scores.masked_fill(torch.ones(3, 3).triu(1).bool(), -math.inf)
    split = [scores.softmax(-1) @ value, scores.logsumexp(-1)]
    expected = [part.unflatten(0, (batch, 401)).transpose(1, 2).flatten(2, 3) for part in split]
    torch.testing.assert_close([out, lse], expected)
    wanted = torch.autograd.grad(expected, leaves, [grad, more])
    torch.testing.assert_close(found, wanted)


def test_documents_of_two_kinds_do_not_share_a_call(chip) -> None:
    """The first sees all of itself, the second is causal."""
    low = torch.tensor([0] * 5 + [5] * 7)
    high = torch.cat([torch.full((5,), 5), torch.arange(6, 13)])
    mask = masks.RowIntervals(torch.stack([low, high]).int().view(1, 2, 1, 12))
    query = torch.randn(1, 1, 12, 4, dtype=torch.float64)
    out = attention(query, query, query, mask=mask)[0]
    allowed = visible(mask, Sizes(1, 1, 12, 12))
    torch.testing.assert_close(out, attention_formula(query, query, query, seen=allowed))
    assert [a.get("sparse_mode") for a in chip.arguments()] == [None, BOTTOM_RIGHT]


def test_arbitrary_row_intervals_are_tiles(chip) -> None:
    low = torch.randint(0, 300, (1, 1, 1, 300), dtype=torch.int32)
    bounds = torch.cat([low, (low + 40).clamp(max=300)], 1)
    query, key, value = (torch.randn(1, 1, 300, 8, dtype=torch.float64) for _ in range(3))
    mask = masks.RowIntervals(bounds)
    out = attention(query, key, value, mask=mask)[0]
    (asked,) = chip.arguments()
    assert asked["sparse_mode"] == WHOLE_MASK
    allowed = visible(mask, Sizes(1, 1, 300, 300))
    torch.testing.assert_close(out, attention_formula(query, key, value, seen=allowed))


def test_dense_masks_come_in_tiles_and_empty_ones_are_not_touched(chip) -> None:
    allowed = torch.zeros(2100, 4200, dtype=torch.bool)
    allowed[:2048, :2048] = torch.rand(2048, 2048) < 0.5
    allowed[2048:, 2048:] = True
    query, key, value = (torch.randn(1, 1, t, 4) for t in (2100, 4200, 4200))
    out = attention(query, key, value, mask=as_mask(allowed))[0]
    shapes = [(tensors[0].shape[2], tensors[1].shape[2]) for _, tensors, _ in chip.calls]
    assert shapes == [(2048, 2048), (52, 2152)]
    assert [a.get("sparse_mode") for a in chip.arguments()] == [WHOLE_MASK, None]
    assert chip.arguments()[0]["inner_precise"] == 2
    torch.testing.assert_close(out, attention_formula(query, key, value, seen=allowed))


def test_grouped_heads_are_not_repeated(chip) -> None:
    query, key = torch.randn(1, 8, 9, 4), torch.randn(1, 2, 9, 4)
    attention(query, key, key, mask=causal())
    ((_, tensors, _),) = chip.calls
    assert tensors[1].shape == (1, 2, 9, 4)
    assert tensors[3:] == (8, "BNSD")
