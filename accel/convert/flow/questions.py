"""Code whose failing is an answer: `try: x.cuda() except RuntimeError: ...` asks for CUDA."""

from __future__ import annotations

import ast

from accel.convert.module import Module
from accel.convert.scopes import FUNCTIONS

# What torch raises where there is no CUDA, and what such an error is caught by.
_CAUGHT = frozenset({"RuntimeError", "AssertionError", "Exception", "BaseException", "CudaError",
                     "AcceleratorError", "DeferredCudaCallError"})  # fmt: skip
_CATCHERS = frozenset({"raises", "suppress", "assertRaises", "assertRaisesRegex"})
_EXITS = frozenset({"exit", "_exit", "quit", "abort"})


def is_question(module: Module, node: ast.AST) -> bool:
    """Whether the program goes on otherwise where an expression raises for want of CUDA.

    What is raised anew, what ends the program, and what is done about a lack of memory is no
    answer. A function within the `try` runs at another time.
    """
    inner: ast.AST = node
    for outer in module.ancestors(node):
        if isinstance(outer, FUNCTIONS):
            return False
        if isinstance(outer, ast.Try) and inner in outer.body:
            if any(_answers(module, handler) for handler in outer.handlers):
                return True
        elif isinstance(outer, (ast.With, ast.AsyncWith)) and inner in outer.body:
            if any(_swallows(item.context_expr) for item in outer.items):
                return True
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
    return any(_leaf(one) in _CAUGHT for one in kinds)


def _leaves(node: ast.AST) -> bool:
    return isinstance(node, ast.Raise) or (
        isinstance(node, ast.Call) and _leaf(node.func) in _EXITS
    )


def _swallows(context: ast.expr) -> bool:
    """`pytest.raises(RuntimeError)`, `contextlib.suppress(...)` and unittest's own."""
    if not isinstance(context, ast.Call) or _leaf(context.func) not in _CATCHERS:
        return False
    return any(_catches(argument) for argument in context.args)


def _leaf(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""
