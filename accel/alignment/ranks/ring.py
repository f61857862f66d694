"""A loss over the batch of all ranks, with memory of a rank's own part only: columns go around.

Rows stay. Columns travel from rank to rank, and the sums over what they met so far travel after
them; the next columns are on their way while the present ones are computed. The backward goes
around once more instead of keeping what was met: columns again with their log-sum-exp, and the
gradient of the columns after them, until it is home (as in Ring Attention, arXiv 2310.01889,
section 3). Which block is added after which follows from the ranks' numbers alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from accel.alignment.ranks.columns import Columns, Sums, of_sides, shapes_of, sides
from accel.distributed import Shift, start_shift
from accel_kernels.contrastive_loss.passes import (
    InputGradients,
    Passes,
    SoftmaxGradients,
    SoftmaxSums,
)

if TYPE_CHECKING:  # some builds of torch have no collectives, and no such name
    from torch.distributed import ProcessGroup


_Block = Callable[[Columns, Sequence[Tensor]], InputGradients]


class Ring(NamedTuple):
    """How the columns go around.

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

    def stops(self, tensors: list[Tensor]) -> Iterator[tuple[int, list[Tensor]]]:
        """Whose columns are here, stop by stop, and what of them travels; this rank's come first.

        The next ones are on their way while these are used.
        """
        size = len(self.counts)
        for stop in range(size):
            source = (self.rank - stop) % size
            coming = self.start(tensors, source) if stop + 1 < size else None
            yield source, tensors
            if coming is not None:
                tensors = coming.wait()

    def start(self, tensors: Sequence[Tensor], source: int) -> Shift:
        """Send what belongs to the columns of `source` to the next rank, and take the like."""
        arriving = self.counts[(source - 1) % len(self.counts)]
        # A gradient may be one number that looks like many.
        whole = [tensor.contiguous() for tensor in tensors]
        return start_shift(whole, self.group, shapes=shapes_of(tensors, arriving))

    def softmax(
        self, x: Tensor, scale: Tensor, x_reference: Tensor, columns: Columns
    ) -> SoftmaxSums:
        """Sums of this rank's rows over all columns, and of its columns over all rows."""
        rows, behind = None, None
        for source, held in self.stops(columns.tensors()):
            here = columns.of(held)
            assert here.reference is not None  # noqa: S101
            found, met = sides(
                self.passes.softmax(x, here.y, scale, x_reference, here.reference, here.pairing)
            )
            rows = found if rows is None else rows.joined(found)
            if behind is not None:  # what the ranks before this one have found for these columns
                met = Sums(*behind.wait()).joined(met)
            behind = self.start(met, source)
        assert rows is not None  # noqa: S101
        assert behind is not None  # noqa: S101
        return of_sides(rows, Sums(*behind.wait()))

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

        def block(here: Columns, extra: Sequence[Tensor]) -> InputGradients:
            y_lse, y_lse_gradient, y_positive_gradient = extra
            assert here.reference is not None  # noqa: S101
            return self.passes.softmax_backward(
                x, here.y, scale, x_reference, here.reference, here.pairing, lse[0], y_lse,
                gradients._replace(y_lse=y_lse_gradient, y_positive=y_positive_gradient),
            )  # fmt: skip

        return self._backward(columns, [lse[1], gradients.y_lse, gradients.y_positive], block)

    def sigmoid(self, x: Tensor, scale: Tensor, bias: Tensor, columns: Columns) -> Tensor:
        """The sum of the losses of this rank's rows with all columns."""
        total: Tensor | None = None
        for _, held in self.stops(columns.tensors()):
            here = columns.of(held)
            found, _ = self.passes.sigmoid(
                x, here.y, scale, bias, here.pairing, with_gradients=False
            )
            total = found if total is None else total + found
        assert total is not None  # noqa: S101
        return total

    def sigmoid_backward(
        self, x: Tensor, scale: Tensor, bias: Tensor, columns: Columns, gradient: Tensor
    ) -> InputGradients:
        """Gradients by that of this rank's sum; other ranks may have another for theirs."""

        def block(here: Columns, extra: Sequence[Tensor]) -> InputGradients:
            _, found = self.passes.sigmoid(
                x, here.y, scale, bias, here.pairing, with_gradients=True
            )
            assert found is not None  # noqa: S101
            return InputGradients(*(part * gradient for part in found))

        return self._backward(columns, [], block)

    def _backward(self, columns: Columns, extra: list[Tensor], block: _Block) -> InputGradients:
        """The second round; `extra` travels with the columns, their gradient after them."""
        own, behind = columns.tensors(), None
        total: InputGradients | None = None
        for source, held in self.stops([*own, *extra]):
            found = block(columns.of(held[: len(own)]), held[len(own) :])
            met = found.y
            if behind is not None:
                met = behind.wait()[0] + met
            behind = self.start([met], source)
            total = found if total is None else _added(total, found)
        assert total is not None  # noqa: S101
        assert behind is not None  # noqa: S101
        return total._replace(y=behind.wait()[0])


def _added(total: InputGradients, found: InputGradients) -> InputGradients:
    """All but the columns', which are another rank's at each stop."""
    return InputGradients(
        total.x + found.x, found.y, total.scale + found.scale, total.bias + found.bias
    )
