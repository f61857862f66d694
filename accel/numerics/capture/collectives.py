"""What can be said of a collective's arguments: who takes part, and who holds which part."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from accel.numerics.capture.schemas import Schema
from accel.numerics.storage.entries import Shard, Special

_GROUPS = ("process_group", "group_name")
# Collectives whose parts lie one after the other in dimension 0 of a whole, by the name of the
# argument that is such a part: what a rank gives to a gather, or is given by a scatter.
_PARTS = {
    "c10d::_allgather_base_": "input_tensor",
    "_c10d_functional::all_gather_into_tensor": "input",
    "c10d::_reduce_scatter_base_": "output_tensor",
    "_c10d_functional::reduce_scatter_tensor": "output",
}


@dataclass(frozen=True)
class Group:
    """The processes that take part in a collective.

    Attributes:
        ranks: Which, in their order.
        index: The place of this process among them.
    """

    ranks: tuple[int, ...]
    index: int


def group_argument(name: str, value: Any) -> Special | None:
    """A process group or a reduction in words; None for other arguments.

    Returns:
        `ranks 0, 1` or `sum`, as an opaque argument.
    """
    if name in _GROUPS:
        group = _group(value)
        if group is not None:
            return Special("opaque", f"ranks {', '.join(map(str, group.ranks))}")
    elif name == "reduce_op" and isinstance(value, torch.ScriptObject):
        return Special("opaque", _reduction(value))
    return None


def share_of(schema: Schema, name: str, given: Mapping[str, Any]) -> Shard | None:
    """Which part of a whole an argument (or the `output`) of a collective is, if it is one."""
    if _PARTS.get(schema.name) != name:
        return None
    group = next((_group(given[one]) for one in _GROUPS if one in given), None)
    tensor = given.get(name, given.get("input"))
    if group is None or not isinstance(tensor, Tensor) or tensor.dim() == 0:
        return None
    length, rest, count = tensor.shape[0], tuple(tensor.shape[1:]), len(group.ranks)
    if name == "output":  # of which only what was scattered is known
        length //= count
    return Shard((length * count, *rest), (length * group.index, *(0 for _ in rest)))


def _group(value: Any) -> Group | None:
    if isinstance(value, str):
        return _named_group(value)
    if isinstance(value, torch.ScriptObject):
        value = distributed.ProcessGroup.unbox(value)
    if isinstance(value, distributed.ProcessGroup):
        return Group(tuple(distributed.get_process_group_ranks(value)), value.rank())
    return None


def _named_group(name: str) -> Group | None:
    resolve: Any = torch._C._distributed_c10d._resolve_process_group
    return _group(resolve(name))


@functools.cache
def _reductions() -> dict[int, str]:
    kinds: Any = distributed.ReduceOp.RedOpType
    return {int(kind): name.lower() for name, kind in kinds.__members__.items()}


def _reduction(value: Any) -> str:
    """`sum`, `avg`, …; the class's name if it does not say."""
    try:
        return _reductions().get(int(value.op()), type(value).__name__)
    except (AttributeError, RuntimeError, TypeError):
        return type(value).__name__
