"""Comparing what two calls of an operator were given besides tensors."""

from __future__ import annotations

import functools
import math
from typing import Literal, NamedTuple

import torch

from accel.numerics.comparing.contents import refs
from accel.numerics.storage.entries import Argument, Operator, Ref, Special

# They say where and how a result is stored, not what it is.
_IRRELEVANT_KINDS = frozenset({"device", "layout", "memory_format", "generator", "opaque"})
_IRRELEVANT = frozenset(
    {"device", "layout", "pin_memory", "memory_format", "generator", "non_blocking", "stride",
     "strides", "storage_offset", "copy", "async_op", "asyncOp", "timeout", "process_group",
     "group_name", "seed", "philox_seed", "philox_offset", "out"}
)  # fmt: skip
_SHAPES = frozenset(
    {"size", "sizes", "self_sizes", "input_sizes", "input_size", "split_size", "split_sizes",
     "shape", "implicit", "N", "HxW", "max_q", "max_k"}
)  # fmt: skip
_REDUCTION = "reduce_op"  # of a collective: recorded as an opaque object with its name
_DIMENSIONS = frozenset({"dim", "dim0", "dim1", "dims", "start_dim", "end_dim", "normalized_dim"})
_FLOAT32 = 2.0**-23  # scalars that agree to float32 are the same number written twice


class Changed(NamedTuple):
    """One argument that differs.

    Attributes:
        name: By the operator's schema.
        kind: `number` (with `apart`), `dtype`, `shape`, `tensor` (one run passes a tensor where
            the other passes none) or `value` (everything else).
        reference: The reference's, as text.
        candidate: The candidate's.
        apart: Relative difference of two numbers; infinity for everything else.
    """

    name: str
    kind: Literal["number", "dtype", "shape", "tensor", "value"]
    reference: str
    candidate: str
    apart: float

    def __str__(self) -> str:
        return f"{self.name} is {self.candidate} where the reference has {self.reference}"


def changed(a: Operator, b: Operator, rank: int) -> list[Changed]:
    """The arguments of two aligned operators that differ.

    An argument that only one of the two has (another version knows it, or it was left out) counts
    as its default. Numbers that agree to float32 are equal; dimensions are counted from the front.

    Args:
        a: The reference's.
        b: The candidate's.
        rank: Number of dimensions of their first tensor.
    """
    names = [*a.arguments, *(name for name in b.arguments if name not in a.arguments)]
    found = []
    for name in names:
        left, right = (_argument(one, name) for one in (a, b))
        if name in _IRRELEVANT or left is _UNKNOWN or right is _UNKNOWN:
            continue
        one = _compared(name, left, right, rank)
        if one is not None:
            found.append(one)
    return found


class _Unknown:
    """An argument that a recording does not have and whose default is not known."""


_UNKNOWN = _Unknown()


def _argument(operator: Operator, name: str) -> Argument | _Unknown:
    if name in operator.arguments:
        return operator.arguments[name]
    return _defaults(operator.name, operator.overload).get(name, _UNKNOWN)


@functools.lru_cache(maxsize=4096)
def _defaults(name: str, overload: str) -> dict[str, Argument]:
    """An operator's defaults in the installed torch; empty if it does not know the operator."""
    try:
        schema = torch._C._get_schema(name, "" if overload == "default" else overload)
    except RuntimeError:
        return {}
    return {one.name: one.default_value for one in schema.arguments if one.has_default_value()}


def _compared(name: str, left: Argument, right: Argument, rank: int) -> Changed | None:
    has_tensors = [bool(list(refs(side))) for side in (left, right)]
    if all(has_tensors) and isinstance(left, Ref) == isinstance(right, Ref):
        return None  # their contents are compared elsewhere
    if any(has_tensors):
        texts = ["a tensor" if list(refs(side)) else _text(side) for side in (left, right)]
        return Changed(name, "tensor", texts[0], texts[1], math.inf)
    if name != _REDUCTION and _is_irrelevant(left) and _is_irrelevant(right):
        return None
    if name in _DIMENSIONS:
        left, right = _from_front(left, rank), _from_front(right, rank)
    apart = _apart(left, right)
    if apart <= _FLOAT32:
        return None
    kind: Literal["number", "dtype", "shape", "value"] = "value"
    if any(isinstance(side, Special) and side.kind == "dtype" for side in (left, right)):
        kind = "dtype"
    elif name in _SHAPES:
        kind = "shape"
    elif math.isfinite(apart):
        kind = "number"
    return Changed(name, kind, _text(left), _text(right), apart)


def _is_irrelevant(side: Argument) -> bool:
    return side is None or (isinstance(side, Special) and side.kind in _IRRELEVANT_KINDS)


def _from_front(side: Argument, rank: int) -> Argument:
    if isinstance(side, list):
        return [_from_front(item, rank) for item in side]
    if isinstance(side, int) and not isinstance(side, bool) and side < 0:
        return side + rank
    return side


def _apart(left: Argument, right: Argument) -> float:
    """Relative difference: 0 for equal arguments, infinity for such as are no numbers."""
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        if len(left) != len(right):
            return math.inf
        return max((_apart(x, y) for x, y in zip(left, right, strict=True)), default=0.0)
    if left == right:
        return 0.0
    numbers = [_number(side) for side in (left, right)]
    if None in numbers or any(isinstance(side, bool) for side in (left, right)):
        return math.inf
    x, y = (float(number) for number in numbers if number is not None)
    if not (math.isfinite(x) and math.isfinite(y)):
        return 0.0 if x == y or (math.isnan(x) and math.isnan(y)) else math.inf
    if isinstance(left, int) and isinstance(right, int):
        return math.inf
    return abs(x - y) / max(abs(x), abs(y)) if x != y else 0.0


def _number(side: Argument) -> float | None:
    if isinstance(side, (int, float)):
        return float(side)
    if isinstance(side, Special) and side.kind == "float":
        return float(side.text)
    return None


def _text(side: Argument) -> str:
    if isinstance(side, Special):
        return side.text
    return str(list(map(_text, side))) if isinstance(side, list) else repr(side)
