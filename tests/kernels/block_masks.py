"""Masks that leave tiles empty in different ways."""

import torch

from accel.attention import causal, documents, window
from accel_kernels.masks import Mask, RowIntervals, Sizes, as_mask


def gappy(sizes: Sizes, intervals: int) -> Mask:
    """Short intervals of any row, some empty, in no order, alike in neighbouring rows."""
    generator = torch.Generator().manual_seed(5)
    _, _, queries, keys = sizes
    room = keys // intervals  # of each interval, so that they are disjoint

    def drawn(high: int, rows: int) -> torch.Tensor:
        return torch.randint(0, high, (intervals, sizes.batch, rows), generator=generator)

    groups = drawn(max(1, room - 6), -(-queries // 32)).repeat_interleave(32, -1)[..., :queries]
    low = groups + drawn(3, queries) + room * torch.arange(intervals).view(-1, 1, 1)
    low = torch.where(
        drawn(2, -(-queries // 32)).repeat_interleave(32, -1)[..., :queries] > 0, low, 0
    )
    high = torch.where(low > 0, low + drawn(5, queries) - 1, 0)
    order = torch.randperm(intervals, generator=generator)
    return RowIntervals(torch.stack([low, high], 1)[order].to(torch.int32))


def striped(sizes: Sizes) -> Mask:
    """Neighbouring rows see keys far apart, with nothing between them."""
    low = torch.arange(sizes.query_length) % 2 * (sizes.key_length - 3)
    return RowIntervals(torch.stack([low, low + 3]).view(1, 2, 1, -1).to(torch.int32))


MASKS = {
    "none": lambda sizes: None,
    "causal": lambda sizes: causal(),
    "window": lambda sizes: window(9, 3),
    "sinks": lambda sizes: window(5, 0, sinks=2),
    "documents": lambda sizes: documents([0, 20, 50, 70], [0, 40, 41, 90]),
    "gaps": lambda sizes: gappy(sizes, 3),
    "stripes": striped,
    "dense": lambda sizes: as_mask(
        torch.rand((1, 1, *sizes[2:]), generator=torch.Generator().manual_seed(2)) < 0.002
    ),
}
