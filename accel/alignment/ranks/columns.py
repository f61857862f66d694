"""The columns of a block: what of one rank's samples other ranks need to see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from accel_kernels.contrastive_loss.pairing import Pairing
from accel_kernels.contrastive_loss.passes import SoftmaxSums


class Columns(NamedTuple):
    """Columns, and how the rows of this rank stand to them.

    Attributes:
        y: `[M, D]`.
        reference: `[M]`; None for a sigmoid loss, which has none.
        pairing: Its row side is this rank's, its column side that of `y`.
    """

    y: Tensor
    reference: Tensor | None
    pairing: Pairing

    def tensors(self) -> list[Tensor]:
        """All that is of the columns; each `[M, ...]`."""
        pairing, guide = self.pairing, self.pairing.guide
        optional = [self.reference, pairing.y_group]
        if guide is not None:
            optional += [guide.y, guide.y_threshold]
        return [self.y, pairing.y_sample, *(one for one in optional if one is not None)]

    def of(self, tensors: Sequence[Tensor]) -> Columns:
        """Other columns to the same rows; `tensors` as from `tensors()`."""
        rest = list(tensors)
        y, sample = rest.pop(0), rest.pop(0)
        reference = None if self.reference is None else rest.pop(0)
        pairing = self.pairing._replace(y_sample=sample)
        if pairing.y_group is not None:
            pairing = pairing._replace(y_group=rest.pop(0))
        if pairing.guide is not None:
            guide = pairing.guide._replace(y=rest.pop(0), y_threshold=rest.pop(0))
            pairing = pairing._replace(guide=guide)
        return Columns(y, reference, pairing)


class Sums(NamedTuple):
    """One side of `SoftmaxSums`, which adds up over blocks; each `[N]`."""

    lse: Tensor
    positive: Tensor
    positives: Tensor

    def joined(self, other: Sequence[Tensor]) -> Sums:
        """With those of further blocks."""
        lse, positive, count = other
        lse = torch.logaddexp(self.lse, lse)
        return Sums(lse, self.positive + positive, self.positives + count)


def sides(sums: SoftmaxSums) -> tuple[Sums, Sums]:
    """Of the rows, and of the columns."""
    rows = Sums(sums.x_lse, sums.x_positive, sums.x_count)
    return rows, Sums(sums.y_lse, sums.y_positive, sums.y_count)


def of_sides(rows: Sums, columns: Sums) -> SoftmaxSums:
    """The way back from `sides`."""
    return SoftmaxSums(
        rows.lse, columns.lse, rows.positive, columns.positive, rows.positives, columns.positives
    )


def shapes_of(tensors: Sequence[Tensor], count: int) -> list[tuple[int, ...]]:
    """Of the same tensors of a rank that has `count` columns."""
    return [(count, *tensor.shape[1:]) for tensor in tensors]
