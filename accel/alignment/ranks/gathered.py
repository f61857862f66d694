"""A loss over the batch of all ranks, whose columns every rank gathers: few and large exchanges.

A rank computes its own rows against all columns, each pair once in the whole group. What this says
of other ranks' columns is exchanged, and added up in the order of ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from accel.alignment.ranks.columns import Columns, Sums, of_sides, shapes_of, sides
from accel.distributed import all_gather, all_to_all
from accel_kernels.contrastive_loss.passes import (
    InputGradients,
    Passes,
    SoftmaxGradients,
    SoftmaxSums,
)

if TYPE_CHECKING:  # some builds of torch have no collectives, and no such name
    from torch.distributed import ProcessGroup


class Gathered(NamedTuple):
    """How the columns come together.

    Attributes:
        passes: The kernel.
        group: None: all processes.
        rank: Of this process in the group.
        counts: How many columns every rank has.
    """

    passes: Passes
    group: ProcessGroup | None
    rank: int
    counts: list[int]

    def softmax(
        self, x: Tensor, scale: Tensor, x_reference: Tensor, columns: Columns
    ) -> SoftmaxSums:
        """Sums of this rank's rows over all columns, and of its columns over all rows."""
        everything = self._all_of(columns)
        assert everything.reference is not None  # noqa: S101
        found = self.passes.softmax(
            x, everything.y, scale, x_reference, everything.reference, everything.pairing
        )
        rows, met = sides(found)
        first, *others = zip(*(self._exchange(part) for part in met), strict=True)
        total = Sums(*first)
        for other in others:
            total = total.joined(other)
        return of_sides(rows, total)

    def softmax_backward(
        self,
        x: Tensor,
        scale: Tensor,
        x_reference: Tensor,
        columns: Columns,
        lse: tuple[Tensor, Tensor],
        gradients: SoftmaxGradients,
    ) -> InputGradients:
        """Gradients of this rank's rows and columns, from the sums over all."""
        everything = self._all_of(columns)
        assert everything.reference is not None  # noqa: S101
        y_lse, y_lse_gradient, y_positive_gradient = (
            self._gather(one) for one in (lse[1], gradients.y_lse, gradients.y_positive)
        )
        found = self.passes.softmax_backward(
            x, everything.y, scale, x_reference, everything.reference, everything.pairing,
            lse[0], y_lse,
            gradients._replace(y_lse=y_lse_gradient, y_positive=y_positive_gradient),
        )  # fmt: skip
        return self._home(found)

    def sigmoid(self, x: Tensor, scale: Tensor, bias: Tensor, columns: Columns) -> Tensor:
        """The sum of the losses of this rank's rows with all columns."""
        everything = self._all_of(columns)
        total, _ = self.passes.sigmoid(
            x, everything.y, scale, bias, everything.pairing, with_gradients=False
        )
        return total

    def sigmoid_backward(
        self, x: Tensor, scale: Tensor, bias: Tensor, columns: Columns, gradient: Tensor
    ) -> InputGradients:
        """Gradients by that of this rank's sum; other ranks may have another for theirs."""
        everything = self._all_of(columns)
        _, found = self.passes.sigmoid(
            x, everything.y, scale, bias, everything.pairing, with_gradients=True
        )
        assert found is not None  # noqa: S101
        return self._home(InputGradients(*(part * gradient for part in found)))

    def _all_of(self, columns: Columns) -> Columns:
        """The columns of all ranks, in the order of ranks."""
        return columns.of([self._gather(tensor) for tensor in columns.tensors()])

    def _home(self, found: InputGradients) -> InputGradients:
        """What this rank found of all columns, for what all ranks found of its own."""
        total, *others = self._exchange(found.y)
        for other in others:
            total = total + other
        return found._replace(y=total)

    def _gather(self, tensor: Tensor) -> Tensor:
        shapes = [shapes_of([tensor], count)[0] for count in self.counts]
        return torch.cat(all_gather(tensor.contiguous(), self.group, shapes=shapes))

    def _exchange(self, tensor: Tensor) -> list[Tensor]:
        """Of all columns, from this rank, to this rank's columns, from every rank."""
        parts = list(tensor.split(self.counts))
        arriving = shapes_of([tensor], self.counts[self.rank]) * len(parts)
        return all_to_all(parts, arriving, self.group)
