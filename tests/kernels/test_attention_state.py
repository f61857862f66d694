"""Tiles and the merge of attention states."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from accel_kernels.segmented_attention.state import merge, tiles

lengths = st.integers(0, 40)


@given(lengths, lengths, st.integers(1, 50), st.booleans())
def test_tiles_cover_each_visible_score_once(queries, keys, segment, causal) -> None:
    seen = torch.zeros(queries, keys, dtype=torch.int64)
    for tile in tiles(queries, keys, segment, causal):
        assert 0 <= tile.q0 < tile.q1 <= queries
        assert 0 <= tile.k0 < tile.k1 <= keys
        assert tile.k1 - tile.k0 <= segment
        block = torch.ones(tile.q1 - tile.q0, tile.k1 - tile.k0, dtype=torch.int64)
        if tile.diagonal:
            assert block.shape[0] == block.shape[1]
            block = block.tril()
        seen[tile.q0 : tile.q1, tile.k0 : tile.k1] += block
    visible = torch.ones(queries, keys, dtype=torch.int64)
    assert torch.equal(seen, visible.tril(keys - queries) if causal else visible)


@given(lengths, lengths, st.integers(1, 50), st.booleans())
def test_the_first_tile_of_a_row_begins_at_key_0(queries, keys, segment, causal) -> None:
    """The CPU kernel writes instead of merging there; it must be each row's first tile."""
    touched: set[int] = set()
    for tile in tiles(queries, keys, segment, causal):
        rows = set(range(tile.q0, tile.q1))
        assert (tile.k0 == 0) == (not rows & touched)
        touched |= rows


def state(rows: int = 4, width: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    out = torch.randn(rows, width, dtype=torch.float64)
    return out, torch.randn(rows, dtype=torch.float64) * 10


def close(a: tuple, b: tuple) -> bool:
    return all(torch.allclose(x, y, rtol=1e-12, atol=1e-12) for x, y in zip(a, b, strict=True))


def test_merge_is_associative_and_commutative() -> None:
    a, b, c = state(), state(), state()
    assert close(merge(*merge(*a, *b), *c), merge(*a, *merge(*b, *c)))
    assert close(merge(*a, *b), merge(*b, *a))


def test_the_empty_state_is_an_exact_identity() -> None:
    a = state()
    empty = torch.zeros(4, 3, dtype=torch.float64), torch.full((4,), -math.inf).double()
    for merged in (merge(*a, *empty), merge(*empty, *a)):
        assert torch.equal(merged[0], a[0])
        assert torch.equal(merged[1], a[1])
    both = merge(*empty, *empty)
    assert (both[0] == 0).all()
    assert (both[1] == -math.inf).all()


def test_merge_is_differentiable_in_all_four_arguments() -> None:
    arguments = [t.requires_grad_() for t in (*state(), *state())]
    assert torch.autograd.gradcheck(merge, arguments)


@pytest.mark.parametrize("shift", [1e4, -1e4])
def test_merge_does_not_overflow(shift) -> None:
    (out_a, lse_a), (out_b, lse_b) = state(), state()
    merged = merge(out_a, lse_a + shift, out_b, lse_b + shift)
    plain = merge(out_a, lse_a, out_b, lse_b)
    assert torch.allclose(merged[0], plain[0], rtol=1e-9)
    assert torch.allclose(merged[1] - shift, plain[1], rtol=1e-9)
