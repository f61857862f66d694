"""Values and every gradient equal those of OpenCLIP's losses, which define the same thing."""

import pytest
import torch
from torch import Tensor

from accel_kernels.contrastive_loss.differentiable import sigmoid_sum, softmax_sums
from accel_kernels.contrastive_loss.pairing import ABSENT, Pairing
from tests.kernels.contrastive_cases import Case, draw
from tests.kernels.contrastive_peers import open_clip_losses

KERNELS = ["cpu", "reference"]
SIZES = [1, 3, 63, 1000]


def leaves(rows: int, scale: float, bias: float) -> list[Tensor]:
    inputs = draw(Case("", rows=rows, depth=24, scale=scale, bias=bias))
    return [tensor.clone().requires_grad_() for tensor in inputs[:4]]


def of_both(ours, theirs, given: list[Tensor]) -> None:
    """The same value and gradients in float64."""
    results = []
    for loss in (ours, theirs):
        value = loss(*given)
        results.append([value, *torch.autograd.grad(value, given)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)


def clip_like(backend: str, pairing: Pairing):
    def loss(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        reference = (scale * (x * y).sum(1)).detach()
        sums = softmax_sums(backend, x, y, scale, reference, reference, pairing)
        return ((sums.x_lse - sums.x_positive).mean() + (sums.y_lse - sums.y_positive).mean()) / 2

    return loss


@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("backend", KERNELS)
def test_softmax_is_clip_loss(backend, rows, scale) -> None:
    x, y, scale, _ = leaves(rows, scale, 0.0)
    samples = torch.arange(rows)
    of_both(
        clip_like(backend, Pairing(samples, samples)), open_clip_losses().ClipLoss(), [x, y, scale]
    )


@pytest.mark.parametrize("bias", [-10.0, 2.0])
@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("backend", KERNELS)
def test_sigmoid_is_siglip_loss(backend, rows, bias) -> None:
    samples = torch.arange(rows)
    pairing = Pairing(samples, samples)
    of_both(
        lambda x, y, scale, bias: sigmoid_sum(backend, x, y, scale, bias, pairing) / rows,
        open_clip_losses().SigLipLoss(),
        leaves(rows, 10.0, bias),
    )


@pytest.mark.parametrize("backend", KERNELS)
def test_absent_rows_are_as_if_they_were_not_in_the_batch(backend) -> None:
    """Both losses of a padded batch against theirs of the batch without padding."""
    x, y, scale, bias = leaves(40, 20.0, -5.0)
    there = torch.arange(40) % 3 != 1
    samples = torch.where(there, torch.arange(40), ABSENT)
    pairing = Pairing(samples, samples)

    def ours(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        reference = (scale * (x * y).sum(1)).detach()
        sums = softmax_sums(backend, x, y, scale, reference, reference, pairing)
        both = [sums.x_lse - sums.x_positive, sums.y_lse - sums.y_positive]
        total = sum(torch.where(there, one, 0.0).sum() for one in both) / 2
        return (total + sigmoid_sum(backend, x, y, scale, bias, pairing)) / there.sum()

    def theirs(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        losses = open_clip_losses()
        x, y = x[there], y[there]
        return losses.ClipLoss()(x, y, scale) + losses.SigLipLoss()(x, y, scale, bias)

    of_both(ours, theirs, [x, y, scale, bias])
