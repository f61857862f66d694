"""A bias of the scores, one tile at a time, and its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from accel_kernels.masks import Sizes
from accel_kernels.segmented_attention.call import Bias
from accel_kernels.segmented_attention.tiles import Tile


def bias_tile(bias: Bias, sizes: Sizes, tile: Tile, dtype: torch.dtype) -> Tensor:
    """What is added to a tile of scores, `[B or 1, H or 1, rows or 1, keys or 1]` in `dtype`.

    Args:
        bias: As given to the call.
        sizes: Of the call.
        tile: Of the call.
        dtype: Of the scores.
    """
    tensor = bias.tensor
    if bias.kind == "dense":
        return _of_tile(tensor, tile).to(dtype)
    distances = _distances(bias, sizes, tile)
    if bias.kind == "alibi":
        slopes = tensor.to(dtype)
        slopes = slopes.unsqueeze(0) if slopes.dim() == 1 else _entries_of(slopes, tile)
        return -slopes[:, :, None, None] * distances.abs().to(dtype)
    return tensor.to(dtype)[:, _entries(bias, distances)].unsqueeze(0)


def add_bias_gradient(
    total: Tensor, bias: Bias, sizes: Sizes, tile: Tile, grad_scores: Tensor
) -> None:
    """Add a tile's part to the gradient of the bias, in place.

    Args:
        total: Of the bias tensor's shape, in the dtype of the scores.
        bias: As given to the call.
        sizes: Of the call.
        tile: Of the call.
        grad_scores: Gradient of the scores after scale and cap, `[B, H, rows, keys]`.
    """
    if bias.kind == "dense":
        at = _of_tile(total, tile)
        at += grad_scores.sum_to_size(at.shape)
        return
    distances = _distances(bias, sizes, tile)
    if bias.kind == "alibi":
        by_head = -(grad_scores * distances.abs().to(grad_scores.dtype)).sum((-1, -2))
        if total.dim() == 1:
            total += by_head.sum(0)
        else:
            _entries_of(total, tile).add_(by_head)
        return
    summed = grad_scores.sum(0)
    summed = summed if total.shape[0] == summed.shape[0] else summed.sum(0, keepdim=True)
    total.index_add_(1, _entries(bias, distances).flatten(), summed.flatten(1))


def _of_tile(tensor: Tensor, tile: Tile) -> Tensor:
    """The view of a tensor that broadcasts to `[B, H, T, S]` on a tile."""
    part = _entries_of(tensor, tile)
    part = part if part.shape[2] == 1 else part[:, :, tile.rows]
    return part if part.shape[3] == 1 else part[..., tile.keys]


def _entries_of(tensor: Tensor, tile: Tile) -> Tensor:
    return tensor if tensor.shape[0] == 1 else tensor[tile.batches]


def _distances(bias: Bias, sizes: Sizes, tile: Tile) -> Tensor:
    """`j - p(i)` of a tile, int64 `[rows, keys]`."""
    device = bias.tensor.device
    places = torch.arange(tile.q0, tile.q1, device=device) + bias.place(sizes)
    return torch.arange(tile.k0, tile.k1, device=device) - places.unsqueeze(1)


def _entries(bias: Bias, distances: Tensor) -> Tensor:
    reach = bias.tensor.shape[1] // 2
    return distances.clamp(-reach, reach) + reach
