"""ACC020 to ACC029: functions of `torch.cuda` under any name, and the imports that bring them."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from accel.convert.finding import Finding
from accel.convert.module import Module
from accel.convert.rules import functions_calls as calls
from accel.convert.rules import functions_imports, guards_available
from accel.convert.rules.functions_guards import chooses_module, is_alias_of_one
from accel.convert.rules.functions_plan import is_moved
from accel.convert.rules.functions_rules import RULES as RULES
from accel.convert.rules.functions_table import MODULES, Known, lookup
from accel.convert.rules.functions_uses import Refusal, spell
from accel.convert.rules.streams_objects import is_asked_class


def find(module: Module) -> Iterator[Finding]:
    """References to names of `torch.cuda`, as calls or as values, and imports of them."""
    if module.options.source == "cuda" and not calls.mentions(module, b"cuda", b"torch.amp"):
        return
    yield from functions_imports.find(module)
    for node in module.all(ast.Attribute):
        name = module.qualified(node)
        if name is None or not name.startswith("torch.cuda"):
            continue
        known = lookup(name)
        finding = _use(module, node, known) if known else _unknown(module, node, name)
        if finding is not None:
            yield finding
    for use in calls.brought(module):
        yield from _name(module, use)


def _use(module: Module, node: ast.expr, known: Known) -> Finding | None:
    """A known name: converted, or flagged with the reason why not."""
    if guards_available.is_kept(module, node) or is_asked_class(module, node):
        return None  # another family says why
    if chooses_module(module, node):
        return module.keep(
            node, "ACC025", "It chooses whether torch.cuda is the value; elsewhere it must not be."
        )
    spelled = spell(module, node, known)
    if isinstance(spelled, Refusal):
        place = _whole(module, node) if known.kind == "none" else node
        return module.flag(
            place, spelled.rule or known.rule, spelled.message, spelled.advice,
            effort=known.effort, subject=spelled.subject,
        )  # fmt: skip
    if spelled.edit is not None:
        return module.edit(
            node, known.rule, _message(known), spelled.edit, imports=spelled.imports,
            subject=module.qualified(node) or "",
        )  # fmt: skip
    return module.convert(
        node, known.rule, _message(known), spelled.text, imports=spelled.imports,
        subject=module.qualified(node) or "",
    )  # fmt: skip


def _whole(module: Module, node: ast.expr) -> ast.expr:
    """What hangs on a name: `torch.cuda.cudart().cudaProfilerStart` for `torch.cuda.cudart`."""
    outer, parent = node, module.parent(node)
    while isinstance(parent, ast.Attribute) or (isinstance(parent, ast.Call) and not parent.args):
        if isinstance(parent, ast.Attribute):
            node = parent
        elif parent.func is not outer or parent.keywords:
            break
        outer, parent = parent, module.parent(parent)
    return node


def _message(known: Known) -> str:
    return {
        "type": "The tensor class is that of the device which is here.",
        "torch": f"torch.{known.function} is raised by every device.",
    }.get(known.kind, f"{known.function} acts on the device that is here.")


def _name(module: Module, use: ast.Name) -> Iterator[Finding]:
    """A name that an import brought."""
    name = module.qualified(use)
    if name is None or not name.startswith("torch.cuda"):
        return
    binding = module.binding(use)
    known = lookup(name)
    if binding is None or not binding.imports or known is None:
        if isinstance(module.parent(use), ast.Attribute):
            return
        if binding is not None and binding.imports and name not in MODULES:
            yield _private(module, use, name)
        else:
            yield from _module_value(module, use, name, binding is not None)
        return
    if is_moved(module, use):
        if module.speaks(use.id):
            yield module.keep(use, "ACC022", "A name whose import is converted.")
        return
    finding = _use(module, use, known)
    if finding is not None:
        yield finding


def _unknown(module: Module, node: ast.Attribute, name: str) -> Finding | None:
    """A module, a part of a known name, or a name that torch keeps to itself."""
    outer = module.parent(node)
    if name in MODULES:
        if isinstance(outer, ast.Attribute):
            return None  # the longest chain is looked at
        return next(_module_value(module, node, name, True), None)
    inner: ast.expr = node.value
    while isinstance(inner, ast.Attribute):
        if lookup(module.qualified(inner) or ""):
            return None  # e.g. torch.cuda.synchronize.__doc__
        inner = inner.value
    if lookup(module.qualified(inner) or ""):
        return None
    if isinstance(outer, ast.Attribute) and not isinstance(outer.ctx, ast.Load):
        return None
    return _private(module, node, name)


def _private(module: Module, node: ast.expr, name: str) -> Finding:
    said = "is none of torch.cuda's public names"
    if module.vendor.words:
        said = "is none of the names that other devices have as well"
    return module.flag(
        node, "ACC023", f"{name} {said}.",
        "Look for what it does in torch.accelerator, or leave it to <CUDA>.", subject=name,
    )  # fmt: skip


def _module_value(module: Module, node: ast.expr, name: str, is_bound: bool) -> Iterator[Finding]:
    """The module itself as a value: an alias whose uses are converted, or passed on."""
    if name not in MODULES or not is_bound:
        return
    parent = module.parent(node)
    if _is_dynamic(parent):
        return
    if isinstance(parent, (ast.Assign, ast.AnnAssign, ast.NamedExpr)) and parent.value is node:
        targets = parent.targets if isinstance(parent, ast.Assign) else [parent.target]
        if all(isinstance(t, ast.Name) and is_alias_of_one(module, t) for t in targets):
            yield module.keep(
                node, "ACC025", f"Only a name for {name}; what is used of it is converted there."
            )
            return
    if isinstance(node, ast.Name) and isinstance(parent, ast.Attribute):
        return
    yield module.flag(
        node, "ACC025", f"{name} is passed on as a value; what is used of it cannot be told.",
        "Pass the functions that are needed, or torch.get_device_module(accel.device()).",
        subject=name,
    )  # fmt: skip


def _is_dynamic(parent: ast.AST) -> bool:
    """`getattr(torch.cuda, name)` and the like, which another family looks at."""
    return (
        isinstance(parent, ast.Call)
        and isinstance(parent.func, ast.Name)
        and parent.func.id in ("delattr", "getattr", "hasattr", "setattr")
    )
