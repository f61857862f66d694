"""The reference: the dense formula in plain PyTorch, any device; exact in float64.

Whole `[N, M]` matrices: for small batches, and to compare with.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from accel_kernels.contrastive_loss.arguments import accumulation_dtype
from accel_kernels.contrastive_loss.pairing import ABSENT, Pairing
from accel_kernels.contrastive_loss.passes import (
    InputGradients,
    Passes,
    SoftmaxGradients,
    SoftmaxSums,
)


class Relations(NamedTuple):
    """A pairing as matrices, bool `[N, M]`.

    Attributes:
        positive: Pairs that belong together.
        x_counts: Pairs that count for the row as anchor; positives always do.
        y_counts: The same for the column.
    """

    positive: Tensor
    x_counts: Tensor
    y_counts: Tensor


def relations(pairing: Pairing) -> Relations:
    """Every pair of rows, looked at: see `Pairing` for the rules."""
    x_sample, y_sample = pairing.x_sample[:, None], pairing.y_sample[None, :]
    present = (x_sample != ABSENT) & (y_sample != ABSENT)
    positive = present & (x_sample == y_sample)
    counts = present
    if pairing.x_group is not None and pairing.y_group is not None:
        x_group, y_group = pairing.x_group[:, None], pairing.y_group[None, :]
        same = present & (x_group == y_group) & (x_group >= 0) & ~positive
        if pairing.duplicates == "positive":
            positive = positive | same
        elif pairing.duplicates == "ignore":
            counts = present & ~same
    if pairing.guide is None:
        return Relations(positive, counts, counts)
    guide = pairing.guide
    wide = accumulation_dtype(guide.x.dtype)
    similarity = guide.x.to(wide) @ guide.y.to(wide).T
    return Relations(
        positive,
        counts & (positive | ~(similarity > guide.x_threshold[:, None])),
        counts & (positive | ~(similarity > guide.y_threshold[None, :])),
    )


def softmax(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    x_reference: Tensor,
    y_reference: Tensor,
    pairing: Pairing,
) -> SoftmaxSums:
    """See `passes.SoftmaxPass`."""
    found = relations(pairing)
    logits = _logits(x, y, scale, pairing, found.positive)
    x_lse, x_positive = _sums(logits, x_reference, found.x_counts, found.positive)
    y_lse, y_positive = _sums(logits.T, y_reference, found.y_counts.T, found.positive.T)
    counts = [found.positive.sum(dim).to(logits.dtype) for dim in (1, 0)]
    return SoftmaxSums(x_lse, y_lse, x_positive, y_positive, counts[0], counts[1])


def softmax_backward(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    x_reference: Tensor,
    y_reference: Tensor,
    pairing: Pairing,
    x_lse: Tensor,
    y_lse: Tensor,
    gradients: SoftmaxGradients,
) -> InputGradients:
    """See `passes.SoftmaxBackwardPass`."""
    found = relations(pairing)
    logits = _logits(x, y, scale, pairing, found.positive)
    weights = _probabilities(logits, x_reference, x_lse, found.x_counts, gradients.x_lse)
    weights = weights + (
        _probabilities(logits.T, y_reference, y_lse, found.y_counts.T, gradients.y_lse).T
    )
    both = gradients.x_positive[:, None] + gradients.y_positive[None, :]
    weights = weights + torch.where(found.positive, both, 0.0)
    return _input_gradients(x, y, scale, weights, torch.zeros_like(scale))


def sigmoid(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor,
    pairing: Pairing,
    *,
    with_gradients: bool,
) -> tuple[Tensor, InputGradients | None]:
    """See `passes.SigmoidPass`."""
    found = relations(pairing)
    counts = found.x_counts & found.y_counts
    sign = torch.where(found.positive, -1.0, 1.0).to(scale.dtype)
    logits = _logits(x, y, scale, pairing, found.positive)
    signed = sign * (logits + bias)
    losses = torch.logaddexp(signed, torch.zeros_like(signed))
    total = torch.where(counts, losses, 0.0).sum()
    if not with_gradients:
        return total, None
    weights = torch.where(counts, sign * torch.sigmoid(signed), 0.0)
    return total, _input_gradients(x, y, scale, weights, weights.sum())


def _logits(x: Tensor, y: Tensor, scale: Tensor, pairing: Pairing, positive: Tensor) -> Tensor:
    """Of every pair, `[N, M]`; those of absent rows are 0, and depend on nothing."""
    wide = accumulation_dtype(x.dtype)
    x = torch.where((pairing.x_sample != ABSENT)[:, None], x.to(wide), 0.0)
    y = torch.where((pairing.y_sample != ABSENT)[:, None], y.to(wide), 0.0)
    logits = (scale * x) @ y.T
    if not pairing.hardness:
        return logits
    harder = pairing.hardness * (x @ y.T)
    return logits + torch.where(positive, 0.0, harder)


def _sums(
    logits: Tensor, reference: Tensor, counts: Tensor, positive: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp and sum of positives of each row."""
    away = logits - reference[:, None]
    lse = torch.where(counts, away, -torch.inf).logsumexp(1)
    return lse, torch.where(positive, away, 0.0).sum(1)


def _probabilities(
    logits: Tensor, reference: Tensor, lse: Tensor, counts: Tensor, gradient: Tensor
) -> Tensor:
    """Of each row, times its gradient; 0 where that is 0 or nothing counts."""
    used = counts & (gradient != 0)[:, None] & (lse != -torch.inf)[:, None]
    away = logits - reference[:, None] - lse[:, None]
    return torch.where(used, gradient[:, None] * away.exp(), 0.0)


def _input_gradients(
    x: Tensor, y: Tensor, scale: Tensor, weights: Tensor, bias: Tensor
) -> InputGradients:
    """From gradients of the logits `[N, M]`; rows that have none may hold anything."""
    used = weights != 0
    x_used, y_used = used.any(1)[:, None], used.any(0)[:, None]
    x = torch.where(x_used, x.to(weights.dtype), 0.0)
    y = torch.where(y_used, y.to(weights.dtype), 0.0)
    of_x = torch.where(x_used, scale * (weights @ y), 0.0)
    of_y = torch.where(y_used, scale * (weights.T @ x), 0.0)
    return InputGradients(of_x, of_y, (weights * (x @ y.T)).sum(), bias)


PASSES = Passes(softmax, softmax_backward, sigmoid)
