"""Which probabilities dropout keeps, one tile at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from accel_kernels import philox
from accel_kernels.masks import Sizes
from accel_kernels.segmented_attention.call import Dropout
from accel_kernels.segmented_attention.tiles import Tile


def keep_factor(
    dropout: Dropout,
    sizes: Sizes,
    tile: Tile,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """`1 / (1 - p)` where a probability is kept and 0 where it is dropped, `[B, H, rows, keys]`.

    The random word of an element is that at `((b * H + h) * T + i) * S + j`, in the coordinates of
    the whole attention, with the seed as key: the same whatever the tiles, devices and layouts.

    Args:
        dropout: As given to the call.
        sizes: Of the call.
        tile: Of the call.
        dtype: Of the factor.
        device: Of the factor.
    """
    heads, queries, all_keys = dropout.sizes or sizes[1:]
    b0, h0, i0, j0 = dropout.first

    def along(first: int, count: int) -> Tensor:
        return torch.arange(first, first + count, dtype=torch.int64, device=device)

    batch = along(b0, sizes.batch)[tile.batches, None, None]
    head = along(h0, sizes.heads)[:, None]
    row = along(i0 + tile.q0, tile.q1 - tile.q0)
    starts = ((batch * heads + head) * queries + row) * all_keys + (j0 + tile.k0)
    seed = dropout.seed
    if isinstance(seed, Tensor):
        seed = seed.to(device)
    words = philox.words_in_runs(starts, tile.k1 - tile.k0, seed)
    return philox.keep(words, dropout.p).to(dtype) / (1.0 - dropout.p)
