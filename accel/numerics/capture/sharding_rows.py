"""Which values hold rows of the batch, one after the other, in a data-parallel run.

The batch is dimension 0 of what the model is called with. From there it is followed: an output has
the rows of an input if it has as many of them, a view if it keeps their order. What is made in any
other way (transposed, summed over the batch, gathered) is no part of a whole that anybody knows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from accel.numerics.storage.entries import Shard


@dataclass(frozen=True)
class Batch:
    """The rows of the batch that one call of the model is given.

    Attributes:
        count: How many they are.
        first: Which is the first.
        total: How many there are in all processes.
    """

    count: int
    first: int
    total: int


class Rows:
    """The values of one step that hold rows of the batch."""

    def __init__(self) -> None:
        self._batch: Batch | None = None
        self._held: dict[int, tuple[int, Batch]] = {}  # by value: length of dimension 0, of what

    def begin(self, batch: Batch) -> None:
        """The model is called with other rows."""
        self._batch = batch

    @property
    def are_there(self) -> bool:
        """Whether any value holds rows."""
        return bool(self._held)

    def of_source(self, tensor: Tensor) -> Batch | None:
        """The batch that a tensor which nobody made may be of: it has as many rows."""
        batch = self._batch
        if batch is None or not batch.count or tensor.dim() == 0:
            return None
        return batch if tensor.shape[0] == batch.count else None

    def of_output(self, tensor: Tensor, inputs: Iterable[int]) -> Batch | None:
        """The batch of an output: that of an input with as many rows."""
        if not self._held or tensor.dim() == 0:
            return None
        length = tensor.shape[0]
        for value in inputs:
            held = self._held.get(value)
            if held is not None and held[0] == length:
                return held[1]
        return None

    def of_view(self, view: Tensor, base: Tensor, value: int) -> Batch | None:
        """The batch of a view, if it keeps the rows of its base and their order."""
        held = self._held.get(value)
        if held is None or view.dim() == 0 or base.dim() == 0:
            return None
        if view.shape[0] == base.shape[0] and view.stride(0) == base.stride(0):
            return held[1]
        is_same = view.is_contiguous() and base.is_contiguous() and view.numel() == base.numel()
        return held[1] if is_same and view.shape[0] % held[1].count == 0 else None

    def composed(self, value: int, tensor: Tensor, shard: Shard) -> Shard | None:
        """Which part of the whole a part of this process's rows is: tensor parallelism inside.

        Args:
            value: A value.
            tensor: Which holds it.
            shard: Which part it is of what the processes that share its rows hold.

        Returns:
            `shard` if the value holds no rows; None if the rows themselves are divided again.
        """
        held = self._held.get(value)
        if held is None:
            return shard
        if shard.shape[0] != tensor.shape[0]:
            return None
        rows = self.note(value, tensor, held[1])
        shape, offset = (rows.shape[0], *shard.shape[1:]), (rows.offset[0], *shard.offset[1:])
        return Shard(shape, offset, shard.partial)

    def note(self, value: int, tensor: Tensor, batch: Batch) -> Shard:
        """A value holds rows; which part of the whole it is."""
        length = tensor.shape[0]
        self._held[value] = length, batch
        each, rest = length // batch.count, tuple(tensor.shape[1:])
        return Shard((each * batch.total, *rest), (each * batch.first, *(0 for _ in rest)))
