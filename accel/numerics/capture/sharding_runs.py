"""Which of the processes that share a batch this one is, as the model says."""

from __future__ import annotations

import sys
from typing import Any

from torch import distributed, nn


def data_parallel_of(model: nn.Module) -> tuple[int, int] | None:
    """Index and number of the data-parallel processes of a model; None if it says nothing.

    `DistributedDataParallel` and FullyShardedDataParallel have a process group; modules that
    `fully_shard` was applied to have a mesh, of which the replicated dimension comes first.

    Raises:
        ValueError: Modules say different things.
    """
    if not distributed.is_available() or not distributed.is_initialized():
        return None
    found = {said for module in model.modules() if (said := _of_module(module)) is not None}
    if len(found) > 1:
        raise ValueError(
            f"parts of the model are data-parallel in different ways, {sorted(found)}: state "
            "data_parallel=(index, count), which of how many parts of the batch this process has"
        )
    return next(iter(found), None)


def _of_module(module: nn.Module) -> tuple[int, int] | None:
    if isinstance(module, nn.parallel.DistributedDataParallel) or _is_first_fsdp(module):
        group: Any = module.process_group
        return distributed.get_rank(group), distributed.get_world_size(group)
    state = getattr(module, "_get_fsdp_state", None)
    if state is None:
        return None
    groups = getattr(state(), "_fsdp_param_groups", None)
    if groups is None:
        raise ValueError(
            "this torch does not say how fully_shard divides the batch: state data_parallel="
            "(index, count), which of how many parts of the batch this process has"
        )
    return _of_mesh(groups[0].mesh_info) if groups else None


def _of_mesh(info: Any) -> tuple[int, int]:
    index, count = 0, 1
    for dim in ("replicate", "shard"):
        size = getattr(info, f"{dim}_mesh_size", 1)
        index, count = index * size + getattr(info, f"{dim}_mesh_rank", 0), count * size
    return index, count


def _is_first_fsdp(module: nn.Module) -> bool:
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FullyShardedDataParallel)
