"""Tables, `{"device": "cuda"}` and `dict(device="cuda")`, and the calls they are given to whole."""

from __future__ import annotations

import ast
from typing import Literal

from accel.convert.flow.calls import is_message, parameter_of
from accel.convert.flow.uses import subscript_uses
from accel.convert.module import Module

# read: looked up by its key. argument: an argument of a call by its key's name. passed: given to
# what is not the file's. stored: nothing here reads it.
Way = Literal["read", "argument", "passed", "stored"]

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
# What makes an object of the same entries, by the last part of its name.
_CONTAINERS = frozenset(
    {"OmegaConf.create", "EasyDict", "edict", "AttrDict", "Munch", "munchify", "Box", "ConfigDict",
     "DotMap", "DictConfig", "OrderedDict", "defaultdict"}
)  # fmt: skip


def ways(module: Module, table: ast.Dict | ast.Call, key: str) -> list[tuple[Way, ast.expr]]:
    """What becomes of the value under a key of a table.

    It is read where the file says so; else it is what the calls that are given the whole table make
    of it. Of those that are not the file's own nothing is known: another package, another machine.
    """
    uses = subscript_uses(module, table, key)
    if uses:
        return [("read", use) for use in uses]
    found: list[tuple[Way, ast.expr]] = []
    for holder in _holders(module, table):
        given = _handed(module, holder)
        if given is not None:
            found.extend(_within(module, *given, key))
    return found or [("stored", table)]


def _within(
    module: Module, call: ast.Call, where: int | str, key: str
) -> list[tuple[Way, ast.expr]]:
    """What a call does with a table."""
    if isinstance(where, str) and (where == "**" or where.endswith("kwargs")):
        return [("argument", call)]  # `**table`, `model_kwargs=table`
    parameter = parameter_of(module, call, where)
    if parameter is not None:
        reads = [found for use in parameter.uses if (found := _read(module, use, key)) is not None]
        return [("read", found) for found in reads] or [("stored", call)]
    name = module.qualified(call.func) or ""
    if name in _HARMLESS or is_message(module, call, name):
        return []
    if name.endswith(tuple(f".{one}" for one in _CONTAINERS)):
        return [("stored", call)]
    return [("passed", call)]


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


def _holders(module: Module, table: ast.expr) -> list[ast.expr]:
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


def _handed(module: Module, holder: ast.expr) -> tuple[ast.Call, int | str] | None:
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
