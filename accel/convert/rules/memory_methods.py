"""Whether a method that is called is torch's, or one of the same name of the program's own."""

from __future__ import annotations

import ast

from accel.convert.flow import instance_class, is_tensor_or_module
from accel.convert.flow.evidence import method_of
from accel.convert.module import Module


def is_own_method(module: Module, func: ast.Attribute) -> bool | None:
    """Whether a call is of a method of the program's own; None if it may be.

    A file in which no class has such a method calls torch's. Where one has, it is torch's for what
    is a tensor, and for what such a method itself hands the call on to.
    """
    receiver = func.value
    inner = receiver.func if isinstance(receiver, ast.Call) else receiver
    if isinstance(inner, ast.Name) and inner.id in ("self", "cls", "super"):
        return True
    owners = [c for c in module.all(ast.ClassDef) if method_of(c, func.attr) is not None]
    if not owners and func.attr not in module.project.methods:
        return False
    made = instance_class(module, receiver)
    if made is not None:
        return True if made in owners else None
    if is_tensor_or_module(module, receiver) or _is_handed_on(module, func):
        return False
    return None


def _is_handed_on(module: Module, func: ast.Attribute) -> bool:
    """Whether `self.x.f()` stands in the method `f` of a class, whose parts it is for."""
    around = module.function_of(func)
    root: ast.expr = func.value
    while isinstance(root, (ast.Attribute, ast.Subscript)):
        root = root.value
    is_part = root is not func.value and isinstance(root, ast.Name) and root.id == "self"
    return is_part and getattr(around, "name", "") == func.attr
