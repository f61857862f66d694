"""Merging attention states inside kernels."""

import math

import pytest
import torch

from accel_kernels.segmented_attention.state import merge, merge_all


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


def test_the_pairwise_merge_and_that_of_many_agree() -> None:
    a, b = state(), state()
    assert close(merge(*a, *b), merge_all([a[0], b[0]], [a[1], b[1]]))


def test_the_lse_may_be_wider_than_the_output() -> None:
    """As the CPU kernel keeps them."""
    (out_a, lse_a), (out_b, lse_b) = state(), state()
    out, lse = merge(out_a.float(), lse_a, out_b.float(), lse_b)
    assert out.dtype == torch.float32
    assert lse.dtype == torch.float64
    exact = merge(out_a, lse_a, out_b, lse_b)
    assert torch.equal(lse, exact[1])
    assert ((out - exact[0]).abs() <= 4 * 2**-24 * (out_a.abs() + out_b.abs())).all()


@pytest.mark.parametrize("shift", [1e4, -1e4])
def test_merge_does_not_overflow(shift) -> None:
    (out_a, lse_a), (out_b, lse_b) = state(), state()
    merged = merge(out_a, lse_a + shift, out_b, lse_b + shift)
    plain = merge(out_a, lse_a, out_b, lse_b)
    assert torch.allclose(merged[0], plain[0], rtol=1e-9)
    assert torch.allclose(merged[1] - shift, plain[1], rtol=1e-9)
