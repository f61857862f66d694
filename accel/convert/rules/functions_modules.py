"""ACC022: `import torch.cuda as c` and its like."""

from __future__ import annotations

import ast

from accel.convert.finding import Finding
from accel.convert.module import Module
from accel.convert.rules.functions_calls import without_line
from accel.convert.rules.functions_guards import is_of_two
from accel.convert.rules.functions_kept import is_exported, is_taken
from accel.convert.rules.functions_table import is_cuda
from accel.convert.scopes import Binding


def plain(module: Module, node: ast.Import) -> Finding:
    """An import of the module: it goes if all its uses do."""
    kept = left(module, node, "Importing torch.cuda")
    if len(node.names) != 1:
        return kept
    alias = node.names[0]
    if is_of_two(module, node, alias):
        return said_of_two(module, node, alias, alias.name)
    binding = module.scope(node).find(alias.asname or alias.name.partition(".")[0])
    if binding is None or is_exported(module, binding.name):
        return kept
    if not _is_left(module, binding, alias):
        return kept
    edit = without_line(module, node)
    if edit is None:
        return kept
    message = f"Nothing uses {alias.asname or alias.name} any more."
    return module.edit(node, "ACC022", message, edit, imports=frozenset())


def left(module: Module, node: ast.Import | ast.ImportFrom, what: str) -> Finding:
    """What is said of an import that stays: torch.cuda is everywhere, other vendors' modules not.

    Args:
        module: The file.
        node: The import.
        what: How the sentence begins.
    """
    package = module.vendor.package
    if not package or package in module.target.imports:
        return module.keep(
            node, "ACC022", f"{what} is no use of <CUDA>: it is there without <CUDA> too."
        )
    if any(isinstance(outer, ast.Try) for outer in module.ancestors(node)):
        return module.keep(node, "ACC022", f"{what} is tried only; it may fail on other devices.")
    return module.flag(
        node, "ACC022", f"{what} raises where {package} is missing.",
        "Take it out once nothing uses it, or keep it behind a test for <CUDA>.", subject=package,
    )  # fmt: skip


def said_of_two(
    module: Module, node: ast.Import | ast.alias, alias: ast.alias, name: str
) -> Finding:
    """What is said of a name that is torch.cuda's in one branch only."""
    return module.flag(
        node,
        "ACC025",
        f"{alias.asname or alias.name} is {name} here and something else in another branch; "
        "what is used of it cannot be told.",
        "Use what torch has for every device, with a device and a dtype, in place of both.",
        subject=name,
    )


def _is_left(module: Module, binding: Binding, alias: ast.alias) -> bool:
    """Whether the conversion takes every use of an import away, and there is one."""
    uses = binding.uses
    if not alias.asname:  # `import torch.cuda` also binds torch
        if not any(_binds_torch(other) for other in binding.import_nodes):
            return False
        if any(_is_passed_on(module, use) for use in uses):
            return False
        uses = [use for use in uses if _goes_through(module, use, alias.name)]
    if binding.values or binding.is_opaque or len(set(binding.imports)) != 1:
        return False
    return bool(uses) and all(is_taken(module, use) for use in uses)


def _binds_torch(node: ast.Import | ast.ImportFrom) -> bool:
    """Whether an import brings the name torch by itself, and not for torch.cuda."""
    if not isinstance(node, ast.Import):
        return False
    names = [alias.name for alias in node.names if not alias.asname]
    return any(n == "torch" or (n.startswith("torch.") and not is_cuda(n)) for n in names)


def _goes_through(module: Module, use: ast.Name, name: str) -> bool:
    node: ast.AST = use
    while isinstance(module.parent(node), ast.Attribute):
        node = module.parent(node)
        if module.qualified(node) == name:
            return True
    return False


def _is_passed_on(module: Module, use: ast.Name) -> bool:
    return not isinstance(module.parent(use), ast.Attribute)
