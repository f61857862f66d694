"""What a call's arguments say: a dtype that no table lists, a wait for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from accel.simulate.limits import Limit, limits_for

Rule = Callable[[tuple[Any, ...], dict[str, Any]], str]
# What torch's tags do not tell apart, by packet: see `synchronization_rule`.
_CALLED = {
    "_local_scalar_dense": ".item()",
    "_unique": "unique",
    "_unique2": "unique",
    "unique_dim": "unique",
    "index": "indexing with a mask",
}
# An argument that tells the size of the result, so that nobody has to wait for it.
_SIZE = {"repeat_interleave": "output_size", "one_hot": "num_classes"}
_MASKS = (torch.bool, torch.uint8)


@dataclass
class DtypeRule:
    """The vendor's table for one operator on one chip.

    Attributes:
        name: The operator.
        described: The row, in one line.
        remark: The row's remark that the operator may run on the CPU; empty without.
    """

    name: str
    described: str
    remark: str
    _limit: Limit
    _places: tuple[tuple[int, str], ...]
    _accepted: dict[torch.dtype, bool] = field(default_factory=dict)

    @classmethod
    def of(cls, operator: Any, generation: str) -> DtypeRule | None:
        """The rule, or None where the tables say nothing of the operator or the chip."""
        limit = limits_for(operator.name(), generation)
        if limit is None:
            return None
        names = (argument.name for argument in operator._schema.arguments)
        places = tuple((i, name) for i, name in enumerate(names) if name in limit.arguments)
        remark = ""
        if "cpu_fallback" in limit.remarks:
            remark = f"remark in the row {limit.api} on {limit.chip}"
        return cls(operator.name(), limit.describe(), remark, limit, places)

    def unlisted(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
        """The dtypes of a call that the table does not list."""
        found: dict[str, None] = {}
        for place, name in self._places:
            value = args[place] if place < len(args) else kwargs.get(name)
            for dtype in _dtypes(value):
                if not self._accepts(dtype):
                    found[str(dtype).removeprefix("torch.")] = None
        return list(found)

    def _accepts(self, dtype: torch.dtype) -> bool:
        known = self._accepted.get(dtype)
        if known is None:
            known = self._accepted[dtype] = self._limit.accepts(str(dtype)) is not False
        return known


def synchronization_rule(operator: Any) -> Rule | None:
    """What tells whether a call makes the host wait, and how it is called; None where none does.

    torch tags the operators whose result's size, or whose result on the host, depends on data.
    """
    packet = operator.name().split("::")[1].split(".")[0]
    called = _CALLED.get(packet, packet)
    if packet in ("index", "_unsafe_index"):
        return lambda args, kwargs: called if _has_mask(args, kwargs) else ""
    if packet in ("index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put"):
        return _assignment
    waiting = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}
    if waiting.isdisjoint(operator.tags):
        return None
    size = _SIZE.get(packet)
    return lambda args, kwargs: "" if _is_given(size, args, kwargs) else called


def _assignment(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """`x[mask] = values` waits; torch_npu makes one value from the host a masked_fill."""
    value = args[2] if len(args) > 2 else kwargs.get("values")
    if not _has_mask(args, kwargs):
        return ""
    if isinstance(value, Tensor) and value.numel() == 1 and value.device.type == "cpu":
        return ""
    return "assignment through a mask"


def _has_mask(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    indices = args[1] if len(args) > 1 else kwargs.get("indices", ())
    return any(isinstance(index, Tensor) and index.dtype in _MASKS for index in indices)


def _is_given(size: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if size is None:
        return False
    value = kwargs.get(size, args[1] if size == "num_classes" and len(args) > 1 else None)
    return value is not None and value != -1


def _dtypes(value: Any) -> Iterator[torch.dtype]:
    """Of the tensors in an argument; numbers that are tensors on the CPU do not count."""
    if isinstance(value, Tensor):
        if value.device.type != "cpu" or value.dim():
            yield value.dtype
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _dtypes(item)
