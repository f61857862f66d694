"""Tiles of the score matrix: told exactly, each visible score in one, nothing empty touched."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from accel_kernels.masks import (
    Sizes,
    as_mask,
    causal,
    documents,
    key_lengths,
    prefix,
    visibility,
    visible,
    window,
)
from accel_kernels.segmented_attention.tiles import (
    EMPTY,
    FULL,
    PARTIAL,
    Tile,
    tile_kinds,
    tiles_of,
)
from tests.kernels.mask_rules import SIMPLE, STRUCTURED, a_mask, some_sizes, table

CPU = torch.device("cpu")
SEEDS = st.integers(0, 2**32 - 1)
many = settings(deadline=None, max_examples=100)


def kinds_by_count(allowed: Tensor, rows: int, keys: int) -> Tensor:
    """`[B, tiles, tiles]` from the whole table, counting over all heads."""
    *_, t, s = allowed.shape
    grid = [
        [allowed[:, :, q : q + rows, k : k + keys].flatten(1) for k in range(0, s, keys)]
        for q in range(0, t, rows)
    ]
    return torch.stack(
        [
            torch.stack([tile.any(1).to(torch.uint8) + tile.all(1) for tile in line], 1)
            for line in grid
        ],
        1,
    )


@pytest.mark.parametrize("kinds", [STRUCTURED, SIMPLE], ids=["structured", "with dense"])
@many
@given(seed=SEEDS)
def test_kinds_of_tiles(kinds, seed) -> None:
    draw = random.Random(seed)
    sizes = some_sizes(draw)
    if not sizes.query_length or not sizes.key_length:
        sizes = sizes._replace(query_length=7, key_length=11)
    ruled = a_mask(draw, sizes, kinds=kinds)
    seen = visibility(ruled.mask, sizes, CPU)
    rows, keys = draw.randint(1, 6), draw.randint(1, 6)
    actual = tile_kinds(seen, sizes, rows, keys)
    expected = kinds_by_count(table(ruled.rule, sizes), rows, keys)
    assert actual.dtype == torch.uint8
    assert actual.shape[0] in (1, sizes.batch)
    actual = actual.expand(expected.shape)
    if seen.dense is None or seen.intervals is None:
        assert torch.equal(actual, expected)
        return
    # Where intervals meet a dense mask, a tile that both see in part may have nothing in common.
    unequal = actual != expected
    assert (actual[unequal] == PARTIAL).all()
    assert (expected[unequal] == EMPTY).all()


def covered(tiles: list[Tile], seen, sizes: Sizes) -> Tensor:
    """How many tiles let each score be seen, `[B, H, T, S]`; each tile must hold a visible one."""
    count = torch.zeros(sizes, dtype=torch.int64)
    for tile in tiles:
        assert 0 <= tile.q0 < tile.q1 <= sizes.query_length
        assert 0 <= tile.k0 < tile.k1 <= sizes.key_length
        entries = slice(None) if tile.batch is None else slice(tile.batch, tile.batch + 1)
        shape = (tile.q1 - tile.q0, tile.k1 - tile.k0)
        if tile.diagonal:
            assert shape[0] == shape[1]
            assert not tile.partial
            inside = torch.ones(shape, dtype=torch.bool).tril()
        elif tile.partial:
            whole = visible(seen, sizes, CPU, tile.rows, tile.keys)
            inside = whole if whole.shape[0] == 1 else whole[entries]
            if seen.dense is None:
                assert inside.any(), "an empty tile is in the list"
                assert not inside.all(), "a full tile is called partial"
        else:
            inside = torch.ones(shape, dtype=torch.bool)
        count[entries, :, tile.rows, tile.keys] += inside
    return count


@many
@given(seed=SEEDS, segment=st.integers(1, 14))
def test_each_visible_score_is_in_one_tile(seed, segment) -> None:
    draw = random.Random(seed)
    sizes = some_sizes(draw)
    ruled = a_mask(draw, sizes)
    seen = visibility(ruled.mask, sizes, CPU)
    tiles = tiles_of(seen, sizes, segment)
    assert torch.equal(covered(tiles, seen, sizes), table(ruled.rule, sizes).long())
    for tile in tiles:
        assert max(tile.q1 - tile.q0, tile.k1 - tile.k0) <= segment or seen.causal


@pytest.mark.parametrize("segment", [1, 3, 4, 100])
@pytest.mark.parametrize("queries", [0, 1, 4, 9])
@pytest.mark.parametrize("keys", [0, 1, 4, 9])
def test_tiles_of_a_causal_mask_need_no_table(queries, keys, segment) -> None:
    sizes = Sizes(1, 1, queries, keys)
    seen = visibility(causal(), sizes, CPU)
    tiles = tiles_of(seen, sizes, segment)
    assert not any(tile.partial for tile in tiles)
    area = sum((tile.q1 - tile.q0) * (tile.k1 - tile.k0) for tile in tiles)
    expected = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    assert torch.equal(covered(tiles, seen, sizes)[0, 0], expected.long())
    # Nothing is computed in vain but above the diagonal of the tiles on it.
    side = min(queries, keys, segment)
    assert area - int(expected.sum()) <= min(queries, keys) * (side - 1) // 2


@many
@given(seed=SEEDS)
def test_the_keys_of_a_row_come_in_ascending_order(seed) -> None:
    draw = random.Random(seed)
    sizes = Sizes(2, 1, 13, 11)
    seen = visibility(a_mask(draw, sizes).mask, sizes, CPU)
    reached = torch.zeros(2, 13, dtype=torch.int64)
    for tile in tiles_of(seen, sizes, draw.randint(1, 5)):
        entries = slice(None) if tile.batch is None else slice(tile.batch, tile.batch + 1)
        assert (reached[entries, tile.rows] <= tile.k0).all()
        reached[entries, tile.rows] = tile.k1


def count(mask, length: int, segment: int) -> tuple[int, int]:
    """Tiles touched, and how many of them in part."""
    sizes = Sizes(1, 4, length, length)
    tiles = tiles_of(visibility(mask, sizes, CPU), sizes, segment)
    return len(tiles), sum(tile.partial for tile in tiles)


def test_empty_tiles_are_not_touched() -> None:
    """Of 64 by 64 tiles, what each mask leaves."""
    assert count(None, 4096, 64) == (64 * 64, 0)
    # A causal mask has 64 tiles on the diagonal, and below each but the last a tall full one.
    assert count(causal(), 4096, 64) == (64 + 63, 0)
    # A window of 129 keys: its own tile, the one before and the edge of the one before that.
    assert count(window(128), 4096, 64) == (64 + 63 + 62, 64 + 62)
    assert count(window(128, sinks=1), 4096, 64)[0] == 64 + 63 + 62 + 61
    cuts = list(range(0, 4097, 256))
    assert count(documents(cuts), 4096, 64) == (16 * 4 * 4, 0)
    assert count(documents(cuts, within=causal()), 4096, 64) == (16 * 10, 64)
    assert count(key_lengths([1000]), 4096, 64) == (64 * 16, 64)
    assert count(causal() | prefix(64), 4096, 64)[0] == 64 * 65 // 2
    assert count(key_lengths([0]), 4096, 64) == (0, 0)
    block = torch.zeros(4096, 4096, dtype=torch.bool)
    block[:64, :64] = True
    assert count(as_mask(block), 4096, 64) == (1, 0)


def test_tiles_of_an_entry_are_its_own() -> None:
    """Entries of a batch that see different keys have tiles of their own; equal ones share them."""
    sizes = Sizes(2, 1, 4, 8)
    tiles = tiles_of(visibility(key_lengths([2, 8]), sizes, CPU), sizes, 4)
    assert [(tile.batch, tile.k0, tile.partial) for tile in tiles] == [
        (0, 0, True),
        (1, 0, False),
        (1, 4, False),
    ]
    shared = tiles_of(visibility(prefix(2), sizes, CPU), sizes, 4)
    assert [tile.batch for tile in shared] == [None]


def test_heads_share_tiles_of_a_dense_mask() -> None:
    allowed = torch.zeros(1, 3, 4, 4, dtype=torch.bool)
    allowed[:, :, :2, :2] = True  # every head
    allowed[:, 1, 2:, 2:] = True  # one of three
    sizes = Sizes(1, 3, 4, 4)
    kinds = tile_kinds(visibility(as_mask(allowed), sizes, CPU), sizes, 2, 2)
    assert kinds.tolist() == [[[FULL, EMPTY], [EMPTY, PARTIAL]]]


@pytest.mark.parametrize("sizes", [(0, 1, 3, 3), (1, 0, 3, 3), (1, 1, 0, 3), (1, 1, 3, 0)])
@pytest.mark.parametrize("mask", [None, causal(), window(1), key_lengths([3])], ids=str)
def test_nothing_has_no_tiles(sizes, mask) -> None:
    where = Sizes(*sizes)
    assert tiles_of(visibility(mask, where._replace(batch=1), CPU), where, 2) == []
