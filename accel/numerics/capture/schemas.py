"""What the dispatcher knows of each operator, once per operator: names, writes, views, kinds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

# Their results are whatever was in memory.
_UNINITIALISED = frozenset(
    {
        "aten::empty", "aten::empty_like", "aten::empty_strided", "aten::empty_permuted",
        "aten::new_empty", "aten::new_empty_strided", "aten::empty_quantized", "aten::resize_",
    }
)  # fmt: skip
# Which of their results hold notes for the backward in memory that is not all written to: two equal
# runs differ there.
_WORKSPACES = {
    "aten::mkldnn_rnn_layer": 3, "aten::_cudnn_rnn": 3, "aten::miopen_rnn": 3,
    "aten::cudnn_batch_norm": 3,
}  # fmt: skip
# They write to these arguments, which their schemas do not say.
_UNDECLARED = {
    name: frozenset({"running_mean", "running_var"})
    for name in (
        "aten::native_batch_norm", "aten::cudnn_batch_norm", "aten::miopen_batch_norm",
        "aten::batch_norm_gather_stats", "aten::batch_norm_gather_stats_with_counts",
    )
}  # fmt: skip
# They return what they were given; autograd adds and leaves them out as it saves tensors.
_IDENTITIES = frozenset({"aten::detach", "aten::alias", "aten::lift_fresh"})
_IGNORED_NAMESPACES = frozenset({"profiler", "prim"})
_COLLECTIVE_NAMESPACES = frozenset({"c10d", "_c10d_functional", "_c10d_functional_autograd"})
WAIT = "_c10d_functional::wait_tensor"
_WRAPS = frozenset({"_c10d_functional::_wrap_tensor_autograd"})  # and computes nothing
# Arguments that are written to without being read.
_OVERWRITTEN = {
    "aten::copy_": ("self",),
    "fsdp::all_gather_copy_in": ("all_gather_output",),
    "fsdp::split_with_sizes_copy": ("out",),
    "fsdp::chunk_cat": ("out",),
}
# The only argument of which an output can hold the rows: for products the one whose rows it has.
_ROWS = {
    "aten::mm": "self", "aten::addmm": "mat1", "aten::addmm_": "mat1", "aten::mv": "self",
    "aten::copy_": "src",
}  # fmt: skip
# Of what they overwrite, these write to a part only: the rest may be whatever was in memory.
_PARTLY = frozenset({"fsdp::all_gather_copy_in"})


@dataclass(frozen=True)
class Schema:
    """One operator overload.

    Attributes:
        name: `aten::addmm`.
        short: The same without `aten::`, as keys have it.
        overload: `default`, `Tensor`, …
        arguments: Names of its arguments, in order.
        written: Those that it writes to.
        overwritten: Those of them that it does not read.
        is_pointwise: Whether each element of the result follows from those at its place.
        rows: The only argument of which an output can hold the same rows; None for any.
        is_partial: Whether it writes to some of their elements only.
        is_view: Whether what it returns shares memory with an argument.
        is_uninitialised: Whether its result is whatever was in memory.
        workspace: Which of its results is a workspace, whose contents mean nothing.
        is_ignored: Whether it computes nothing (profiler marks, `detach`).
        is_collective: Whether other processes take part; what it writes arrives later.
    """

    name: str
    short: str
    overload: str
    arguments: tuple[str, ...]
    written: tuple[str, ...]
    overwritten: frozenset[str]
    is_partial: bool
    is_pointwise: bool
    rows: str | None
    is_view: bool
    is_uninitialised: bool
    workspace: int | None
    is_ignored: bool
    is_collective: bool


def schema_of(func: Any) -> Schema:
    """The schema of an `OpOverload`."""
    known = _KNOWN.get(func)
    if known is None:
        known = _KNOWN[func] = _made(func)
    return known


_KNOWN: dict[Any, Schema] = {}


def _made(func: Any) -> Schema:
    given = func._schema
    name, namespace = str(given.name), str(given.name).split("::")[0]
    is_collective = namespace in _COLLECTIVE_NAMESPACES
    written = frozenset(a.name for a in given.arguments if a.alias_info and a.alias_info.is_write)
    written |= _UNDECLARED.get(name, frozenset())
    overwritten = frozenset(_OVERWRITTEN.get(name, ()))
    if is_collective and not written:
        written = frozenset(_written_by_collective(name, [a.name for a in given.arguments]))
        overwritten = written - {"tensors", "tensor"}
    is_view = any(r.alias_info and not r.alias_info.is_write for r in given.returns)
    return Schema(
        name=name,
        short=name.removeprefix("aten::"),
        overload=given.overload_name or "default",
        arguments=tuple(a.name for a in given.arguments),
        written=tuple(a.name for a in given.arguments if a.name in written | overwritten),
        overwritten=overwritten,
        is_partial=name in _PARTLY,
        is_pointwise=torch.Tag.pointwise in func.tags,
        rows=_ROWS.get(name),
        is_view=is_view,
        is_uninitialised=name in _UNINITIALISED,
        workspace=_WORKSPACES.get(name),
        is_ignored=namespace in _IGNORED_NAMESPACES or name in _IDENTITIES | _WRAPS,
        is_collective=is_collective,
    )


def _written_by_collective(name: str, arguments: list[str]) -> Iterator[str]:
    """c10d's schemas do not say what they write to; the names of their arguments do."""
    if not name.startswith("c10d::") or not name.endswith("_") or "send" in name:
        return
    outputs = [a for a in arguments if a.startswith("output")]
    yield from outputs or [a for a in arguments if a in ("tensors", "tensor")]


def is_plain(types: Any) -> bool:
    """Whether an operator's arguments are tensors that hold their values themselves.

    Wrappers (DTensor, …) run operators on the tensors inside, which are seen in their turn.
    """
    return all(kind in _PLAIN or not _is_wrapper(kind) for kind in types)


_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})


def _is_wrapper(kind: type) -> bool:
    return hasattr(kind, "__tensor_flatten__") and hasattr(kind, "__tensor_unflatten__")
