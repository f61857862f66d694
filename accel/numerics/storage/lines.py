"""Lines of an index: what a step says, as JSON text.

Every operator of a training step passes through here, so the text is put together by hand where
that is several times faster than `json.dumps`. It imports no torch.
"""

from __future__ import annotations

import json
import math
from binascii import b2a_base64
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from typing import Any, cast

from accel.numerics.storage.entries import (
    Adjoint,
    Argument,
    Check,
    End,
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

LONGEST = 16 * 2**20  # bytes of a line, as read: a list of a million tensors takes less


class Encoder:
    """Turns what one step says into lines of its index.

    It remembers which lines of the program have a number, and how many lines there were.
    """

    def __init__(self) -> None:
        self._places: dict[Place, int] = {}
        self._count = 0

    def lines_of(self, *entries: Line) -> bytes:
        """The lines that say `entries`, each with its newline.

        A line of the program that an operator refers to gets a line of its own before it, once.

        Raises:
            TypeError: An argument is of a kind that no recording holds.
            ValueError: A line would be longer than any reader accepts.
        """
        found: list[str] = []
        for entry in entries:
            if type(entry) is Operator:
                found.append(self._operator(entry, found))
            elif type(entry) is Value:
                found.append(_value(entry))
            elif type(entry) is End:
                found.append(_end(entry, self._count + len(found)))
            else:
                found.append(_OTHERS[type(entry)](entry))
        self._count += len(found)
        text = "".join(found)
        if len(text) > LONGEST:
            _check_lengths(found)
        return text.encode("ascii")

    def _operator(self, o: Operator, before: list[str]) -> str:
        key = o.key
        parts = [
            f'{{"kind":"operator","id":{o.id},"phase":"{key.phase}","module":{_quoted(key.module)}'
        ]
        if key.call:
            parts.append(f',"call":{key.call}')
        if key.origin:
            parts.append(f',"origin":{_quoted(key.origin)}')
        parts.append(
            f',"op":{_quoted(key.op)},"k":{key.k},"name":{_quoted(o.name)}'
            f',"overload":{_quoted(o.overload)},"arguments":{_arguments(o.arguments)}'
        )
        if o.outputs:
            ids = ",".join(["null" if value is None else str(value) for value in o.outputs])
            parts.append(f',"outputs":[{ids}]')
        if o.writes:
            parts.append(f',"writes":{_id_lists(o.writes)}')
        if o.place is not None:
            parts.append(f',"place":{self._place(o.place, before)}')
        if o.autocast is not None:
            parts.append(f',"autocast":{_quoted(o.autocast)}')
        parts.append("}\n")
        return "".join(parts)

    def _place(self, place: Place, before: list[str]) -> int:
        number = self._places.get(place)
        if number is None:
            number = self._places[place] = len(self._places)
            before.append(
                f'{{"kind":"place","id":{number},"file":{_quoted(place.file)}'
                f',"line":{place.line},"function":{_quoted(place.function)}}}\n'
            )
        return number


@lru_cache(maxsize=65536)
def _quoted(text: str) -> str:
    if not text.isascii():  # a file name may hold bytes that are no text
        text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return encode_basestring_ascii(text)


@lru_cache(maxsize=65536)
def _sizes(sizes: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, sizes))}]"


def _value(v: Value) -> str:
    text = f'{{"kind":"value","id":{v.id},"dtype":{_quoted(v.dtype)},"shape":{_sizes(v.shape)}'
    if v.sketch is not None:
        text += f',"sketch":"{b2a_base64(v.sketch.raw, newline=False).decode("ascii")}"'
    if v.blob is not None:
        text += f',"blob":{_quoted(v.blob)}'
    if v.base is not None:
        text += f',"base":{v.base}'
    if v.shard is not None:
        text += f',"shard":{_shard(v.shard)}'
    if v.skipped is not None:
        text += f',"skipped":{_quoted(v.skipped)}'
    return text + "}\n"


def _shard(shard: Shard) -> str:
    partial = ',"partial":true' if shard.partial else ""
    return f'{{"shape":{_sizes(shard.shape)},"offset":{_sizes(shard.offset)}{partial}}}'


def _arguments(arguments: Mapping[str, Argument]) -> str:
    if not arguments:
        return "{}"
    items = [f"{_quoted(name)}:{_argument(value)}" for name, value in arguments.items()]
    return f"{{{','.join(items)}}}"


def _argument(value: Argument) -> str:
    form = _FORMS.get(type(value))
    if form is not None:
        return form(value)
    for kind in (bool, int, float, str, list, tuple):  # subclasses: an IntEnum, torch.Size
        if isinstance(value, kind):
            return _FORMS[kind](value)
    raise TypeError(
        f"an argument of type {type(value).__name__} cannot be recorded: record it as a Special"
    )


def _float(value: float) -> str:
    return repr(float(value)) if math.isfinite(value) else f'{{"float":"{float(value)}"}}'


_FORMS: dict[type, Callable[[Any], str]] = {
    Ref: lambda ref: f'{{"v":{ref.value}}}',
    Special: lambda special: f"{{{_quoted(special.kind)}:{_quoted(special.text)}}}",
    type(None): lambda _: "null",
    bool: lambda flag: "true" if flag else "false",
    int: int.__repr__,
    float: _float,
    str: lambda text: _quoted(text) if len(text) < 256 else _quoted.__wrapped__(text),
    list: lambda items: f"[{','.join([_argument(item) for item in items])}]",
    tuple: lambda items: f"[{','.join([_argument(item) for item in items])}]",
}


def _ids(ids: Mapping[str, int]) -> str:
    return f"{{{','.join([f'{_quoted(name)}:{value}' for name, value in ids.items()])}}}"


def _id_lists(lists: Mapping[str, Iterable[int]]) -> str:
    items = [f"{_quoted(name)}:[{','.join(map(str, ids))}]" for name, ids in lists.items()]
    return f"{{{','.join(items)}}}"


def _end(end: End, lines: int) -> str:
    return f'{{"kind":"end","operators":{end.operators},"dropped":{end.dropped},"lines":{lines}}}\n'


def _source(s: Source) -> str:
    return f'{{"kind":"source","value":{s.value},"of":"{s.kind}","name":{_quoted(s.name)}}}\n'


def _module(m: ModuleCall) -> str:
    return (
        f'{{"kind":"module","module":{_quoted(m.module)},"call":{m.call}'
        f',"class":{_quoted(m.class_name)},"phase":"{m.phase}","first":{m.first},"last":{m.last}'
        f',"inputs":{_ids(m.inputs)},"outputs":{_ids(m.outputs)}'
        f',"training":{"true" if m.training else "false"}}}\n'
    )


def _call(c: RootCall) -> str:
    autocast = "null" if c.autocast is None else _quoted(c.autocast)
    return (
        f'{{"kind":"call","index":{c.index},"training":{"true" if c.training else "false"}'
        f',"autocast":{autocast},"gradients":{"true" if c.gradients else "false"}'
        f',"arguments":{_arguments(c.arguments)},"generators":{_arguments(c.generators)}}}\n'
    )


def _adjoint(a: Adjoint) -> str:
    return f'{{"kind":"adjoint","of":{a.of},"value":{a.value}}}\n'


def _update(u: Update) -> str:
    return (
        f'{{"kind":"update","name":{_quoted(u.name)},"slot":{_quoted(u.slot)},"value":{u.value}}}\n'
    )


def _check(c: Check) -> str:
    return f'{{"kind":"check","operator":{c.operator},"fields":{_plain(c.fields)}}}\n'


def _plain(value: object) -> str:
    """JSON of dicts, lists, texts and numbers; what is not finite as in arguments."""
    if isinstance(value, dict):
        items = [f"{_quoted(name)}:{_plain(item)}" for name, item in value.items()]
        return f"{{{','.join(items)}}}"
    if isinstance(value, (list, tuple)):
        return f"[{','.join([_plain(item) for item in value])}]"
    if isinstance(value, (Ref, Special)) or not isinstance(
        value, (bool, int, float, str, type(None))
    ):
        raise TypeError(f"a check cannot hold a {type(value).__name__}")
    return _argument(value)


def _skipped(s: Skipped) -> str:
    return f'{{"kind":"skipped","what":{_quoted(s.what)},"reason":{_quoted(s.reason)}}}\n'


_OTHERS = cast(
    "dict[type, Callable[[Line], str]]",
    {
        Source: _source, ModuleCall: _module, RootCall: _call, Adjoint: _adjoint,
        Update: _update, Check: _check, Skipped: _skipped,
    },
)  # fmt: skip


def _check_lengths(lines: Iterable[str]) -> None:
    for line in lines:
        if len(line) > LONGEST:
            start = json.dumps(line[:200])
            raise ValueError(
                f"a line of {len(line)} bytes cannot be recorded, the longest allowed has "
                f"{LONGEST}: {start}…; leave this operator out"
            )
