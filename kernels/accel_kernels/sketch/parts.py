"""Parts of a tensor, by their place in the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

# Shape of the whole tensor, and where in it the part begins.
Part: TypeAlias = tuple[Sequence[int], Sequence[int]]


def check_part(shape: Sequence[int], part: Part) -> None:
    """Check that a part of this shape lies inside the whole.

    Raises:
        ValueError: It does not, or the numbers of dimensions differ.
    """
    whole, offset = part
    inside = len(shape) == len(whole) == len(offset) and all(
        first in range(length - size + 1)
        for size, length, first in zip(shape, whole, offset, strict=True)
    )
    if not inside:
        raise ValueError(
            f"a part of shape {tuple(shape)} from {tuple(offset)} on is not inside a whole of "
            f"shape {tuple(whole)}"
        )
