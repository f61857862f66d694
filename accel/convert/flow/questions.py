"""Code whose failing is an answer: `try: x.cuda() except RuntimeError: ...` asks for CUDA."""

from __future__ import annotations

import ast

from accel.convert.module import Module
from accel.convert.nodes import called, leaf
from accel.convert.scopes import FUNCTIONS

# What torch raises where there is no CUDA, and what such an error is caught by.
_CAUGHT = frozenset({"RuntimeError", "AssertionError", "Exception", "BaseException", "CudaError",
                     "AcceleratorError", "DeferredCudaCallError"})  # fmt: skip
_CATCHERS = frozenset({"raises", "suppress", "assertRaises", "assertRaisesRegex"})
_EXITS = frozenset({"exit", "_exit", "quit", "abort"})
_WORDS = frozenset({"print", "debug", "info", "warn", "warning", "error", "exception", "log"})
_LARGE = (ast.For, ast.AsyncFor, ast.While, *FUNCTIONS, ast.ClassDef)
# Statements; a longer body is a program that reports its errors, and no question.
_LONGEST = 6


def is_question(module: Module, node: ast.AST) -> bool:
    """Whether the program goes on otherwise where an expression raises for want of CUDA.

    What is raised anew, what ends the program, and what is done about a lack of memory is no
    answer. A function within the `try` runs at another time. Nor is it an answer where nothing
    depends on it: nobody takes the value, nothing follows, and the handler does nothing.
    """
    inner: ast.AST = node
    for outer in module.ancestors(node):
        if isinstance(outer, FUNCTIONS):
            return False
        if isinstance(outer, ast.Try) and inner in outer.body:
            answers = _is_short(outer) and any(_answers(module, one) for one in outer.handlers)
            is_idle = _is_idle(module, outer, node)
        elif isinstance(outer, (ast.With, ast.AsyncWith)) and inner in outer.body:
            catchers = {_swallows(item.context_expr) for item in outer.items} - {""}
            answers = bool(catchers)
            is_idle = catchers == {"suppress"} and _is_last(module, outer.body, node)
        else:
            answers = is_idle = False
        if answers:
            return not is_idle
        inner = outer
    return False


def _answers(module: Module, handler: ast.ExceptHandler) -> bool:
    if handler.type is not None and not _catches(handler.type):
        return False
    if "memory" in module.text(handler):
        return False
    return not any(_leaves(node) for statement in handler.body for node in ast.walk(statement))


def _catches(kind: ast.expr) -> bool:
    kinds = kind.elts if isinstance(kind, ast.Tuple) else [kind]
    return any(leaf(one) in _CAUGHT for one in kinds)


def _leaves(node: ast.AST) -> bool:
    return isinstance(node, ast.Raise) or called(node) in _EXITS


def _is_short(node: ast.Try) -> bool:
    within = [inner for statement in node.body for inner in ast.walk(statement)]
    if any(isinstance(inner, _LARGE) for inner in within):
        return False
    return sum(isinstance(inner, ast.stmt) for inner in within) <= _LONGEST


def _is_idle(module: Module, node: ast.Try, place: ast.AST) -> bool:
    """Whether it makes no difference that a place raises."""
    says_only = all(_says(step) for handler in node.handlers for step in handler.body)
    return says_only and not node.orelse and _is_last(module, node.body, place)


def _is_last(module: Module, body: list[ast.stmt], place: ast.AST) -> bool:
    """Whether a place is the last statement of a body, and nobody takes its value."""
    return isinstance(body[-1], ast.Expr) and module.statement(place) is body[-1]


def _says(step: ast.stmt) -> bool:
    """`pass`, or a word to people."""
    if isinstance(step, ast.Expr):
        value = step.value
        return called(value) in _WORDS or isinstance(value, ast.Constant)
    return isinstance(step, ast.Pass)


def _swallows(context: ast.expr) -> str:
    """`raises` of `pytest.raises(RuntimeError)`, and so on; "" if it catches no such error."""
    if not isinstance(context, ast.Call) or called(context) not in _CATCHERS:
        return ""
    return called(context) if any(_catches(given) for given in context.args) else ""
