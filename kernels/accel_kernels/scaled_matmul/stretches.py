"""Where K is cut, and which scales can be multiplied into the values beforehand."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from accel_kernels.fp8.formats import Quantized

# An operand whose powers of two differ by more than this in a row is not folded: products of the
# smallest codes of both and the largest sums must be normal numbers of float32. HiFloat8 spans 38
# binades, so with the largest at 2^LIFT: 2 * (LIFT - SPREAD - 38) > -126, and 2 * (LIFT + 16) plus
# the logarithm of K is below 128.
SPREAD, LIFT = 48, 30


class Folded(NamedTuple):
    """A matrix whose powers of two differ along K, as values to multiply by and what is left.

    Attributes:
        shifts: int16 `[ceil(M / rows), ceil(K / columns)]`: values are multiplied by 2 to this.
        scales: float32 `[ceil(M / rows), 1]`: what a product with the row is then multiplied by.
    """

    shifts: Tensor
    scales: Tensor


def stretch_starts(depth: int, steps: tuple[int, int], promote: int | None) -> list[int]:
    """Where stretches of K begin, and its end: where a scale changes, and `promote` from there.

    Args:
        depth: K.
        steps: Columns of a block of either operand.
        promote: Longest stretch; None for no bound.

    Returns:
        Ascending, from 0 to `depth`; `[0]` if K is 0.
    """
    starts = sorted({start for step in steps for start in range(0, depth, step)})
    found: list[int] = []
    for start, end in zip(starts, [*starts[1:], depth], strict=False):
        found += range(start, end, promote or depth)
    return [*found, depth]


def folded(item: Quantized) -> Folded | None:
    """The scales along K as powers of two; None if they are none or too far apart."""
    scales = item.scales
    if item.scaling.scales != "power_of_two" or scales.shape[1] < 2 or not scales.numel():
        return None
    exponents = (scales.view(torch.int32) >> 23) - 127
    low, high = exponents.aminmax(dim=1, keepdim=True)
    if int((high - low).max()) > SPREAD or int(high.min()) - LIFT < -126:
        return None
    left = ((high - LIFT + 127) << 23).view(torch.float32)
    return Folded((exponents - high + LIFT).to(torch.int16), left)
