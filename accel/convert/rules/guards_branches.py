"""Conditions beside a condition: branches that a program has for other accelerators already."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from accel.convert.module import Module

_OTHERS = frozenset({"npu", "xpu", "mps", "hpu", "mlu", "musa", "mtia", "hip", "xla", "tpu"})
_NPU = re.compile(r"(?:^|_)npu(?:_|$)")
_ATTRIBUTES = frozenset({f"is_{name}" for name in _OTHERS})


def other_branches(module: Module, node: ast.expr) -> str:
    """Another accelerator that the same chain of conditions asks for; "" if there is none."""
    whole: ast.AST = node
    while isinstance(module.parent(whole), (ast.BoolOp, ast.UnaryOp)):
        whole = module.parent(whole)
    parent = module.parent(whole)
    if not isinstance(parent, (ast.If, ast.IfExp)) or parent.test is not whole:
        return ""
    for test in _tests(module, parent):
        if test is not whole:
            named = _named(test)
            if named:
                return named
    return ""


def ascend_branch(module: Module, node: ast.expr) -> bool:
    """Whether a condition for Ascend's devices follows in the same chain: it must be reached."""
    whole: ast.AST = node
    while isinstance(module.parent(whole), ast.BoolOp):
        whole = module.parent(whole)
    parent = module.parent(whole)
    if not isinstance(parent, ast.If) or parent.test is not whole:
        return False
    tests = list(_tests(module, parent))
    return any(_asks_npu(test) for test in tests[tests.index(parent.test) + 1 :])


def _asks_npu(test: ast.expr) -> bool:
    for node in ast.walk(test):
        name = getattr(node, "attr", None) or getattr(node, "id", None)
        if isinstance(node, ast.Constant):
            name = node.value
        if isinstance(name, str) and _NPU.search(name):
            return True
    return False


def _tests(module: Module, node: ast.If | ast.IfExp) -> Iterator[ast.expr]:
    """The tests of a chain of `elif`, and of conditions beside it that exclude it."""
    if isinstance(node, ast.IfExp):
        yield from _expressions(module, node)
        return
    head: ast.If = node
    parent = module.parent(head)
    while isinstance(parent, ast.If) and parent.orelse == [head]:
        head, parent = parent, module.parent(parent)
    yield from _chain(head)
    for name in ("body", "orelse", "finalbody"):
        block = getattr(parent, name, None)
        if isinstance(block, list) and head in block:
            yield from _beside(block, block.index(head))


def _beside(block: list[ast.stmt], index: int) -> Iterator[ast.expr]:
    """Tests of conditions that exclude the one at an index: it, or they, leave the block."""
    if _leaves(block[index]):
        for statement in (*block[:index], *block[index + 1 :]):
            if isinstance(statement, ast.If) and _leaves(statement):
                yield from _chain(statement)


def _leaves(statement: ast.stmt) -> bool:
    last = statement.body[-1] if isinstance(statement, ast.If) else statement
    return isinstance(last, (ast.Return, ast.Raise, ast.Continue, ast.Break))


def _chain(statement: ast.stmt) -> Iterator[ast.expr]:
    current: ast.stmt | None = statement
    while isinstance(current, ast.If):
        yield current.test
        current = current.orelse[0] if len(current.orelse) == 1 else None


def _expressions(module: Module, node: ast.IfExp) -> Iterator[ast.expr]:
    head: ast.IfExp = node
    parent = module.parent(head)
    while isinstance(parent, ast.IfExp) and parent.orelse is head:
        head, parent = parent, module.parent(parent)
    current: ast.expr = head
    while isinstance(current, ast.IfExp):
        yield current.test
        current = current.orelse


def _named(test: ast.expr) -> str:
    for node in ast.walk(test):
        if isinstance(node, ast.Constant) and node.value in _OTHERS:
            return str(node.value)
        if isinstance(node, ast.Attribute) and node.attr in _ATTRIBUTES:
            return node.attr.removeprefix("is_")
    return ""
