"""The sigmoid loss of pairs: its sum, and its gradients from the same tiles."""

from __future__ import annotations

import torch
from torch import Tensor

from accel_kernels.contrastive_loss.pairing import Pairing
from accel_kernels.contrastive_loss.passes import InputGradients
from accel_kernels.contrastive_loss.tiles.accumulation import Accumulated
from accel_kernels.contrastive_loss.tiles.batch import Tile, shaped, without_absent
from accel_kernels.contrastive_loss.tiles.settings import Settings


def total(
    settings: Settings,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor,
    pairing: Pairing,
    *,
    with_gradients: bool,
) -> tuple[Tensor, InputGradients | None]:
    """See `passes.SigmoidPass`."""
    batch = without_absent(settings, x, y, scale, pairing)
    found = Accumulated(batch) if with_gradients else None
    scratch, added = batch.scratch(), float(bias.detach())
    losses, slopes = [], []
    for tile in batch.tiles():
        _prepare(tile, added)
        spare = shaped(scratch, *tile.logits.shape)
        losses.append(settings.elementwise.softplus_sum(tile.logits, spare))
        if found is not None:
            if tile.positive is not None:
                tile.logits[tile.positive] *= -1.0
            slopes.append(tile.logits.sum())
            found.add(tile)
    value = _sum(settings, losses, scale)
    return value, None if found is None else found.result(1.0, _sum(settings, slopes, scale))


def _prepare(tile: Tile, bias: float) -> None:
    """Logits whose softplus is the loss of a pair: of a positive, with the other sign.

    So a loss near 0 is not the difference of two large numbers.
    """
    tile.logits.add_(bias)
    if tile.positive is not None:
        tile.logits[tile.positive] *= -1.0
    if tile.x_hidden is not None and tile.y_hidden is not None:
        tile.logits.masked_fill_(tile.x_hidden.logical_or_(tile.y_hidden), -torch.inf)


def _sum(settings: Settings, parts: list[Tensor], like: Tensor) -> Tensor:
    """In float64: there are as many parts as tiles."""
    if not parts:
        return torch.zeros_like(like)
    return settings.wide(torch.stack(parts)).sum().to(like)
