"""From the gradients of a tile's logits to those of the embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from accel_kernels.contrastive_loss.passes import InputGradients
from accel_kernels.contrastive_loss.tiles.batch import Batch, Tile


class Accumulated:
    """Sums over tiles of `G @ y` and `G.T @ x`, for gradients `G` of logits."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._x, self._y = torch.zeros_like(batch.x.values), torch.zeros_like(batch.y.values)

    def add(self, tile: Tile) -> None:
        """Take in a tile whose logits have been replaced by their gradients."""
        x, y = self._batch.x.values[tile.rows], self._batch.y.values[tile.columns]
        self._x[tile.rows].addmm_(tile.logits, y)
        self._y[tile.columns].addmm_(tile.logits.T, x)

    def result(self, unit: float, bias: Tensor | None = None) -> InputGradients:
        """The gradients.

        Args:
            unit: What the gradients of logits were divided by.
            bias: The bias's gradient `[]`; None: zero.
        """
        batch = self._batch
        # The scale's is the sum of G_ij (x_i . y_j), which is that of x_i . (G @ y)_i.
        parts = [
            torch.mul(batch.x.values[rows], self._x[rows]).sum() for rows in batch.row_blocks()
        ]
        zero = self._x.new_zeros(())
        scale = torch.stack(parts).sum() * unit if parts else zero
        for gradient in (self._x, self._y):
            gradient.mul_(batch.scale * unit)
        return InputGradients(
            batch.x.given_back(self._x, 0.0),
            batch.y.given_back(self._y, 0.0),
            scale,
            zero.clone() if bias is None else bias,
        )
