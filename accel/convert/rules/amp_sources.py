"""Whether the device type that an amp function is given may come from a text that is converted.

`cuda` on a machine without CUDA switches autocast and the scaler off, `cpu` does not. So where the
converted text reaches one of them through a variable, a CPU computes other numbers than before.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple
from weakref import WeakKeyDictionary

from accel.convert.flow import Sink, sinks
from accel.convert.module import Module
from accel.convert.rules.amp_guards import asks_for_cuda, is_off_on_cpu, tests_around
from accel.convert.rules.functions_amp import GENERIC, use
from accel.convert.rules.functions_calls import mentions

_CUDA = re.compile(r"cuda(:\d+)?")


class Sources(NamedTuple):
    """The texts of a file that reach amp functions.

    Attributes:
        by_call: By the call that they reach.
        only: Those that reach nothing else.
    """

    by_call: dict[ast.AST, list[ast.Constant]]
    only: frozenset[ast.Constant]


_known: WeakKeyDictionary[Module, Sources] = WeakKeyDictionary()


def sources(module: Module) -> Sources:
    """Which texts that name CUDA reach an amp function of torch's, and switch it on, on a CPU."""
    found = _known.get(module)
    if found is None:
        found = _known[module] = _sources(module)
    return found


def _sources(module: Module) -> Sources:
    """What is behind a question about a device is CUDA where a converted text is asked about."""
    if not mentions(module, b"autocast", b"GradScaler", b"torch.amp"):
        return Sources({}, frozenset())
    ends = {text: _ends(module, text) for text in _texts(module)}
    asked = {text: _questions(module, text) for text in ends}
    reached = {s.node for text, found in ends.items() if not asked[text] for s in found}
    by_call: dict[ast.AST, list[ast.Constant]] = {}
    only = set()
    for text, found in ends.items():
        if asked[text] and not asked[text] & reached:
            continue
        calls = [sink.node for sink in found if _is_amp(module, sink)]
        calls = [call for call in calls if not is_off_on_cpu(module, call)]
        for call in calls:
            by_call.setdefault(call, []).append(text)
        if calls and len(calls) == len(found):
            only.add(text)
    return Sources(by_call, frozenset(only))


def _texts(module: Module) -> Iterator[ast.Constant]:
    """Texts that name CUDA, but for those that are taken only where there is CUDA."""
    for text in module.all(ast.Constant):
        is_name = isinstance(text.value, str) and _CUDA.fullmatch(text.value)
        if is_name and not is_off_on_cpu(module, text):
            yield text


def _ends(module: Module, text: ast.Constant) -> list[Sink]:
    """Where a text goes, by itself and as a `torch.device`; but for the question it is part of."""
    parent = module.parent(text)
    found = [
        sink for sink in sinks(module, text) if sink.kind == "device" or sink.node is not parent
    ]
    call = module.parent(parent) if isinstance(parent, ast.keyword) else parent
    if isinstance(call, ast.Call) and module.qualified(call.func) == "torch.device":
        found += sinks(module, call)
    return found


def _questions(module: Module, text: ast.Constant) -> set[ast.AST]:
    """The questions about a device on which it depends whether a text is taken."""
    return {part for test in tests_around(module, text) for part in asks_for_cuda(test)}


def _is_amp(module: Module, sink: Sink) -> bool:
    """Whether a value ends in an amp function whose device type is not CUDA's in any case."""
    call = sink.node
    if sink.kind != "device_type" or not isinstance(call, ast.Call):
        return False
    generic = GENERIC.get(module.qualified(call.func) or "")
    return generic is not None and use(module, call.func, generic).meaning == "variable"
