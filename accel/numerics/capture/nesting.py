"""Tensors inside tuples, lists, dicts, dataclasses: their stable paths, and mapping them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
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
