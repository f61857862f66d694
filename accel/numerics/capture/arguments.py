"""An operator's arguments as a recording holds them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from accel.numerics.capture.schemas import Schema
from accel.numerics.storage.encoding import dtype_name
from accel.numerics.storage.entries import Argument, Ref, Special

_LONGEST_TEXT = 200


def named(schema: Schema, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, in the schema's order."""
    given = dict(zip(schema.arguments, args, strict=False))
    given.update(kwargs)
    return given


def described(value: Any, of: Callable[[Tensor], int]) -> Argument:
    """One argument, with tensors as references.

    Args:
        value: What the operator was given.
        of: The id of what a tensor holds.
    """
    if isinstance(value, Tensor):
        return Ref(of(value))
    kind = type(value)
    if value is None or kind is int or kind is bool:
        return value
    if kind is float:
        return value if math.isfinite(value) else Special("float", repr(value))
    if kind is str:
        return value[:_LONGEST_TEXT]
    if isinstance(value, (list, tuple)):
        return [described(item, of) for item in value]
    return _special(value)


def _special(value: Any) -> Argument:
    if isinstance(value, torch.dtype):
        return Special("dtype", dtype_name(value))
    if isinstance(value, torch.device):
        return Special("device", str(value))
    if isinstance(value, torch.layout):
        return Special("layout", str(value).removeprefix("torch."))
    if isinstance(value, torch.memory_format):
        return Special("memory_format", str(value).removeprefix("torch."))
    if isinstance(value, complex):
        return Special("complex", repr(value))
    if isinstance(value, torch.Generator):
        return Special("generator", str(value.device))
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return Special("opaque", str(value)[:_LONGEST_TEXT])
    return Special("opaque", type(value).__name__)
