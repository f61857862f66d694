"""The attention state `(out, lse)` and what every kernel of this operation does with it.

`out` is the attention of a query row over the keys seen so far, `lse` the natural logarithm of the
sum of its exponentiated scores. Two states over disjoint keys merge into the state over their union
(Rabe & Staats, arXiv 2112.05682, section 2; Milakov & Gimelshein, arXiv 1805.02867); the empty
state is `out = 0`, `lse = -inf`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """What outputs, log-sum-exps and gradients are summed in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def merge(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """The state over the union of two disjoint sets of keys, for a kernel's running state.

    The weights come from the difference of the log-sum-exps, so that they add up to one however
    the log-sum-exps are rounded; `exp(lse_a - lse)` would scale the output by their error.

    Args:
        out_a: `[..., T, D]`, zero where `lse_a` is -inf.
        lse_a: `[..., T]`, -inf for a row that saw no key. May be of a wider dtype than `out_a`.
        out_b: As `out_a`.
        lse_b: As `lse_a`.

    Returns:
        `out` and `lse` of the union, in the dtypes of the arguments.
    """
    both_empty = (lse_a == -torch.inf) & (lse_b == -torch.inf)
    difference = (lse_b - lse_a).masked_fill(both_empty, 0.0)
    # Two sigmoids, not one and its rest: 1 - w has lost a small weight's digits.
    weight_a, weight_b = (
        torch.sigmoid(d).to(out_a.dtype).unsqueeze(-1) for d in (-difference, difference)
    )
    lse = torch.maximum(lse_a, lse_b) + torch.log1p(torch.exp(-difference.abs()))
    return torch.addcmul(out_a * weight_a, out_b, weight_b), lse.masked_fill(both_empty, -torch.inf)


def merge_all(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The state over the union of any number of disjoint sets of keys, at least one.

    One normaliser for all, so that the error does not grow with their number. Differentiable as
    often as wanted in every argument, empty rows too: those have zero gradients, not NaN.

    Args:
        outs: Each `[..., T, D]`, zero where its `lse` is -inf; all of one dtype.
        lses: Each `[..., T]`, -inf for a row that saw no key; all of one dtype.

    Returns:
        `out` and `lse` in the dtypes given. Where all rows but one are empty, its bits.
    """
    highest = lses[0].detach()
    for lse in lses[1:]:
        highest = torch.maximum(highest, lse.detach())
    nothing = highest == -torch.inf
    # A constant to the derivatives: the results do not depend on it.
    shift = highest.masked_fill(nothing, 0.0)
    weights = [torch.exp(lse - shift) for lse in lses]
    total = weights[0]
    for weight in weights[1:]:
        total = total + weight
    total = total.masked_fill(nothing, 1.0)
    merged: Tensor | None = None
    for out, lse, weight in zip(outs, lses, weights, strict=True):
        empty = lse == -torch.inf
        # A weight of -0.0 makes a zero -0.0, which, unlike 0.0, leaves the bits of whatever it is
        # added to; but one of them must be 0.0 where there is nothing else.
        share = (weight / total).masked_fill(empty & ~nothing if merged is None else empty, -0.0)
        share = share.to(out.dtype).unsqueeze(-1)
        merged = out * share if merged is None else torch.addcmul(merged, out, share)
    assert merged is not None  # noqa: S101
    return merged, (shift + torch.log(total)).masked_fill(nothing, -torch.inf)
