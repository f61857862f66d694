"""Whether an expression is reached on an accelerator alone: by what is asked around it."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from accel.convert.module import Module
from accel.convert.rules.functions_calls import argument, block_of
from accel.convert.scopes import FUNCTIONS

_AVAILABLE = "torch.cuda.is_available"
_LEAVES = (ast.Return, ast.Raise, ast.Continue, ast.Break)
# Of `torch.autocast`; the others have it by keyword alone.
_ENABLED = 2


def tests_around(module: Module, node: ast.AST) -> Iterator[ast.expr]:
    """The tests that must hold where an expression is evaluated."""
    return (test for test, truth in _conditions(module, node) if truth)


def asks_for_cuda(test: ast.expr) -> Iterator[ast.AST]:
    """The comparisons with CUDA's name in a test."""
    for part in ast.walk(test):
        if _excludes(part, True):
            yield part


def is_off_on_cpu(module: Module, node: ast.AST) -> bool:
    """Whether a text or an amp call is not reached, or not switched on, on a CPU.

    For a text, where `torch.cuda.is_available()` is asked; for a call, also where the device that
    it is given is not `cpu`.
    """
    names: frozenset[str] = frozenset()
    tests = list(_conditions(module, node))
    if isinstance(node, ast.Call):
        given = argument(node, 0, "device_type") or argument(node, 0, "device")
        names = _names(module, given) if given is not None else names
        enabled = argument(node, _ENABLED, "enabled")
        if enabled is not None:
            tests.append((enabled, True))
        if _is_replaced(module, node, names):
            return True
    return any(_holds(module, test, truth, names) for test, truth in tests)


def _is_replaced(module: Module, call: ast.Call, names: frozenset[str]) -> bool:
    """Whether `if not torch.cuda.is_available(): device = "cpu"` stands before a call."""
    start = module.span(call).start
    for statement in module.all(ast.Assign):
        around = module.parent(statement)
        value = statement.value
        if isinstance(value, ast.Call) and module.qualified(value.func) == "torch.device":
            value = value.args[0] if value.args else value
        is_cpu = isinstance(value, ast.Constant) and value.value == "cpu"
        is_before = is_cpu and isinstance(around, ast.If) and module.span(around).end <= start
        if not is_before or not any(module.text(t) in names for t in statement.targets):
            continue
        if isinstance(around, ast.If) and _is_without(module, around, statement):
            return True
    return False


def _is_without(module: Module, around: ast.If, statement: ast.stmt) -> bool:
    """Whether a statement is what is done where CUDA is not available."""
    if statement not in around.body:
        return _holds(module, around.test, True, frozenset())
    test = around.test
    parts = test.values if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And) else [test]
    return any(_holds(module, part, False, frozenset()) for part in parts)


def _names(module: Module, given: ast.expr) -> frozenset[str]:
    """The texts by which a device type, or the device that it is of, may be asked about."""
    found: set[str] = set()
    for node in (given, module.value_of(given)):
        inner = node.value if isinstance(node, ast.Attribute) and node.attr == "type" else node
        found |= {module.text(inner), f"{module.text(inner)}.type"}
    return frozenset(found)


def _conditions(module: Module, node: ast.AST) -> Iterator[tuple[ast.expr, bool]]:
    """What is known to hold, or not to hold, where a node is evaluated."""
    inner = node
    for outer in module.ancestors(node):
        if isinstance(outer, (ast.If, ast.IfExp)) and inner is not outer.test:
            body = outer.body if isinstance(outer.body, list) else [outer.body]
            yield outer.test, inner in body
        elif isinstance(outer, ast.BoolOp):
            for value in outer.values[: outer.values.index(inner)]:  # type: ignore[arg-type]
                yield value, isinstance(outer.op, ast.And)
        if isinstance(inner, ast.stmt):
            yield from _left(module, inner)
        if isinstance(outer, FUNCTIONS):
            return
        inner = outer


def _left(module: Module, statement: ast.stmt) -> Iterator[tuple[ast.expr, bool]]:
    """The tests before a statement that leave its block where they hold."""
    block = block_of(module, statement)
    for other in block[: block.index(statement)]:
        if isinstance(other, ast.If) and not other.orelse and isinstance(other.body[-1], _LEAVES):
            yield other.test, False


def _holds(module: Module, test: ast.expr, truth: bool, names: frozenset[str]) -> bool:
    """Whether there is an accelerator where a test is true, or where it is not."""
    if isinstance(test, ast.Name):
        test = module.value_of(test)
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return _holds(module, test.operand, not truth, names)
    if isinstance(test, ast.BoolOp):
        every = isinstance(test.op, ast.And) is not truth
        parts = [_holds(module, value, truth, names) for value in test.values]
        return all(parts) if every else any(parts)
    if isinstance(test, ast.Call) and module.qualified(test.func) == _AVAILABLE:
        return truth
    sides = [test.left, *test.comparators] if isinstance(test, ast.Compare) else []
    if isinstance(test, ast.Call) and isinstance(test.func, ast.Attribute):
        sides = [test.func.value]
    is_of_device = any(module.text(side) in names for side in sides)
    return is_of_device and _excludes(test, truth)


def _excludes(test: ast.AST, truth: bool) -> bool:
    """Whether a comparison with names of devices rules a CPU out where it is true, or not true."""
    if isinstance(test, ast.Call):
        called = test.func.attr if isinstance(test.func, ast.Attribute) else ""
        texts = _texts(test.args[:1]) if called == "startswith" else []
        equal = truth
    elif isinstance(test, ast.Compare) and len(test.ops) == 1:
        texts = _texts([test.left, *test.comparators])
        equal = truth is isinstance(test.ops[0], (ast.Eq, ast.In, ast.Is))
    else:
        return False
    if not texts:
        return False
    return "cpu" not in texts if equal else set(texts) == {"cpu"}


def _texts(nodes: list[ast.expr]) -> list[str]:
    found: list[str] = []
    for node in nodes:
        items = node.elts if isinstance(node, (ast.Tuple, ast.List, ast.Set)) else [node]
        found += [i.value for i in items if isinstance(i, ast.Constant) and type(i.value) is str]
    return found
