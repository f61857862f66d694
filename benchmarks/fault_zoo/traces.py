"""What one step computed, operator by operator, and what each should have computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from benchmarks.fault_zoo.arithmetic import widened
from benchmarks.fault_zoo.faults import Altered, Call

# Operators that only move, name or make memory: nothing can be rounded in them.
_NO_ARITHMETIC = {
    "aten::detach", "aten::clone", "aten::empty", "aten::ones_like", "aten::zeros_like",
    "aten::_unsafe_view", "aten::stack", "aten::cat", "aten::copy_", "aten::_foreach_add_",
    "aten::empty_like", "aten::empty_strided", "aten::new_zeros", "aten::fill_", "aten::arange",
}  # fmt: skip

# What these write to is not in their schemas.
_UNMARKED_WRITES = {
    "aten::native_batch_norm": ("running_mean", "running_var"),
    "c10d::allreduce_": ("tensors",),
    "c10d::broadcast_": ("tensors",),
    "c10d::allgather_": ("output_tensors",),
}


class Place(NamedTuple):
    """Which operator of a step: its name and how many calls of it came before."""

    operator: str
    occurrence: int


class Made(NamedTuple):
    """Copies of what a call returned, and of the arguments that it wrote to, by their names."""

    returned: tuple[Tensor | None, ...]
    written: dict[str, tuple[Tensor, ...]]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, in a fixed order."""
        returned = (tensor for tensor in self.returned if tensor is not None)
        return (*returned, *(tensor for group in self.written.values() for tensor in group))


@dataclass(frozen=True)
class Observed:
    """One call: a copy of what it was given, and of all that it made."""

    place: Place
    call: Call
    made: Made

    def inputs(self) -> list[Tensor]:
        """Floating tensors that it was given."""
        leaves = _tensors((self.call.args, self.call.kwargs))
        return [leaf for leaf in leaves if leaf.is_floating_point()]


@dataclass
class Trace(TorchDispatchMode):
    """Keeps every call of a step that computes something, in order; enter it last."""

    calls: dict[Place, Observed] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self._seen: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        call = Call(func, args, kwargs or {})
        name = func._schema.name
        place = Place(name, self._seen[name])
        self._seen[name] += 1
        if not computes(func):
            return call.right()
        before = call.copied()
        result = call.right()
        self.calls[place] = Observed(place, before, made(call, result))
        return result


def computes(func: OpOverload) -> bool:
    """Whether an operator does arithmetic: it is no view, no copy, no allocation, no mark."""
    schema = func._schema
    if schema.name in _NO_ARITHMETIC or not schema.name.startswith(("aten::", "c10d::")):
        return False
    return not any(r.alias_info and not r.alias_info.is_write for r in schema.returns)


def made(call: Call, result: Any) -> Made:
    """Copies of the results of a call, and of the arguments that it wrote to."""
    schema = call.func._schema
    unmarked = _UNMARKED_WRITES.get(schema.name, ())
    written: dict[str, tuple[Tensor, ...]] = {}
    for place, declared in enumerate(schema.arguments):
        writes = declared.alias_info is not None and declared.alias_info.is_write
        if writes or declared.name in unmarked:
            given = call.args[place] if place < len(call.args) else call.kwargs.get(declared.name)
            written[declared.name] = tuple(leaf.detach().clone() for leaf in _tensors(given))
    returned = () if call.is_written else tree_leaves(result, is_leaf=lambda leaf: leaf is None)
    copies = (leaf.detach().clone() if isinstance(leaf, Tensor) else None for leaf in returned)
    return Made(tuple(copies), written)


def in_float64(call: Call) -> Made:
    """What the operator makes of the same operands in float64."""
    own = _double(call).copied()
    return made(own, own.right())


def _double(call: Call) -> Call:
    def wide(dtype: torch.dtype) -> torch.dtype:
        return torch.float64 if dtype.is_floating_point else dtype

    args, kwargs = tree_map_only(torch.dtype, wide, widened((call.args, call.kwargs)))
    names = [argument.name for argument in call.func._schema.arguments]
    args = tuple(
        False if name == "half_to_float" else value
        for name, value in zip(names, args, strict=False)
    )
    return Call(call.func, args, kwargs)


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def places(altered: tuple[Altered, ...]) -> set[Place]:
    """Where a fault changed a result."""
    return {Place(*one) for one in altered}
