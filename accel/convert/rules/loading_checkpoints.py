"""Whether what a file gives is only put into modules and optimizers that have their own device."""

from __future__ import annotations

import ast
import re

from accel.convert.module import Module
from accel.convert.rules.loading_numbers import is_number

_STATE = frozenset({"load_state_dict", "load_params", "_load_state_dict"})
_NOT_MOVED = re.compile(r"rng|random|seed", re.IGNORECASE)  # keys of what stays on a CPU
_ON_CPU = re.compile(r"rng|sampler|loader", re.IGNORECASE)  # names of objects that hold such
_DEEPEST = 8  # parts of parts that are followed
_ASSIGN = 2  # the place of `assign` in Module.load_state_dict


def feeds_state(module: Module, load: ast.Call) -> bool:
    """Whether a loaded value reaches `load_state_dict`, and else is only read for numbers.

    Such a value is copied to where the module's parameters are, so that it does not matter where it
    was read to. Anything else may be data that the program wants where it was saved.
    """
    uses = _uses(module, load)
    if not uses:
        return False
    kinds = [_kind(module, use, 0) for use in uses]
    return "state" in kinds and "other" not in kinds


def _uses(module: Module, node: ast.expr) -> list[ast.expr]:
    """The expression itself, or the reads of the variable that it is assigned to."""
    parent = module.parent(node)
    if isinstance(parent, ast.Assign) and len(parent.targets) == 1:
        target = parent.targets[0]
        if not isinstance(target, ast.Name):
            return []
        binding = module.scope(target).find(target.id)
        if binding is None or binding.is_opaque or binding.parameter:
            return []
        reads: list[ast.expr] = [*binding.uses]
        return reads
    return [node]


def _kind(module: Module, node: ast.expr, depth: int) -> str:
    """`state`, `plain` (only read, for a number or a name) or `other`."""
    parent = module.parent(node)
    if isinstance(parent, ast.Call) and node in parent.args:
        if _takes_state(module, parent):
            return "state"
        name = module.qualified(parent.func) or ""
        return "plain" if name.startswith(("builtins.print", "builtins.len", "gc.")) else "other"
    key = _key(parent, node)
    if key is not None:
        return _of_part(module, parent, key, depth)
    if isinstance(parent, ast.Compare):
        return "plain"
    if isinstance(parent, (ast.Delete, ast.Expr)):
        return "plain"
    if isinstance(parent, ast.Attribute) and parent.attr in ("keys", "get", "pop", "items"):
        outer = module.parent(parent)
        if parent.attr == "keys":
            return "plain"
        if parent.attr == "items":
            return _filtered(module, outer, depth)
        first = outer.args[0] if isinstance(outer, ast.Call) and outer.args else None
        text = str(first.value) if isinstance(first, ast.Constant) else ""
        return _of_part(module, outer, text, depth) if first is not None else "other"
    return "other"


def _takes_state(module: Module, call: ast.Call) -> bool:
    """Whether a call copies its argument into a module or an optimizer."""
    func = call.func
    if not isinstance(func, ast.Attribute) or func.attr not in _STATE:
        return False
    given = [word.value for word in call.keywords if word.arg in ("assign", None)]
    given += call.args[_ASSIGN:]
    if any(not isinstance(value, ast.Constant) or value.value is not False for value in given):
        return False  # the module's parameters become what was read
    return _ON_CPU.search(module.text(func.value)) is None


def _filtered(module: Module, items: ast.AST, depth: int) -> str:
    """`{k: v for k, v in state.items() if …}`, which is a state again."""
    loop = module.parent(items)
    whole = module.parent(loop) if isinstance(loop, ast.comprehension) else None
    if not isinstance(whole, ast.DictComp) or not isinstance(whole.value, ast.Name):
        return "other"
    return _as_state(module, whole, depth)


def _as_state(module: Module, node: ast.expr, depth: int) -> str:
    """`state` for what is only put into a module, itself or through a variable."""
    if depth == _DEEPEST:  # `state = state["model"]` reads what it gives
        return "other"
    kinds = {_kind(module, use, depth + 1) for use in _uses(module, node)}
    return "state" if kinds <= {"state", "plain"} and "state" in kinds else "other"


def _key(parent: ast.AST, node: ast.expr) -> str | None:
    """The key by which a part of a checkpoint is read."""
    if isinstance(parent, ast.Subscript) and parent.value is node:
        index = parent.slice
        return str(index.value) if isinstance(index, ast.Constant) else ""
    return None


def _of_part(module: Module, part: ast.AST, key: str, depth: int) -> str:
    """What becomes of one entry of a checkpoint."""
    if _NOT_MOVED.search(key) or not isinstance(part, ast.expr):
        return "other"
    state = _as_state(module, part, depth)
    if state == "state":
        return state
    return "plain" if is_number(module, part, key) else "other"
