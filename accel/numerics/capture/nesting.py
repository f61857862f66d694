"""Tensors inside tuples, lists, dicts, dataclasses: their stable paths, and mapping them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

_PLAIN = (bool, int, float, str, type(None))


def _children(value: Any) -> Iterator[tuple[str, Any]] | None:
    """Names and values inside a container; None for anything that is not one."""
    if isinstance(value, Mapping):
        return ((str(name), item) for name, item in value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return iter(zip(value._fields, value, strict=True))
    if isinstance(value, (tuple, list)):
        return ((str(i), item) for i, item in enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
    return None


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Whatever is not a container, with its path: `0`, `logits`, `past.1`.

    Containers are mappings, tuples, lists and dataclasses (so `ModelOutput` too). A value that is
    no container has the path `0`.
    """
    children = None if isinstance(value, Tensor) else _children(value)
    if children is None:
        yield prefix or "0", value
        return
    for name, item in children:
        yield from leaves(item, f"{prefix}.{name}" if prefix else name)


def tensors(value: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors inside `value`, with their paths."""
    return ((path, leaf) for path, leaf in leaves(value) if isinstance(leaf, Tensor))


def plain_values(value: Any) -> dict[str, Any]:
    """The flags, numbers and short texts inside `value`, by path."""
    found = ((path, leaf) for path, leaf in leaves(value) if isinstance(leaf, _PLAIN))
    return {p: v if not isinstance(v, str) else v[:200] for p, v in found if v is not None}


def copied_with(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A deep copy in which every tensor that `tensors` finds is replaced by `change(tensor)`.

    A tensor that occurs twice is changed once, and stays shared in the copy.
    """
    memo = {id(tensor): change(tensor) for _, tensor in tensors(value)}
    return copy.deepcopy(value, memo)


def with_tensors(value: Any, new: Mapping[str, Tensor], prefix: str = "") -> Any:
    """`value` with the tensors at the paths of `new` replaced; None if `new` is empty.

    Containers on the way are copied, never changed.
    """
    return _replaced(value, new, prefix) if new else None


def _replaced(value: Any, new: Mapping[str, Tensor], prefix: str) -> Any:
    children = None if isinstance(value, Tensor) else _children(value)
    if children is None:
        return new.get(prefix or "0", value)
    items = {n: _replaced(v, new, f"{prefix}.{n}" if prefix else n) for n, v in children}
    if isinstance(value, tuple):
        fields = list(items.values())
        return type(value)(*fields) if hasattr(value, "_fields") else type(value)(fields)
    own = copy.copy(value)
    for name, item in items.items():
        _put(own, name, item)
    return own


def _put(container: Any, name: str, item: Any) -> None:
    if isinstance(container, list):
        container[int(name)] = item
    elif isinstance(container, Mapping):
        container[next(key for key in container if str(key) == name)] = item  # type: ignore[index]
    else:
        object.__setattr__(container, name, item)  # a frozen dataclass too
