"""Which part of a whole tensor this process holds."""

from __future__ import annotations

from torch import Tensor, distributed, nn

from accel.numerics.capture import sharding_wrappers
from accel.numerics.capture.sharding_rows import Batch
from accel.numerics.capture.sharding_runs import data_parallel_of
from accel.numerics.storage.entries import Shard


class Sharding:
    """Looks through wrappers that hold a part of a tensor, and knows where the part belongs.

    Args:
        index: Which of the data-parallel processes this is, 0 without data parallelism.
        count: How many there are.

    Attributes:
        rank: Which process this is, of all.
        world: How many there are.
    """

    def __init__(self, index: int = 0, count: int = 1) -> None:
        self._index, self._count = index, count
        self._stated: tuple[int, int] | None = None
        self.rank, self.world = 0, 1
        if distributed.is_available() and distributed.is_initialized():
            self.rank, self.world = distributed.get_rank(), distributed.get_world_size()

    @classmethod
    def of_run(cls, model: nn.Module, given: tuple[int, int] | None) -> Sharding:
        """The sharding of a run, as stated or as its model says.

        Raises:
            TypeError: `given` is no pair of integers.
            ValueError: `given` is no index and number of processes, or more than there are; or
                parts of the model say different things.
        """
        if given is None:
            return cls(*(data_parallel_of(model) or (0, 1)))
        if len(given) != 2 or any(type(number) is not int for number in given):
            raise TypeError(
                f"data_parallel takes (index, count), two integers such as (0, 2), got {given!r}"
            )
        index, count = given
        if not 0 <= index < count:
            raise ValueError(
                f"data_parallel takes (index, count) with 0 <= index < count, got {given}"
            )
        return cls(index, count)

    @property
    def member(self) -> tuple[int, int] | None:
        """Index and number of the processes that share a batch; None without data parallelism."""
        return None if self._count == 1 else (self._index, self._count)

    def state_rows(self, first: int, total: int) -> None:
        """Say which rows of the batch the next call of the model is given.

        Raises:
            ValueError: There is no data parallelism, or no such rows.
        """
        if self._count == 1:
            raise ValueError(
                "rows are stated in data-parallel runs only: give record the module that is "
                "wrapped in DistributedDataParallel or fully_shard, or data_parallel=(index, count)"
            )
        if not 0 <= first <= total:
            raise ValueError(
                f"rows take the first row and the number of all rows, got {first} and {total}"
            )
        self._stated = first, total

    def batch(self, count: int) -> Batch | None:
        """The batch of a call of the model that is given `count` rows; None if it has all of it.

        Raises:
            ValueError: Others were stated.
        """
        stated, self._stated = self._stated, None
        if self._count == 1:
            return None
        first, total = stated or (self._index * count, self._count * count)
        if first + count > total:
            raise ValueError(
                f"the model is called with {count} rows, and those stated are from {first} to the "
                f"end of {total}: state the first row and the number of all rows"
            )
        return Batch(count, first, total)

    def local(self, tensor: Tensor) -> Tensor:
        """The tensor that holds this process's elements."""
        return sharding_wrappers.inner(tensor)

    def of(self, tensor: Tensor) -> Shard | None:
        """Which part of a whole a tensor is, None if nobody knows."""
        return sharding_wrappers.placed(tensor)

    def of_copy(self, tensor: Tensor) -> Shard | None:
        """The same for a parameter or its gradient, of which data parallelism makes copies."""
        placed = sharding_wrappers.placed(tensor)
        if placed is None and self._count > 1 and not sharding_wrappers.is_wrapper(tensor):
            return whole(tensor)
        return placed


def whole(tensor: Tensor) -> Shard:
    """A tensor as the only part of itself: every process has a copy."""
    return Shard(tuple(tensor.shape), (0,) * tensor.dim())
