"""What a number of CUDA devices decides: whether DataParallel is used, and what else."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import NamedTuple

from accel.convert.flow import Sink, sinks
from accel.convert.module import Module
from accel.convert.rules.guards_content import asks_for_cuda, content, guarded

_SEEDS = frozenset({"manual_seed", "manual_seed_all"})  # torch.manual_seed reaches all devices
_SAME = frozenset({"builtins.min", "builtins.max", "builtins.int"})  # what is asked is a number too
_DEEPEST = 3  # variables that hold a comparison, and such calls
# Ends that a number of 0 does no harm to.
_HARMLESS = frozenset({"message", "stored", "discarded"})


class Decision(NamedTuple):
    """What a number decides.

    Attributes:
        guards: The conditions of what only CUDA has, and what that is.
        is_all: Nothing else needs the number: where it stays 0, one device serves.
    """

    guards: dict[ast.AST, str]
    is_all: bool


def decides(module: Module, count: ast.expr) -> Decision:
    """What the number that an expression gives decides, through variables and attributes."""
    ends = list(_ends(module, count, 0))
    guards: dict[ast.AST, str] = {}
    bodies: list[ast.AST] = []
    for sink in ends:
        body = _body(module, sink.node)
        what = content(module, body).only_cuda if body and _is_alone(module, sink.node) else ""
        if body and what:
            guards[sink.node] = what
            bodies += body
    inner = {id(node) for body in bodies for node in ast.walk(body)}
    rest = [sink for sink in ends if sink.node not in guards and id(sink.node) not in inner]
    return Decision(guards, all(_is_harmless(module, sink) for sink in rest))


def _ends(module: Module, node: ast.AST, depth: int) -> Iterator[Sink]:
    for sink in sinks(module, node):
        compare = sink.node
        if sink.kind == "passed" and _is_same(module, compare) and depth < _DEEPEST:
            is_one = _is_one(module, compare)
            for end in _ends(module, compare, depth + 1):
                yield end._replace(kind="discarded") if is_one else end
        elif (
            isinstance(compare, ast.Compare)
            and _asks_for_several(compare)
            and not isinstance(module.parent(compare), ast.Assert)
            and guarded(module, compare) is None
            and depth < _DEEPEST
        ):
            # `parallel = count > 1`: the variable's uses ask for several.
            yield from (
                one._replace(kind="discarded") if _body(module, one.node) else one
                for one in _ends(module, compare, depth + 1)
            )
        else:
            yield sink


def _is_same(module: Module, node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and module.qualified(node.func) in _SAME


def _is_one(module: Module, node: ast.AST) -> bool:
    """`max(1, count)`: one device as good as none."""
    return (
        isinstance(node, ast.Call)
        and module.qualified(node.func) == "builtins.max"
        and any(isinstance(one, ast.Constant) and one.value == 1 for one in node.args)
    )


def _body(module: Module, node: ast.AST) -> list[ast.AST] | None:
    """What runs if a condition holds, or there are several devices."""
    if isinstance(node, ast.Compare) and _asks_for_few(node):
        return _otherwise(module, node)
    if isinstance(node, ast.If):
        return list(node.body)
    if isinstance(node, ast.IfExp):
        return [node.body]
    return guarded(module, node) if isinstance(node, ast.Compare) else None


def _is_alone(module: Module, node: ast.AST) -> bool:
    """Whether nothing else in the condition asks for CUDA, which would be a guard itself."""
    test: ast.AST = node.test if isinstance(node, (ast.If, ast.IfExp)) else node
    while isinstance(module.parent(test), ast.BoolOp):
        test = module.parent(test)
    return not asks_for_cuda(module, test)


def _is_harmless(module: Module, sink: Sink) -> bool:
    node = sink.node
    if sink.kind in _HARMLESS:
        return True
    body = _body(module, node)
    if body is None:
        return False
    if isinstance(node, ast.Compare) and (_asks_for_several(node) or _asks_for_few(node)):
        return True
    return all(
        isinstance(one, ast.Expr)
        and isinstance(one.value, ast.Call)
        and _name(module, one.value.func) in _SEEDS
        for one in body
    )


def _name(module: Module, function: ast.expr) -> str:
    """A function's last word; also where it is the device module's, as the target torch has it."""
    if (
        isinstance(function, ast.Attribute)
        and isinstance(function.value, ast.Call)
        and module.qualified(function.value.func) == "torch.get_device_module"
    ):
        return function.attr
    return (module.qualified(function) or "").rpartition(".")[2]


def _otherwise(module: Module, test: ast.Compare) -> list[ast.AST] | None:
    """What runs if a comparison is all of a condition and does not hold."""
    parent = module.parent(test)
    if isinstance(parent, ast.If):
        return list(parent.orelse)
    return [parent.orelse] if isinstance(parent, ast.IfExp) and parent.test is test else None


def _asks_for_several(node: ast.Compare) -> bool:
    """`count > 1`, `count >= 2`, `1 < count`: not so for 0, nor for one device."""
    op, number = _compared(node)
    return number is not None and (
        (isinstance(op, ast.Gt) and number >= 1) or (isinstance(op, ast.GtE) and number >= 2)
    )


def _asks_for_few(node: ast.Compare) -> bool:
    """`count <= 1`, `count < 2`, `1 >= count`: so for 0 as for one device."""
    op, number = _compared(node)
    return number is not None and (
        (isinstance(op, ast.LtE) and number >= 1) or (isinstance(op, ast.Lt) and number >= 2)
    )


def _compared(node: ast.Compare) -> tuple[ast.cmpop, int | None]:
    """How something is compared with a number that is written out, from the left."""
    op, left, right = node.ops[0], node.left, node.comparators[0]
    if isinstance(left, ast.Constant):
        left, right = right, left
        op = _MIRRORED.get(type(op), type(op))()
    value = right.value if isinstance(right, ast.Constant) and len(node.ops) == 1 else None
    return op, value if isinstance(value, int) and not isinstance(value, bool) else None


_MIRRORED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.Gt,
    ast.LtE: ast.GtE,
    ast.Gt: ast.Lt,
    ast.GtE: ast.LtE,
}
