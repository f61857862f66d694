"""Joining measurements over ranks, so that all decide the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed

if TYPE_CHECKING:  # some builds of torch have no collectives, and no such names
    from torch.distributed import ProcessGroup


def are_several(group: ProcessGroup | None) -> bool:
    """Whether there are other ranks to agree with."""
    ready = distributed.is_available() and distributed.is_initialized()
    return ready and distributed.get_world_size(group) > 1


def is_writer(group: ProcessGroup | None) -> bool:
    """Whether this rank writes the log."""
    return not are_several(group) or distributed.get_rank(group) == 0


def largest(
    tables: Sequence[Tensor], flops: Sequence[int], group: ProcessGroup | None
) -> tuple[list[list[float]], list[int]]:
    """The maximum over the ranks, which is exact and the same in every order.

    Args:
        tables: float32 `[probes, 6]` each; negative numbers mean that nothing was measured.
        flops: Whole numbers, as many on every rank.
        group: None: all processes.

    Returns:
        The rows of all tables one after another, not negative, and the numbers.
    """
    device = tables[0].device
    rows = torch.cat([table.to(device) for table in tables]).clamp_min(0.0)
    work = torch.tensor(list(flops), dtype=torch.int64, device=device)
    if are_several(group):
        distributed.all_reduce(rows, distributed.ReduceOp.MAX, group=group)
        distributed.all_reduce(work, distributed.ReduceOp.MAX, group=group)
    return rows.tolist(), work.tolist()


def agreed(digest: str, group: ProcessGroup | None) -> None:
    """Check that every rank controls the same layers by the same configuration.

    Raises:
        ValueError: Another rank has others.
    """
    if not are_several(group):
        return
    found: list[str | None] = [None] * distributed.get_world_size(group)
    distributed.all_gather_object(found, digest, group=group)
    if set(found) != {digest}:
        raise ValueError(
            "the ranks of the group have different layers, policies or configurations of the "
            "controller; give all the same, and with several stages or experts a group of the "
            "ranks that share theirs"
        )
