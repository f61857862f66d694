"""`'cuda' if torch.cuda.is_available() else 'cpu'` in its forms."""

from __future__ import annotations

import ast
from typing import NamedTuple

from accel.convert.module import Module
from accel.convert.rules.devices_spelling import Place, place_of

_AVAILABLE = frozenset({"torch.cuda.is_available"})


class Choice(NamedTuple):
    """A conditional expression that chooses a CUDA device where there is one, else the CPU.

    Attributes:
        place: The CUDA device.
        is_object: Both are `torch.device` objects; strings otherwise.
        head: The text by which the program calls `torch.device`, for objects.
    """

    place: Place
    is_object: bool
    head: str = ""


def choice_of(module: Module, node: ast.IfExp) -> Choice | None:
    """The choice that a conditional expression makes; None if it is another one."""
    test, first, second = node.test, node.body, node.orelse
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        test, first, second = test.operand, second, first
    if not _asks(module, test):
        return None
    if isinstance(second, ast.Constant) and second.value == "cpu":
        place = place_of(module, first)
        return Choice(place, False) if place is not None else None
    return _objects(module, first, second)


def _asks(module: Module, test: ast.expr) -> bool:
    """Whether a test is `torch.cuda.is_available()`, itself or through a name."""
    test = module.value_of(test)
    return isinstance(test, ast.Call) and module.qualified(test.func) in _AVAILABLE


def _objects(module: Module, first: ast.expr, second: ast.expr) -> Choice | None:
    place, cpu = _device(module, first), _device(module, second)
    if place is None or cpu is None or not isinstance(first, ast.Call):
        return None
    named = cpu.args[0] if cpu.args else None
    if not (isinstance(named, ast.Constant) and named.value == "cpu" and len(cpu.args) == 1):
        return None
    if not 1 <= len(place.args) <= 2 or place.keywords:
        return None
    found = place_of(module, place.args[0])
    if found is None or (found.number and len(place.args) == 2):
        return None
    if len(place.args) == 2:
        found = Place((place.args[1],))
    return Choice(found, True, module.text(place.func))


def _device(module: Module, node: ast.expr) -> ast.Call | None:
    """A call of `torch.device`."""
    is_call = isinstance(node, ast.Call) and module.qualified(node.func) == "torch.device"
    return node if is_call and isinstance(node, ast.Call) else None
