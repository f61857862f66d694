"""Reading lines of an index that nobody vouches for: every field is checked."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Callable, Mapping
from typing import Any

from accel.numerics.storage import dtypes
from accel.numerics.storage import fields as f
from accel.numerics.storage.entries import (
    PHASES,
    SOURCE_KINDS,
    Adjoint,
    Argument,
    Check,
    End,
    Key,
    Line,
    ModuleCall,
    Operator,
    Place,
    Ref,
    RootCall,
    Shard,
    Skipped,
    Source,
    Special,
    Update,
    Value,
)
from accel.numerics.storage.lines import LONGEST
from accel_kernels.sketch import Sketch

SPECIALS = frozenset(
    {"dtype", "device", "layout", "memory_format", "float", "complex", "generator", "opaque"}
)
_SKETCH = struct.Struct("<72d")


class Parser:
    """Turns the lines of one index, in their order, into what they say.

    Attributes:
        count: How many lines were read.
        ended: Whether the last of them was the end of the step.
    """

    def __init__(self) -> None:
        self.count = 0
        self._places: list[Place] = []
        self.ended = False

    def line(self, text: bytes) -> Line | None:
        """What a line says; None for a line that only numbers a line of the program.

        Args:
            text: The line without its newline.

        Raises:
            ValueError: It says nothing that this version understands; the message tells why.
        """
        if len(text) > LONGEST:
            raise ValueError(f"it is longer than {LONGEST} bytes")
        if self.ended:
            raise ValueError("it comes after the end of the step")
        found = f.object_of(text)
        kind = found.get("kind")
        entry = self._entry(kind, found)
        self.count += 1
        return entry

    def _entry(self, kind: object, found: Mapping[str, Any]) -> Line | None:
        if kind == "operator":
            return self._operator(found)
        if kind == "place":
            self._places.append(self._place(found))
            return None
        if kind == "end":
            return self._end(found)
        read = _READERS.get(kind) if isinstance(kind, str) else None
        if read is None:
            raise ValueError(f"unknown kind {f.shown(kind)}")
        return read(found)

    def _place(self, found: Mapping[str, Any]) -> Place:
        number = f.integer(found, "id")
        if number != len(self._places):
            raise ValueError(f"place {number} must be number {len(self._places)}")
        return Place(f.text(found, "file"), f.integer(found, "line"), f.text(found, "function"))

    def _end(self, found: Mapping[str, Any]) -> End:
        lines = f.integer(found, "lines")
        if lines != self.count:
            raise ValueError(f"it says that {lines} lines come before it, and {self.count} do")
        self.ended = True
        return End(f.integer(found, "operators"), f.integer(found, "dropped"))

    def _operator(self, found: Mapping[str, Any]) -> Operator:
        place = f.optional(found, "place", f.integer)
        if place is not None and place >= len(self._places):
            raise ValueError(f"place {place} has no line before this one")
        arguments = f.mapping(found, "arguments")
        return Operator(
            id=f.integer(found, "id"),
            key=_key(found),
            name=f.text(found, "name"),
            overload=f.text(found, "overload"),
            arguments={name: argument(value) for name, value in arguments.items()},
            outputs=tuple([_output(value) for value in f.listing(found, "outputs")]),
            writes=_writes(found),
            place=None if place is None else self._places[place],
            autocast=f.optional(found, "autocast", f.text),
        )


def _key(found: Mapping[str, Any]) -> Key:
    return Key(
        f.one_of(found, "phase", PHASES),
        f.text(found, "module"),
        f.integer(found, "call", 0),
        f.text(found, "origin", ""),
        f.text(found, "op"),
        f.integer(found, "k"),
    )


def _output(value: object) -> int | None:
    return None if value is None else f.integer({"outputs": value}, "outputs")


def _writes(found: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    writes = f.mapping(found, "writes")
    return {
        name: tuple([f.integer({name: value}, name) for value in f.listing(writes, name)])
        for name in writes
    }


def argument(value: object, depth: int = 0) -> Argument:
    """An argument from its JSON.

    Raises:
        ValueError: It is none.
    """
    if isinstance(value, dict):
        return _special(value)
    if isinstance(value, list):
        if depth == f.DEEPEST:
            raise ValueError(f"an argument is nested more than {f.DEEPEST} deep")
        return [argument(item, depth + 1) for item in value]
    return f.scalar(value)


def _special(value: Mapping[str, Any]) -> Ref | Special:
    if len(value) == 1:
        [kind] = value
        if kind == "v":
            return Ref(f.integer(value, "v"))
        if kind in SPECIALS:
            return Special(kind, f.text(value, kind))
    known = ", ".join(sorted(SPECIALS))
    raise ValueError(f'an argument must be plain, {{"v": id}} or one of {known}: {f.shown(value)}')


def _value(found: Mapping[str, Any]) -> Value:
    dtype, shape = dtypes.dtype(found), f.sizes(found, "shape")
    return Value(
        id=f.integer(found, "id"),
        dtype=dtype,
        shape=shape,
        sketch=None if found.get("sketch") is None else _sketch(found, dtype, shape),
        blob=f.optional(found, "blob", f.digest),
        base=f.optional(found, "base", f.integer),
        shard=None if found.get("shard") is None else _shard(f.mapping(found, "shard"), shape),
        skipped=f.optional(found, "skipped", f.text),
    )


def _sketch(found: Mapping[str, Any], dtype: str, shape: tuple[int, ...]) -> Sketch:
    try:
        raw = base64.b64decode(f.text(found, "sketch"), validate=True)
    except ValueError as error:
        raise ValueError(f"sketch is no base64: {error}") from None
    if len(raw) != _SKETCH.size:
        raise ValueError(f"sketch must be {_SKETCH.size} bytes, got {len(raw)}")
    numbers = math.prod(shape) * (2 if dtype.startswith("complex") else 1)
    least, largest, squares, *counts = _SKETCH.unpack(raw)[64:]
    _check_sketch(least, largest, squares, counts, numbers)
    return Sketch(raw)


def _check_sketch(
    least: float, largest: float, squares: float, counts: list[float], numbers: int
) -> None:
    """Check what a sketch says of a tensor that has so many numbers."""
    for count in counts:
        if not (0 <= count <= 2.0**53 and count.is_integer()):
            raise ValueError(f"sketch holds {count} where a count is expected")
    if counts[-1] != numbers:
        raise ValueError(f"sketch is of {int(counts[-1])} numbers and the shape has {numbers}")
    finite = numbers - sum(counts[:3])
    known = least <= largest if finite else (least, largest) == (math.inf, -math.inf)
    if finite < 0 or not known or not squares >= 0:
        raise ValueError(f"sketch contradicts itself: {least}, {largest}, {squares}, {counts}")


def _shard(found: Mapping[str, Any], part: tuple[int, ...]) -> Shard:
    shape, offset = f.sizes(found, "shape"), f.sizes(found, "offset")
    inside = len(shape) == len(offset) == len(part) and all(
        first + size <= length for first, size, length in zip(offset, part, shape, strict=True)
    )
    if not inside:
        raise ValueError(
            f"shard must lie in the whole: {list(part)} from {list(offset)} on in {list(shape)}"
        )
    return Shard(shape, offset, f.flag(found, "partial", False))


def _source(found: Mapping[str, Any]) -> Source:
    return Source(
        f.integer(found, "value"), f.one_of(found, "of", SOURCE_KINDS), f.text(found, "name")
    )


def _module(found: Mapping[str, Any]) -> ModuleCall:
    first, last = f.integer(found, "first"), f.integer(found, "last")
    if first > last:
        raise ValueError(f"first must be at most last, got {first} and {last}")
    return ModuleCall(
        module=f.text(found, "module"),
        call=f.integer(found, "call"),
        class_name=f.text(found, "class"),
        phase=f.one_of(found, "phase", ("forward", "recompute")),
        first=first,
        last=last,
        inputs=f.ids(found, "inputs"),
        outputs=f.ids(found, "outputs"),
        training=f.flag(found, "training"),
    )


def _call(found: Mapping[str, Any]) -> RootCall:
    arguments = f.mapping(found, "arguments")
    return RootCall(
        index=f.integer(found, "index"),
        training=f.flag(found, "training"),
        autocast=f.optional(found, "autocast", f.text),
        gradients=f.flag(found, "gradients"),
        arguments={name: argument(value) for name, value in arguments.items()},
        generators=f.texts(found, "generators"),
    )


def _adjoint(found: Mapping[str, Any]) -> Adjoint:
    return Adjoint(f.integer(found, "of"), f.integer(found, "value"))


def _update(found: Mapping[str, Any]) -> Update:
    return Update(f.text(found, "name"), f.text(found, "slot"), f.integer(found, "value"))


def _check(found: Mapping[str, Any]) -> Check:
    fields = f.mapping(found, "fields")
    return Check(f.integer(found, "operator"), {name: f.plain(fields[name]) for name in fields})


def _skipped(found: Mapping[str, Any]) -> Skipped:
    return Skipped(f.text(found, "what"), f.text(found, "reason"))


_READERS: dict[str, Callable[[Mapping[str, Any]], Line]] = {
    "value": _value, "source": _source, "module": _module, "call": _call,
    "adjoint": _adjoint, "update": _update, "check": _check, "skipped": _skipped,
}  # fmt: skip
