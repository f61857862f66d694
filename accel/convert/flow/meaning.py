"""What a value is for, from all the places that it reaches."""

from __future__ import annotations

import ast
from typing import Literal, NamedTuple

from accel.convert.flow.kinds import Kind, Sink
from accel.convert.flow.positions import device_like, is_device_string, uses_foreign
from accel.convert.flow.tracing import sinks
from accel.convert.module import Module

# device: it means a device, everywhere. other: it does not. mixed: both. unknown: cannot be told.
Meaning = Literal["device", "other", "mixed", "unknown"]

_HARMLESS: frozenset[Kind] = frozenset({"message", "text", "test", "discarded", "path"})
_OPEN: frozenset[Kind] = frozenset({"passed", "stored", "return"})
_NAMED: frozenset[Kind] = frozenset(
    {"passed", "stored", "return", "comparison", "message", "text", "test"}
)
_NO_DEVICE: frozenset[Kind] = frozenset(
    {"option", "choice", "help", "path", "message", "discarded", "key", "foreign", "text"}
)
_SAYS: dict[Kind, str] = {
    "option": "names a command-line option",
    "choice": "is one of an option's choices",
    "help": "is a help text",
    "path": "is part of a path",
    "message": "is part of a message",
    "discarded": "is a text that nothing uses",
    "key": "is a key",
    "kind": "is a device_type of code that this file does not show",
    "foreign": "goes to a package that is not built on torch",
    "text": "is part of a text",
    "comparison": "is compared with what is no device",
    "parsing": "is taken apart as text",
    "passed": "goes to code that this file does not show",
    "stored": "is read elsewhere",
    "return": "is returned to code that this file does not show",
    "unknown": "is used in a way that cannot be followed",
    "device": "is a device",
    "device_type": "is a device's type",
    "test": "is only tested",
}


class Purpose(NamedTuple):
    """What a value is for.

    Attributes:
        meaning: Whether it is a device.
        reason: What it is, or what stands against it: the rest of a sentence.
        sinks: All places.
    """

    meaning: Meaning
    reason: str
    sinks: tuple[Sink, ...]


def purpose(module: Module, node: ast.AST) -> Purpose:
    """What the value of an expression is for."""
    ends = sinks(module, node)
    positive = [sink for sink in ends if sink.kind in ("device", "device_type")]
    against = [sink for sink in ends if not _fits(module, sink)]
    if positive:  # what is a device's type for torch is one for others too
        against = [sink for sink in against if sink.kind != "kind"]
    named = [sink for sink in ends if sink.kind in _NAMED and device_like(sink.name)]
    if named and not positive and uses_foreign(module):
        return Purpose("unknown", "may go to a package that is not built on torch", ends)
    if not against and (positive or named):
        return Purpose("device", "is a device", ends)
    if positive or named:
        return Purpose("mixed", _SAYS[against[0].kind], ends)
    if ends and all(sink.kind in _NO_DEVICE for sink in ends):
        return Purpose("other", _SAYS[ends[0].kind], ends)
    if ends and all(sink.kind == "comparison" or sink.kind in _NO_DEVICE for sink in ends):
        return Purpose("other", "is only compared: it names a choice of the program's own", ends)
    first = against[0] if against else ends[0] if ends else None
    return Purpose("unknown", _SAYS[first.kind] if first else "goes nowhere", ends)


def _fits(module: Module, sink: Sink) -> bool:
    """Whether a device's name may end here."""
    if sink.kind in ("device", "device_type") or sink.kind in _HARMLESS:
        return True
    if sink.kind in _OPEN:
        return device_like(sink.name)
    return sink.kind == "comparison" and compares_devices(module, sink.node)


def compares_devices(module: Module, node: ast.AST) -> bool:
    """Whether all strings of a comparison name devices."""
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
    elif isinstance(node, ast.Call):
        sides = list(node.args)
    else:
        return False
    strings = [
        part.value
        for side in sides
        for part in (side.elts if isinstance(side, (ast.Tuple, ast.List, ast.Set)) else [side])
        if isinstance(part, ast.Constant)
    ]
    return all(is_device_string(text) or text in ("cuda:", "gpu", "") for text in strings)
