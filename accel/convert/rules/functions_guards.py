"""Tests for CUDA that decide whether `torch.cuda` itself, or what is in it, is taken as a value."""

from __future__ import annotations

import ast

from accel.convert.module import Module
from accel.convert.rules.functions_table import MODULES, lookup
from accel.convert.rules.guards_content import GUARDS

_TESTS = (ast.BoolOp, ast.Compare, ast.UnaryOp)
_ASSIGNMENTS = (ast.Assign, ast.AnnAssign)


def chooses_module(module: Module, node: ast.AST) -> bool:
    """Whether `torch.cuda.is_available` chooses between `torch.cuda` and something else.

    Where the module stays a value, the test must stay too: on another device it would choose what
    is not there. A variable that holds the answer counts if all its uses do that.
    """
    if module.qualified(node) not in GUARDS:
        return False
    call = module.parent(node)
    if not isinstance(call, ast.Call) or call.func is not node or call.args:
        return False
    if _chooses(module, call):
        return True
    parent = module.parent(call)
    target = parent.targets[0] if isinstance(parent, ast.Assign) else None
    if not isinstance(target, ast.Name):
        return False
    binding = module.scope(target).find(target.id)
    if binding is None or len(binding.values) != 1 or not binding.uses:
        return False
    return all(_chooses(module, use) for use in binding.uses)


def _chooses(module: Module, test: ast.AST) -> bool:
    node, parent = test, module.parent(test)
    while isinstance(parent, _TESTS):
        node, parent = parent, module.parent(parent)
    if isinstance(parent, ast.IfExp) and parent.test is node:
        return _is_module(module, parent.body) or _is_module(module, parent.orelse)
    if isinstance(parent, ast.If) and parent.test is node:
        return _is_choice(module, parent.body) or _is_choice(module, parent.orelse)
    return False


def _is_module(module: Module, node: ast.expr) -> bool:
    return module.qualified(node) in MODULES


def _is_choice(module: Module, branch: list[ast.stmt]) -> bool:
    """Whether a branch does nothing but bind a name to what stays CUDA's."""
    return bool(branch) and all(_binds(module, statement) for statement in branch)


def _binds(module: Module, statement: ast.stmt) -> bool:
    if isinstance(statement, _ASSIGNMENTS) and statement.value is not None:
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        is_alias = all(isinstance(t, ast.Name) and is_alias_of_one(module, t) for t in targets)
        return not is_alias and _is_module(module, statement.value)
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return any(is_of_two(module, statement, alias) for alias in statement.names)
    return False


def is_alias_of_one(module: Module, target: ast.Name) -> bool:
    """Whether a variable is given one value and no other meaning."""
    binding = module.scope(target).find(target.id)
    return (
        binding is not None
        and len(binding.values) == 1
        and not (binding.is_opaque or binding.parameter or binding.definitions or binding.imports)
        and not isinstance(binding.scope.node, ast.ClassDef)
    )


def is_of_two(module: Module, node: ast.Import | ast.ImportFrom, alias: ast.alias) -> bool:
    """Whether a name is imported from `torch.cuda`, unmoved, and from elsewhere in other branches.

    What is used of such a name cannot be told from what is used of the other.
    """
    bound = alias.asname or alias.name.partition(".")[0]
    binding = module.scope(node).find(bound)
    if binding is None or len(set(binding.imports)) < 2:
        return False
    home = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
    if not alias.asname and not home:
        return False  # `import torch.cuda` binds torch
    name = module.vendor.canonical(f"{home}{alias.name}")
    known = lookup(name)
    return name in MODULES or (known is not None and known.kind == "type")
