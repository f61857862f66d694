"""Unit rows: their values at every length, and gradients that stay finite."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from accel.alignment import normalized

LEAST = {torch.float32: 2.0**-103, torch.bfloat16: 2.0**-103, torch.float16: 2.0**-14}


def gradient(rows: torch.Tensor, above: torch.Tensor) -> torch.Tensor:
    leaf = rows.detach().requires_grad_()
    (normalized(leaf) * above).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_smallest_rows_have_a_direction_and_a_finite_gradient(dtype, device) -> None:
    """The true gradient grows as one over the length, and would be infinite here."""
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    tiny = torch.tensor([[3.0, -4.0, 0.0], [0.0, 1.0, 0.0]]).mul(smallest).to(dtype)
    assert (tiny != 0).any(1).all()
    above = torch.tensor([[1.0, 2.0, -3.0], [1.0, 1.0, 1.0]])
    on_chip = tiny.to(device.torch_device)
    found = normalized(on_chip.detach()).cpu()
    truth = torch.tensor([[0.6, -0.8, 0.0], [0.0, 1.0, 0.0]])
    torch.testing.assert_close(found, truth, atol=1e-6, rtol=0.0)
    # It is that of the same direction at the least length.
    got = gradient(on_chip, above.to(device.torch_device)).cpu().double()
    assert got.isfinite().all()
    exact = above.double() - truth.double() * (above * truth).double().sum(1, keepdim=True)
    largest = truth.double().abs().amax(1, keepdim=True)
    torch.testing.assert_close(got * LEAST[dtype], exact * largest, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("length", [2.0**-960, 1e-6, 1.0, 2.0**960])
def test_longer_rows_have_their_exact_gradient(length: float) -> None:
    rows, above = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, 5).double()
    leaf = rows.clone().requires_grad_()
    (F.normalize(leaf, dim=1, eps=0.0) * above).sum().backward()
    found = gradient(rows * length, above) * length
    torch.testing.assert_close(found, leaf.grad, rtol=1e-9, atol=1e-12)


def test_zero_and_not_finite_rows_beside_others() -> None:
    rows = torch.tensor([[0.0, 0.0], [1.0, 1.0], [math.nan, 1.0], [math.inf, 1.0]])
    assert normalized(rows).isnan().any(1).tolist() == [False, False, True, True]
    got = gradient(rows, torch.ones(4, 2))
    assert got[0].tolist() == [1.0, 1.0]
    assert got[:2].isfinite().all()


def test_gradients_of_gradients() -> None:
    rows = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(normalized, rows)
    assert torch.autograd.gradgradcheck(normalized, rows)
