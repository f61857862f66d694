"""Which uses and imports of `torch.cuda`'s names must stay as they are."""

from __future__ import annotations

import ast

from accel.convert.keeping import marks_of
from accel.convert.module import Module
from accel.convert.rules import guards_available
from accel.convert.rules.functions_guards import chooses_module
from accel.convert.rules.functions_table import lookup
from accel.convert.rules.functions_uses import Refusal, chain, spell
from accel.convert.rules.streams_objects import is_asked_class


def is_kept(module: Module, node: ast.AST) -> bool:
    """Whether a use stays: as a guard, by a comment, or because its rule is switched off."""
    if guards_available.is_kept(module, node) or chooses_module(module, node):
        return True
    if isinstance(node, ast.expr) and is_asked_class(module, node):
        return True
    if has_keep_comment(module, node):
        return True
    known = lookup(module.qualified(node) or "")
    return known is not None and not module.options.allows(known.rule)


def has_keep_comment(module: Module, node: ast.AST) -> bool:
    """Whether a comment that keeps something is on the lines of a node's statement."""
    line = module.source.line_of(module.span(node).start)
    last = module.source.line_of(module.span(module.statement(node)).end)
    return marks_of(module.source.utf8).any(range(line, last + 1))


def is_taken(module: Module, use: ast.Name) -> bool:
    """Whether a use of a module's name is part of what is converted."""
    found = chain(module, use)
    if found is None or is_kept(module, found[0]):
        return False
    node, known = found
    return not isinstance(spell(module, node, known), Refusal)


def is_exported(module: Module, name: str) -> bool:
    """Whether other files may import a name from this one, which then must stay what it is."""
    if module.path.endswith("__init__.py") or module.project.is_wanted(module.path, name):
        return True
    listed = module.walk.module.names.get("__all__")
    return listed is not None and any(
        isinstance(item, ast.Constant) and item.value == name
        for value in listed.values
        for item in ast.walk(value)
    )
