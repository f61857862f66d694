"""Whether what a file gives is only put into modules and optimizers that have their own device."""

from __future__ import annotations

import ast

from accel.convert.module import Module

_STATE = frozenset({"load_state_dict", "load_params", "_load_state_dict"})
_NOT_MOVED = ("rng", "random", "seed")


def feeds_state(module: Module, load: ast.Call) -> bool:
    """Whether a loaded value reaches `load_state_dict`, and nothing that must stay on the CPU.

    Such a value is copied to where the module's parameters are, so that it does not matter where it
    was read to. Anything else may be data that the program wants where it was saved.
    """
    uses = _uses(module, load)
    if not uses:
        return False
    kinds = [_kind(module, use) for use in uses]
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


def _kind(module: Module, node: ast.expr) -> str:
    """`state`, `plain` (a number, a name) or `other`."""
    parent = module.parent(node)
    if isinstance(parent, ast.Call) and node in parent.args:
        if isinstance(parent.func, ast.Attribute) and parent.func.attr in _STATE:
            return "state"
        name = module.qualified(parent.func) or ""
        return "plain" if name.startswith(("builtins.print", "builtins.len", "gc.")) else "other"
    key = _key(parent, node)
    if key is not None:
        if any(word in key.lower() for word in _NOT_MOVED):
            return "other"
        return _of_part(module, parent)
    if isinstance(parent, ast.Compare):
        return "plain"
    if isinstance(parent, (ast.Delete, ast.Expr)):
        return "plain"
    if isinstance(parent, ast.Attribute) and parent.attr in ("keys", "get", "items"):
        outer = module.parent(parent)
        if parent.attr == "items":
            return _filtered(module, outer)
        return _of_part(module, outer) if isinstance(outer, ast.Call) else "other"
    return "other"


def _filtered(module: Module, items: ast.AST) -> str:
    """`{k: v for k, v in state.items() if …}`, which is a state again."""
    loop = module.parent(items)
    whole = module.parent(loop) if isinstance(loop, ast.comprehension) else None
    if not isinstance(whole, ast.DictComp) or not isinstance(whole.value, ast.Name):
        return "other"
    kinds = {_kind(module, use) for use in _uses(module, whole)}
    return "state" if kinds and kinds <= {"state", "plain"} and "state" in kinds else "other"


def _key(parent: ast.AST, node: ast.expr) -> str | None:
    """The key by which a part of a checkpoint is read."""
    if isinstance(parent, ast.Subscript) and parent.value is node:
        index = parent.slice
        return str(index.value) if isinstance(index, ast.Constant) else ""
    return None


def _of_part(module: Module, part: ast.AST) -> str:
    """What becomes of one entry of a checkpoint."""
    parent = module.parent(part)
    func = parent.func if isinstance(parent, ast.Call) and part in parent.args else None
    is_state = isinstance(func, ast.Attribute) and func.attr in _STATE
    return "state" if is_state else "plain"
