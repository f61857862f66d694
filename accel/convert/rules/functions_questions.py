"""Calls that raise without CUDA where the program catches that: they ask whether CUDA is there."""

from __future__ import annotations

import ast

from accel.convert.module import Module
from accel.convert.scopes import FUNCTIONS

# Of torch.cuda's functions those that do not raise on a machine without CUDA.
SILENT = frozenset(
    """
    autocast custom_bwd custom_fwd device_count device_of empty_cache GradScaler is_available
    is_bf16_supported is_initialized manual_seed manual_seed_all max_memory_allocated
    max_memory_cached max_memory_reserved memory_allocated memory_cached memory_reserved
    memory_stats memory_stats_as_nested_dict seed seed_all set_rng_state set_rng_state_all
    get_rng_state_all set_stream stream StreamContext
    """.split()
)
_CAUGHT = frozenset({
    "AssertionError", "AttributeError", "BaseException", "Exception", "RuntimeError", "TypeError",
})  # fmt: skip
_MANAGERS = frozenset({"contextlib.suppress", "pytest.raises"})
_METHODS = frozenset({"assertRaises", "assertRaisesRegex"})
_ENDINGS = frozenset({"sys.exit", "builtins.exit", "builtins.quit", "os._exit"})
_WORDS = frozenset({"print", "debug", "info", "warn", "warning", "error", "exception", "log"})
_LOOPS = (ast.For, ast.AsyncFor, ast.While, *FUNCTIONS, ast.ClassDef)
# A longer body is a program that reports its errors, and no question.
_LONGEST = 6


def is_question(module: Module, call: ast.AST) -> bool:
    """Whether a call that raises without CUDA is within something that takes that for an answer.

    Not where the error is raised again or ends the program, and not where it makes no difference
    whether the call raises: nothing follows it, and its handler does nothing.
    """
    child = call
    for outer in module.ancestors(call):
        if isinstance(outer, FUNCTIONS):
            return False
        if isinstance(outer, ast.Try) and child in outer.body and _asks(module, outer):
            return not _is_idle(module, outer, call)
        if isinstance(outer, (ast.With, ast.AsyncWith)) and child in outer.body:
            manager = _manager(module, outer)
            if manager:
                return manager != "suppress" or not _is_last(module, outer.body, call)
        child = outer
    return False


def _asks(module: Module, node: ast.Try) -> bool:
    within = [inner for statement in node.body for inner in ast.walk(statement)]
    if sum(isinstance(inner, ast.stmt) for inner in within) > _LONGEST:
        return False
    if any(isinstance(inner, _LOOPS) for inner in within):
        return False
    catching = [handler for handler in node.handlers if _catches(module, handler)]
    return bool(catching) and not any(_gives_up(module, handler) for handler in catching)


def _catches(module: Module, handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    names = [(module.qualified(kind) or "").rpartition(".")[2] if kind else "" for kind in kinds]
    return any(kind is None for kind in kinds) or bool(_CAUGHT & set(names))


def _gives_up(module: Module, handler: ast.ExceptHandler) -> bool:
    """Whether a handler raises, on some way, or ends the program."""
    for inner in (n for statement in handler.body for n in ast.walk(statement)):
        if isinstance(inner, ast.Raise):
            return True
        if isinstance(inner, ast.Call) and module.qualified(inner.func) in _ENDINGS:
            return True
    return False


def _is_idle(module: Module, node: ast.Try, call: ast.AST) -> bool:
    silent = all(_says_only(step) for handler in node.handlers for step in handler.body)
    return silent and not node.orelse and _is_last(module, node.body, call)


def _is_last(module: Module, body: list[ast.stmt], call: ast.AST) -> bool:
    """Whether a call is the last statement of a body, so that nobody takes its answer."""
    return isinstance(body[-1], ast.Expr) and module.statement(call) is body[-1]


def _says_only(step: ast.stmt) -> bool:
    """`pass`, or a word to people."""
    if isinstance(step, ast.Expr) and isinstance(step.value, ast.Call):
        function = step.value.func
        name = function.attr if isinstance(function, ast.Attribute) else ""
        return (function.id if isinstance(function, ast.Name) else name) in _WORDS
    is_text = isinstance(step, ast.Expr) and isinstance(step.value, ast.Constant)
    return is_text or isinstance(step, ast.Pass)


def _manager(module: Module, node: ast.With | ast.AsyncWith) -> str:
    """What catches errors of a `with`: `suppress`, or a test's; "" for none."""
    for item in node.items:
        call = item.context_expr
        if not isinstance(call, ast.Call):
            continue
        if module.qualified(call.func) in _MANAGERS:
            return str(module.qualified(call.func)).rpartition(".")[2]
        if isinstance(call.func, ast.Attribute) and call.func.attr in _METHODS:
            return call.func.attr
    return ""
