"""What a node of a syntax tree is by itself, without the file around it."""

from __future__ import annotations

import ast


def is_none(node: ast.AST | None) -> bool:
    """Whether an expression is the constant None."""
    return isinstance(node, ast.Constant) and node.value is None


def is_self(node: ast.AST) -> bool:
    """Whether an expression is called what methods call their own object or class."""
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def leaf(node: ast.AST) -> str:
    """The last name of `rank` and `args.rank`; "" of anything else."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def called(node: ast.AST) -> str:
    """The last name of what is called; "" of what is no call."""
    return leaf(node.func) if isinstance(node, ast.Call) else ""


def terminal_name(node: ast.AST) -> str:
    """The last name of `args.local_rank`, `self.gpu`, `rank` or `opts["gpu"]`."""
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        return str(node.slice.value)
    return leaf(node)


def by_keyword(call: ast.Call, name: str) -> ast.expr | None:
    """What a call is given by a keyword; None if it has none of that name."""
    return next((word.value for word in call.keywords if word.arg == name), None)
