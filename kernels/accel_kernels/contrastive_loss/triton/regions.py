"""Gradients, region after region: weights of its logits, then their products with the inputs.

A second form would keep a block's gradient in registers and need no weights in memory. It computes
the logits twice, once for each gradient, and again for every few hundred features; here they are
computed once, and a region's weights stay in the cache of a GPU.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from accel_kernels.contrastive_loss.triton.blocks import products_precision
from accel_kernels.contrastive_loss.triton.launch import Launch
from accel_kernels.contrastive_loss.triton.products import products_kernel


def gradients_by_region(
    launch: Launch, kernel: Any, parts: int, **arguments: Any
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Gradients of the inputs, and the sums whose parts a kernel of `weights` writes.

    Args:
        launch: Of the batch.
        kernel: Writes a region's weights, and parts of sums for each of its tiles.
        parts: Of how many sums.
        arguments: Its own.

    Returns:
        Gradients `[N, D]` and `[M, D]`, and sums `[parts]`, of the accumulation dtype.
    """
    of_x = launch.zeros(launch.rows, launch.depth)
    of_y = launch.zeros(launch.columns, launch.depth)
    totals = launch.zeros(parts)
    regions = list(launch.regions())
    # The first is the greatest.
    weights = launch.empty(regions[0].height * regions[0].stride) if regions else totals
    for region in regions:
        tiles, at = launch.tiles(region), launch.of_region(region)
        sums = launch.empty(parts, tiles)
        launch.start(kernel, tiles, weights=weights, parts=sums, **at, **arguments)
        totals += sums.sum(1)
        launch.start(
            products_kernel,
            launch.product_tiles(region),
            weights=weights,
            x_gradient=of_x,
            y_gradient=of_y,
            **at,
            PRECISION=products_precision(launch.x),
        )
    return (of_x, of_y), totals
