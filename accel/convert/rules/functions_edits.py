"""The edits of a `from` import some of whose names leave it."""

from __future__ import annotations

import ast
import re
from typing import NamedTuple

from accel.convert.finding import Edit, Span
from accel.convert.module import Module
from accel.convert.rules import functions_calls as calls

_MODULE_NAME = re.compile(r"from(?:\s|\\\r?\n)+([\w.]+)")


class Move(NamedTuple):
    """Where a name is imported from in the output."""

    home: str
    name: str


def in_place(
    module: Module,
    node: ast.ImportFrom,
    home: str,
    going: dict[ast.alias, Move],
    dropped: list[ast.alias],
) -> list[Edit] | None:
    """The edits of a statement that goes on importing from one module, and of those beside it."""
    edits: list[Edit] = []
    if home != node.module:
        edits.append(Edit(_module_span(module, node), (home,)))
    gone = [a for a in node.names if a in dropped or (a in going and going[a].home != home)]
    for alias, move in going.items():
        if alias not in gone and move.name != alias.name:
            edits.append(Edit(module.span(alias), (_renamed(alias, move),)))
    removal = _removed(module, node, gone)
    if removal is None:
        return None
    edits += removal
    beside = _beside(module, node, {a: m for a, m in going.items() if m.home != home})
    return edits + beside


def _renamed(alias: ast.alias, move: Move) -> str:
    bound = alias.asname or alias.name
    return move.name if bound == move.name else f"{move.name} as {bound}"


def _module_span(module: Module, node: ast.ImportFrom) -> Span:
    span = module.span(node)
    match = _MODULE_NAME.match(module.source.text(span))
    if match is None:
        raise ValueError(f"line {node.lineno}: no module's name behind from")
    return Span(span.start + match.start(1), span.start + match.end(1))


def _removed(module: Module, node: ast.ImportFrom, gone: list[ast.alias]) -> list[Edit] | None:
    """The edits that take names out of a list of names, comma and all."""
    edits: list[Edit] = []
    names = node.names
    for index, alias in enumerate(names):
        if alias not in gone:
            continue
        own = module.span(alias)
        rest = [a for a in names[index + 1 :] if a not in gone]
        if rest:
            span = Span(own.start, module.span(names[index + 1]).start)
        else:  # behind the last name that stays
            before = module.span(names[index - 1]).end
            span = Span(before, own.end)
        if calls.has_comment(module, span):
            return None
        edits.append(Edit(span, ()))
    return edits


def _beside(module: Module, node: ast.ImportFrom, moves: dict[ast.alias, Move]) -> list[Edit]:
    """The statements that bring the names which left this one."""
    if not moves:
        return []
    homes: dict[str, list[str]] = {}
    for alias, move in moves.items():
        homes.setdefault(move.home, []).append(_renamed(alias, move))
    lines = [f"from {home} import {', '.join(names)}" for home, names in homes.items()]
    indent = calls.indentation(module, node)
    between = "; " if indent is None else module.source.newline + indent
    start = module.span(node).start
    # The keyword is replaced, since an empty span would touch the edits beside it.
    word = Span(start, start + len("from"))
    return [Edit(word, ("".join(line + between for line in lines), word))]
