"""Names of `torch.cuda` that come by way of another file of the tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from accel.convert.finding import Finding
from accel.convert.module import Module
from accel.convert.rules.functions_table import MODULES, is_cuda, lookup
from accel.convert.rules.names_verdict import UNKNOWN
from accel.convert.scopes import Binding
from accel.convert.tokens import pattern


def find(module: Module) -> Iterator[Finding]:
    """Flags for what is used of another file's torch, and for what other files use of this one's.

    A file is converted by itself: names that it takes from a file of the tree are that file's, and
    what they are of torch's is only seen here.
    """
    if not module.project.passed:
        return
    yield from _passed_on(module)
    for node in module.all(ast.Name, ast.Attribute):
        if not isinstance(module.parent(node), ast.Attribute):
            finding = _use(module, node)
            if finding is not None:
                yield finding


def _use(module: Module, node: ast.expr) -> Finding | None:
    name = module.qualified(node)
    if name is None or name.startswith(("builtins.", "torch.")):
        return None
    # Of the other files their own words are known, which this one's tree has in CUDA's.
    found = module.project.through(module.path, _in_other_words(module, name))
    if found is None:
        return None
    known = module.vendor.canonical(_in_other_words(module, found.name))
    if not is_cuda(known) or not (found.is_part or _stays(known)):
        return None
    return module.flag(
        node, UNKNOWN, f"it is {known} by way of {found.home}, and is not converted across files",
        "Import torch in this file, write torch.cuda in full, and convert again.",
        subject=known,
    )  # fmt: skip


def _in_other_words(module: Module, name: str) -> str:
    return ".".join(module.vendor.own(part) for part in name.split("."))


def _stays(name: str) -> bool:
    """Whether an import of a name of torch.cuda's stays what it is, so that its uses do too."""
    known = lookup(name)
    if known is None or name in MODULES:
        return True
    return known.kind in ("none", "type") or known.is_called


def _passed_on(module: Module) -> Iterator[Finding]:
    """Other names for torch.cuda that tell nothing: who imports them may not be looked at."""
    word = pattern(module.options.source)
    for name, binding in module.walk.module.names.items():
        passed = module.project.passed.get((module.path, name), "")
        known = module.vendor.canonical(_in_other_words(module, passed))
        if known not in MODULES or word.search(name):
            continue
        place = _place(module, binding)
        if place is not None and module.project.is_wanted(module.path, name):
            yield module.flag(
                place, UNKNOWN, f"{name} is {known}, and other files import it under this name",
                f"Import torch in those files and write {known} in full, then convert again.",
                subject=known,
            )  # fmt: skip


def _place(module: Module, binding: Binding) -> ast.AST | None:
    """The name where it is bound."""
    for node in binding.import_nodes:
        for alias in node.names:
            if binding.name in (alias.asname, alias.name):
                return alias
    for value in binding.values:
        parent = module.parent(value)
        if isinstance(parent, ast.Assign):
            return parent.targets[0]
    return None
