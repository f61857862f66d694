"""Tables, `{"device": "cuda"}` and `dict(device="cuda")`, and the calls they are given to whole."""

from __future__ import annotations

import ast

from accel.convert.module import Module
from accel.convert.scopes import Binding

_LOOKUPS = frozenset({"get", "pop", "setdefault"})
# Methods by which a table comes into another one, or among a list's elements.
_KEEPING = frozenset({"update", "append", "extend", "insert", "setdefault", "add"})
# Functions that look at a table, or copy it to where this file reads it.
_HARMLESS = frozenset(
    {
        "builtins.len", "builtins.isinstance", "builtins.sorted", "builtins.list", "builtins.iter",
        "builtins.dict", "copy.copy", "copy.deepcopy", "torch.save", "pprint.pprint",
    }
)  # fmt: skip


def parameter_reads(module: Module, parameter: Binding, key: str) -> list[ast.expr]:
    """Where a function reads a key of the table that it is given."""
    return [found for use in parameter.uses if (found := _read(module, use, key)) is not None]


def _read(module: Module, use: ast.expr, key: str) -> ast.expr | None:
    parent = module.parent(use)
    if isinstance(parent, ast.Subscript) and parent.value is use:
        index = parent.slice
        return parent if isinstance(index, ast.Constant) and index.value == key else None
    call = module.parent(parent)
    if isinstance(parent, ast.Attribute) and parent.attr in _LOOKUPS and isinstance(call, ast.Call):
        first = call.args[0] if call.args else None
        return call if isinstance(first, ast.Constant) and first.value == key else None
    return None


def holders(module: Module, table: ast.expr) -> list[ast.expr]:
    """A table itself, or what it is a part of, and the uses of the variable that holds that."""
    parent = module.parent(table)
    while isinstance(parent, (ast.Dict, ast.List, ast.Tuple)):
        table, parent = parent, module.parent(parent)
    found = [table]
    targets = parent.targets if isinstance(parent, ast.Assign) else []
    for target in targets:
        binding = module.scope(target).find(target.id) if isinstance(target, ast.Name) else None
        found.extend(binding.uses if binding is not None else ())
    return found


def handed(module: Module, holder: ast.expr) -> tuple[ast.Call, int | str] | None:
    """The call that a table is given to as a whole, and where; `**` where it is taken apart."""
    parent = module.parent(holder)
    if isinstance(parent, ast.keyword):
        call = module.parent(parent)
        return (call, parent.arg or "**") if isinstance(call, ast.Call) else None
    if isinstance(parent, ast.Call) and holder in parent.args:
        func = parent.func
        if isinstance(func, ast.Attribute) and func.attr in _KEEPING | _LOOKUPS:
            return None
        return parent, parent.args.index(holder)
    return None


def is_harmless(module: Module, call: ast.Call) -> bool:
    """Whether a call only looks at a table."""
    return module.qualified(call.func) in _HARMLESS


def holds_arguments(where: int | str) -> bool:
    """Whether a table is a call's arguments by name: `**table`, `model_kwargs=table`."""
    return isinstance(where, str) and (where == "**" or where.endswith("kwargs"))
