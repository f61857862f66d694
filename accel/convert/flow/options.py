"""Options of a command line: argparse, optparse, click, typer."""

from __future__ import annotations

import ast
from typing import Literal
from weakref import WeakKeyDictionary

from accel.convert.module import Module

_OPTIONS = frozenset({"add_argument", "add_option", "set_defaults"})
_declared: WeakKeyDictionary[Module, list[ast.Call]] = WeakKeyDictionary()


def add_option(module: Module, call: ast.Call) -> bool:
    """Whether a call declares an option of a command line (argparse, optparse, click, typer)."""
    func = call.func
    if isinstance(func, ast.Attribute) and func.attr in _OPTIONS:
        return True
    name = module.qualified(func) or ""
    return name in ("click.option", "click.argument", "typer.Option", "typer.Argument")


def option_place(
    call: ast.Call, where: int | str
) -> Literal["default", "option", "choice", "help"]:
    """What an argument of such a call is."""
    if isinstance(call.func, ast.Attribute) and call.func.attr == "set_defaults":
        return "default"
    if where in ("default", "const"):
        return "default"
    if where == "choices":
        return "choice"
    return "help" if where in ("help", "metavar", "type", "title", "description") else "option"


def destination(call: ast.AST) -> str:
    """The attribute that a command-line option is read by; "" if the call gives none."""
    if not isinstance(call, ast.Call):
        return ""
    for word in call.keywords:
        if word.arg == "dest" and isinstance(word.value, ast.Constant):
            return str(word.value.value)
    names = [
        argument.value
        for argument in call.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    ]
    best = next((name for name in names if name.startswith("--")), names[0] if names else "")
    return best.lstrip("-").replace("-", "_")


def option_of(module: Module, name: str) -> ast.Call | None:
    """The one declaration of an option with a destination; None if there is none, or several."""
    calls = _declared.get(module)
    if calls is None:
        calls = [call for call in module.all(ast.Call) if add_option(module, call)]
        _declared[module] = calls
    found = [call for call in calls if destination(call) == name]
    return found[0] if len(found) == 1 else None
