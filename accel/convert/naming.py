"""What this library is called in a file's output."""

from __future__ import annotations

import ast

from accel.convert.nodes import is_none
from accel.convert.scopes import Binding, Scope, Walk

_LIBRARY, _ALIAS = "accel", "accel_torch"


def library_name(walk: Walk, names: frozenset[str]) -> str:
    """`accel`, unless the file uses that name for something else, or may do so.

    Args:
        walk: The file.
        names: What the files of the tree define, which a star import may bring.
    """
    brought = names if any(scope.stars for scope in walk.scopes.values()) else frozenset()
    name = _LIBRARY
    while name in brought or _is_taken(walk, name):
        name = _ALIAS if name == _LIBRARY else f"{name}_"
    return name


def _is_taken(walk: Walk, name: str) -> bool:
    """Whether a name that is read somewhere in the file may not be this library's.

    Any scope counts: a parameter of that name would hide the import from what is converted there.
    """
    for scope in set(walk.scopes.values()):
        binding = scope.names.get(name)
        if binding is not None and not _is_ours(scope, binding):
            return True
    # What nothing binds comes from a star import, or is set from outside.
    reads = walk.nodes.get(ast.Name, [])
    return any(
        node.id == name and walk.scopes[node].find(name) is None
        for node in reads
        if isinstance(node, ast.Name)
    )


def _is_ours(scope: Scope, binding: Binding) -> bool:
    """Whether a name is only ever this library; within a function, from its beginning on."""
    if binding.parameter or binding.definitions or binding.is_opaque:
        return False
    # `except ImportError: accel = None` leaves the import's meaning.
    if set(binding.imports) != {_LIBRARY} or not all(map(is_none, binding.values)):
        return False
    if scope.parent is None:
        return True
    leading = _leading(scope.node)
    return all(node in leading for node in binding.import_nodes)


def _leading(node: ast.AST) -> list[ast.stmt]:
    """The docstring and the imports that a body begins with."""
    found: list[ast.stmt] = []
    for statement in getattr(node, "body", []):
        is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if not (is_text or isinstance(statement, (ast.Import, ast.ImportFrom))):
            break
        found.append(statement)
    return found
