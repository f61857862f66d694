"""Which part of a whole tensor this process holds."""

from __future__ import annotations

from torch import Tensor, distributed, nn

from accel.numerics.storage.entries import Shard


class Sharding:
    """Looks through wrappers that hold a part of a tensor, and knows where the part belongs.

    Args:
        index: Which of the data-parallel processes this is, 0 without data parallelism.
        count: How many there are.
    """

    def __init__(self, index: int = 0, count: int = 1) -> None:
        self._index, self._count = index, count
        self.rank, self.world = 0, 1
        if distributed.is_available() and distributed.is_initialized():
            self.rank, self.world = distributed.get_rank(), distributed.get_world_size()

    @classmethod
    def of_run(cls, model: nn.Module, given: tuple[int, int] | None) -> Sharding:
        """The sharding of a run, as stated or as its model says.

        Raises:
            ValueError: `given` is no index and number of processes.
        """
        if given is None:
            return cls()
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

    def local(self, tensor: Tensor) -> Tensor:
        """The tensor that holds this process's elements."""
        return tensor

    def of(self, tensor: Tensor) -> Shard | None:
        """Which part of a whole a tensor is, None if it is the whole or nobody knows."""
        return None
