"""Which rank holds what, and what of a mask falls to which calls; no processes are needed."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from accel.attention.context_parallel.pairs import PairMasks, Whole, pairs_of
from accel.attention.context_parallel.sharding import Piece, SequenceLayout, apart, in_order
from accel_kernels.masks import (
    Causal,
    Dense,
    Mask,
    Sizes,
    causal,
    dense_visibility,
    documents,
    key_lengths,
    prefix,
    visibility,
    window,
)
from accel_kernels.segmented_attention.call import Bias, Call, Dropout

CPU = torch.device("cpu")
SIZES = Sizes(2, 3, 47, 47)


@pytest.mark.parametrize("length", [0, 1, 3, 63, 64, 101])
@pytest.mark.parametrize("ranks", [1, 2, 4, 7])
def test_layouts_hold_every_position_once(length: int, ranks: int) -> None:
    for layout in (
        SequenceLayout.contiguous(length, ranks),
        SequenceLayout.zigzag(length, ranks),
        SequenceLayout.zigzag(length, ranks, documents=[0, length // 3, length // 3, length]),
    ):
        held = torch.cat([layout.positions(rank) for rank in range(ranks)])
        assert torch.equal(held.sort().values, torch.arange(length))
        assert layout.length == length == sum(layout.lengths)
        assert layout.ranks == ranks
        assert max(layout.lengths) - min(layout.lengths) <= 4


def test_zigzag_gives_a_rank_an_early_and_a_late_chunk() -> None:
    layout = SequenceLayout.zigzag(16, 4)
    assert layout.pieces[0] == (Piece(0, 2), Piece(14, 16))
    assert layout.pieces[3] == (Piece(6, 10),)  # its two chunks touch
    assert str(layout) == "16 positions: 0..2+14..16, 2..4+12..14, 4..6+10..12, 6..10"


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_zigzag_balances_a_causal_mask_and_contiguous_does_not(ranks: int) -> None:
    def most_over_mean(layout: SequenceLayout) -> float:
        work = [float((layout.positions(rank) + 1).sum()) for rank in range(ranks)]
        return max(work) * ranks / sum(work)

    assert most_over_mean(SequenceLayout.zigzag(4096, ranks)) < 1.001
    assert most_over_mean(SequenceLayout.contiguous(4096, ranks)) > 1.4


@pytest.mark.parametrize("make", [SequenceLayout.contiguous, SequenceLayout.zigzag])
def test_groups_of_ranks_hold_what_their_ranks_hold(make) -> None:
    layout = make(101, 8)
    for count in (1, 2, 4, 8):
        grouped = layout.grouped(count)
        for group in range(8 // count):
            mine = [layout.positions(rank) for rank in range(group * count, (group + 1) * count)]
            assert torch.equal(grouped.positions(group), torch.cat(mine).sort().values)
    with pytest.raises(ValueError, match="8 ranks do not make groups of 3"):
        layout.grouped(3)


def test_a_layout_is_a_value() -> None:
    assert SequenceLayout.contiguous(9, 2) == SequenceLayout.of_lengths([5, 4])
    assert hash(SequenceLayout.contiguous(9, 2)) == hash(SequenceLayout.of_lengths([5, 4]))
    assert SequenceLayout.of_lengths([0, 0]).length == 0


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ((), "at least one rank"),
        ((((0, 4),), ((5, 9),)), "after position 4 comes the piece 5 to 9"),
        ((((0, 4),), ((3, 9),)), "after position 4 comes the piece 3 to 9"),
        ((((1, 4),),), "after position 0 comes the piece 1 to 4"),
        ((((4, 9), (0, 4)),), "pieces of rank 0 must ascend"),
        ((((0, 4), (6, 4)),), "must cover its sequence once"),
    ],
)
def test_pieces_that_do_not_cover_the_sequence_once(pieces, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SequenceLayout(pieces)


def test_numbers_that_make_no_layout() -> None:
    with pytest.raises(ValueError, match="a length of 0 or more"):
        SequenceLayout.zigzag(-1, 2)
    with pytest.raises(ValueError, match="a length of 0 or more"):
        SequenceLayout.contiguous(4, 0)
    with pytest.raises(ValueError, match="must be at least 0"):
        SequenceLayout.of_lengths([3, -1])
    with pytest.raises(ValueError, match="ascend from 0 to 9"):
        SequenceLayout.zigzag(9, 2, documents=[0, 5])


@pytest.mark.parametrize("length", [0, 1, 3, 29])
def test_parts_and_their_order_are_inverse(length: int) -> None:
    layout, whole = SequenceLayout.zigzag(length, 4), torch.randn(2, length, 3)
    parts = apart(whole, layout.pieces, 1)
    for rank, part in enumerate(parts):
        assert torch.equal(part, whole[:, layout.positions(rank)])
    assert torch.equal(in_order(parts, layout.pieces, 1), whole)


# --- pairs of pieces ------------------------------------------------------------------------------

MASKS = [
    None,
    causal(),
    causal("top_left"),
    window(5, 0),
    window(3, 4, sinks=2),
    documents([0, 9, 9, 20, 41], within=causal()),
    documents([0, 9, 20, 41]) & window(6, 0),
    causal() | prefix([4, 30]),
    key_lengths([0, 33]) & causal(),
    Dense(torch.rand(2, 1, 47, 47, generator=torch.Generator().manual_seed(1)) < 0.2) & causal(),
    Dense(torch.rand(1, 3, 1, 47, generator=torch.Generator().manual_seed(2)) < 0.5),
]
LAYOUTS = [
    SequenceLayout.zigzag(47, 4),
    SequenceLayout.contiguous(47, 3),
    SequenceLayout.of_lengths([0, 40, 0, 7]),
    SequenceLayout.zigzag(47, 2, documents=[0, 9, 20, 41, 47]),
    SequenceLayout.contiguous(47, 1),
]


def whole_of(mask: Mask | None, layout: SequenceLayout, **others) -> Whole:
    sizes = others.pop("sizes", SIZES)
    key_layout = others.pop("key_layout", layout)
    return Whole(sizes, layout, key_layout, Call(mask, 1.0, **others))


def seen_by_pairs(whole: Whole) -> tuple[Tensor, int]:
    """What all ranks' calls see together, and how often each is seen at most."""
    counts = torch.zeros(tuple(whole.sizes), dtype=torch.int64)
    for rank in range(whole.layout.ranks):
        masks = PairMasks(whole, rank, CPU)
        for distance in masks.distances:
            source = (rank - distance) % whole.layout.ranks
            rows, keys = whole.layout.positions(rank), whole.key_layout.positions(source)
            for pair in pairs_of(masks, whole, rank, source, 0):
                i, j = rows[pair.rows], keys[pair.keys]
                assert torch.equal(i, torch.arange(*pair.at[0]))
                assert torch.equal(j, torch.arange(*pair.at[1]))
                sizes = whole.sizes._replace(query_length=len(i), key_length=len(j))
                seen = dense_visibility(visibility(pair.call.mask, sizes, CPU), sizes, CPU)
                is_dense = pair.call.mask is not None and "dense" in pair.call.mask.kinds()
                assert seen.any() or is_dense, "a call of which nothing is visible"
                counts[:, :, i[:, None], j[None, :]] += seen.expand(tuple(sizes)).long()
    return counts > 0, int(counts.max())


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_calls_see_together_what_the_mask_shows_and_each_once(
    mask: Mask | None, layout: SequenceLayout
) -> None:
    seen, most = seen_by_pairs(whole_of(mask, layout))
    expected = dense_visibility(visibility(mask, SIZES, CPU), SIZES, CPU)
    assert torch.equal(seen, expected.expand(tuple(SIZES)))
    assert most == 1


@pytest.mark.parametrize("mask", [causal(), causal("top_left"), window(5, 2)], ids=str)
@pytest.mark.parametrize("keys", [1, 30, 70])
def test_keys_of_another_length_and_layout(mask: Mask, keys: int) -> None:
    sizes = Sizes(1, 1, 47, keys)
    key_layout = SequenceLayout.contiguous(keys, 4)
    whole = whole_of(mask, SequenceLayout.zigzag(47, 4), sizes=sizes, key_layout=key_layout)
    seen, _ = seen_by_pairs(whole)
    assert torch.equal(seen, dense_visibility(visibility(mask, sizes, CPU), sizes, CPU))


def test_on_the_diagonal_a_causal_mask_stays_one() -> None:
    """So that kernels take their own way; the diagonal is where others forget it."""
    whole = whole_of(causal(), SequenceLayout.zigzag(47, 4))
    masks = PairMasks(whole, 0, CPU)
    first, second = whole.layout.pieces[0]
    found = {(a, b): mask for a, b, mask in masks.of(0)}
    assert isinstance(found[first, first], Causal)
    assert isinstance(found[second, second], Causal)
    assert found[second, first] is None
    assert (first, second) not in found
    assert all(mask is None for _, _, mask in masks.of(1))


def test_keys_travel_only_as_far_as_anyone_sees() -> None:
    def distances(mask: Mask | None, layout: SequenceLayout) -> tuple[int, ...]:
        whole = whole_of(mask, layout, sizes=Sizes(1, 1, layout.length, layout.length))
        found = {PairMasks(whole, rank, CPU).distances for rank in range(layout.ranks)}
        assert len(found) == 1, "ranks would wait for one another"
        return found.pop()

    contiguous, zigzag = SequenceLayout.contiguous(64, 8), SequenceLayout.zigzag(64, 8)
    assert distances(None, contiguous) == tuple(range(8))
    assert distances(causal(), contiguous) == tuple(range(8))
    assert distances(window(8, 0), contiguous) == (0, 1)
    assert distances(window(8, 8), contiguous) == (0, 1, 7)
    assert distances(window(4, 0), zigzag) == (0, 1, 7)
    cuts = list(range(0, 65, 8))
    assert distances(documents(cuts), contiguous) == (0,)
    assert distances(documents([0, 64]) & key_lengths([0]), contiguous) == (0,)


def test_biases_and_dropout_are_counted_from_the_whole() -> None:
    sizes = Sizes(1, 1, 20, 30)
    bias = torch.arange(600.0).view(1, 1, 20, 30)
    whole = whole_of(
        None, SequenceLayout.zigzag(20, 2), sizes=sizes,
        key_layout=SequenceLayout.contiguous(30, 2), bias=Bias("dense", bias),
        dropout=Dropout(0.5, 7, sizes[1:]),
    )  # fmt: skip
    alibi = whole.call._replace(bias=Bias("alibi", torch.ones(1)))
    for rank, source in itertools.product(range(2), range(2)):
        masks = PairMasks(whole, rank, CPU)
        for pair in pairs_of(masks, whole, rank, source, head=3):
            rows, keys = pair.at
            assert pair.call.bias is not None
            assert torch.equal(pair.call.bias.tensor, bias[:, :, slice(*rows), slice(*keys)])
            assert pair.call.dropout is not None
            assert pair.call.dropout.first == (0, 3, rows.start, keys.start)
            assert pair.call.dropout.sizes == (1, 20, 30)
        for pair in pairs_of(masks, whole._replace(call=alibi), rank, source, head=0):
            rows, keys = pair.at
            assert pair.call.bias is not None
            # p(i) = i + 10 of the whole, counted from the pieces' beginnings
            assert pair.call.bias.shift == 10 + rows.start - keys.start
