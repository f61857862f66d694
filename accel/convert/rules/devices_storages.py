"""Receivers of `.cuda()` that may be storages: their `to` takes a device by its name only."""

from __future__ import annotations

import ast

from accel.convert.flow.positions import is_location
from accel.convert.module import Module

_MAKERS = frozenset({"storage", "untyped_storage", "typed_storage"})
_LOCATIONS = frozenset({"loc", "location", "map_location"})


def may_be_storage(module: Module, receiver: ast.expr) -> bool:
    """Whether the device must be named in `to(device=...)`, which tensors and modules take too.

    That is so for storages, and for the first parameter of what may be a `map_location`: a lambda
    of two parameters that returns the moved value, or a function that says so by its names or is
    handed to `torch.load`.
    """
    value = module.value_of(receiver)
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute):
        return value.func.attr in _MAKERS
    if not isinstance(value, ast.Name):
        return False
    binding = module.binding(value)
    function = binding.scope.node if binding is not None and binding.parameter else None
    if isinstance(function, (ast.Lambda, ast.FunctionDef)):
        names = [one.arg for one in (*function.args.posonlyargs, *function.args.args)]
        if len(names) > 1 and names[0] == value.id:
            if isinstance(function, ast.Lambda):
                return _is_result(module, receiver, function)
            return names[1] in _LOCATIONS or _is_handed_on(module, function)
    return value.id == "storage"


def _is_result(module: Module, receiver: ast.expr, function: ast.Lambda) -> bool:
    """Whether a call on the receiver is what the lambda returns."""
    node: ast.AST = module.parent(module.parent(receiver))
    while isinstance(module.parent(node), (ast.IfExp, ast.BoolOp)):
        node = module.parent(node)
    return node is function.body


def _is_handed_on(module: Module, function: ast.FunctionDef) -> bool:
    binding = module.scope(module.parent(function)).names.get(function.name)
    return binding is not None and any(is_location(module, use) for use in binding.uses)
