"""Products that select what is visible instead of multiplying the rest by zero.

`0 * NaN` is NaN: with a plain product a key or value that a row must not see would reach it as soon
as it is not finite. Here it does not, and one that the row does see still reaches it.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Elements of the largest intermediate tensor where something is not finite.
_AT_ONCE = 1 << 22


def selected_product(weights: Tensor, seen: Tensor | None, items: Tensor) -> Tensor:
    """`weights @ items` over the pairs that are seen.

    Args:
        weights: `[..., R, K]`, zero where not seen.
        seen: bool, broadcasts to `weights`; None: all.
        items: `[..., K, D]`, leading dimensions broadcast against those of `weights`.

    Returns:
        `[..., R, D]`.
    """
    if seen is None or bool(torch.isfinite(items.sum())):
        return weights @ items
    wrong = ~torch.isfinite(items).all(-1, keepdim=True)
    total = weights @ items.masked_fill(wrong, 0.0)
    places = wrong.squeeze(-1).flatten(0, -2).any(0).nonzero().squeeze(-1)
    step = max(1, _AT_ONCE // max(1, total.numel()))
    seen = seen.expand(*seen.shape[:-1], weights.shape[-1])
    for at in places.split(step):
        one = weights[..., at].unsqueeze(-1) * items[..., at, :].unsqueeze(-3)
        counted = seen[..., at].unsqueeze(-1) & wrong[..., at, :].unsqueeze(-3)
        total = total + torch.where(counted, one, 0.0).sum(-2)
    return total
