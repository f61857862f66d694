"""Where attributes, options, keys and results are read."""

from __future__ import annotations

import ast
from weakref import WeakKeyDictionary

from accel.convert.flow.options import destination
from accel.convert.module import Module
from accel.convert.nodes import is_self
from accel.convert.scopes import FUNCTIONS


class _Index:
    """What is read in a file, by name."""

    def __init__(self, module: Module) -> None:
        self.attributes: dict[str, list[ast.Attribute]] = {}
        self.keys: dict[str, list[ast.Subscript | ast.Call]] = {}
        for node in module.all(ast.Attribute):
            if isinstance(node.ctx, ast.Load) and not _of_import(module, node):
                self.attributes.setdefault(node.attr, []).append(node)
        for item in module.all(ast.Subscript):
            if isinstance(item.ctx, ast.Load) and isinstance(item.slice, ast.Constant):
                self.keys.setdefault(str(item.slice.value), []).append(item)
        for call in module.all(ast.Call):
            func, first = call.func, call.args[0] if call.args else None
            reads = isinstance(func, ast.Attribute) and func.attr in ("get", "pop", "setdefault")
            if reads and isinstance(first, ast.Constant):
                self.keys.setdefault(str(first.value), []).append(call)


def _of_import(module: Module, node: ast.Attribute) -> bool:
    """Whether an attribute is a function or class of an imported module, as `torch.device`."""
    binding = module.binding(node.value) if isinstance(node.value, ast.Name) else None
    return binding is not None and any(isinstance(n, ast.Import) for n in binding.import_nodes)


_indexes: WeakKeyDictionary[Module, _Index] = WeakKeyDictionary()


def _index(module: Module) -> _Index:
    found = _indexes.get(module)
    if found is None:
        found = _indexes[module] = _Index(module)
    return found


def attribute_uses(
    module: Module, target: ast.Attribute | ast.Name, owner: ast.ClassDef | None = None
) -> list[ast.expr]:
    """Where an attribute that is written, or a name of a class's body, is read.

    `self.x` within its class; `args.x` for the same `args`; a field of a class (given by `owner`)
    through `self` within, and through anything outside.
    """
    name = target.id if isinstance(target, ast.Name) else target.attr
    loads = _index(module).attributes.get(name, [])
    if isinstance(target, ast.Attribute):
        if is_self(target.value):
            owner = module.class_of(target)
            return [node for node in loads if _through_self(module, node, owner)]
        base = module.text(target.value)
        return [node for node in loads if module.text(node.value) == base]
    names = list(module.walk.scopes[owner].names[name].uses) if owner else []
    return [
        *names,
        *(n for n in loads if not is_self(n.value) or module.class_of(n) is owner),
    ]


def _through_self(module: Module, node: ast.Attribute, owner: ast.ClassDef | None) -> bool:
    return is_self(node.value) and module.class_of(node) is owner


def option_uses(module: Module, call: ast.Call, where: int | str = 0) -> tuple[str, list[ast.expr]]:
    """The destination of a command-line option, and where it is read.

    `where` is the argument that gives it its default, which is its name in `set_defaults`.
    """
    name = destination(call)
    if isinstance(call.func, ast.Attribute) and call.func.attr == "set_defaults":
        name = str(where)
    loads = _index(module).attributes.get(name, [])
    keys = _index(module).keys.get(name, [])
    decorated = module.parent(call)
    if isinstance(decorated, FUNCTIONS):  # click: the function's parameter
        binding = module.walk.scopes[decorated].names.get(name)
        return name, [*binding.uses] if binding else []
    return name, [*(node for node in loads if not is_self(node.value)), *keys]


def subscript_uses(
    module: Module, target: ast.Subscript | ast.Dict | ast.Call, key: str = ""
) -> list[ast.expr]:
    """Where the value under a key is read, for `d["x"] = …`, `d = {"x": …}`, `d = dict(x=…)`."""
    if isinstance(target, ast.Subscript):
        if not isinstance(target.slice, ast.Constant):
            return []
        base = module.text(target.value)
        found = _index(module).keys.get(str(target.slice.value), [])
        return [node for node in found if _base(module, node) == base]
    outer = module.parent(target)
    if not isinstance(outer, ast.Assign):
        return []
    bases = {module.text(t) for t in outer.targets if isinstance(t, (ast.Name, ast.Attribute))}
    found = _index(module).keys.get(key, [])
    return [node for node in found if _base(module, node) in bases]


def _base(module: Module, node: ast.Subscript | ast.Call) -> str:
    owner = node if isinstance(node, ast.Subscript) else node.func
    return module.text(owner.value) if isinstance(owner, (ast.Subscript, ast.Attribute)) else ""


def calls_of(module: Module, function: ast.AST) -> list[ast.Call]:
    """The calls of a function of this file by its name, or of a method through `self`."""
    outer = module.parent(function)
    name = getattr(function, "name", "")
    if isinstance(outer, ast.ClassDef):
        loads = _index(module).attributes.get(name, [])
        reads: list[ast.expr] = [n for n in loads if _through_self(module, n, outer)]
    else:
        binding = module.scope(outer).names.get(name)
        reads = [*binding.uses] if binding else []
    parents = [(node, module.parent(node)) for node in reads]
    return [p for node, p in parents if isinstance(p, ast.Call) and p.func is node]
