"""What becomes of each name of a `from` import: it moves, it goes, or it stays."""

from __future__ import annotations

import ast
from typing import NamedTuple
from weakref import WeakKeyDictionary

from accel.convert.finding import Edit
from accel.convert.module import Module
from accel.convert.rules.functions_amp import GENERIC, Generic
from accel.convert.rules.functions_amp import use as amp_use
from accel.convert.rules.functions_calls import without_line
from accel.convert.rules.functions_edits import Move, in_place
from accel.convert.rules.functions_kept import has_keep_comment, is_exported, is_kept, is_taken
from accel.convert.rules.functions_table import MODULES, Known, lookup
from accel.convert.rules.functions_uses import Refusal, spell
from accel.convert.scopes import Binding


class Plan(NamedTuple):
    """One statement.

    Attributes:
        moves: The names that are imported from elsewhere; their uses stay as they are.
        dropped: The names that nothing uses after the conversion.
        edits: Of the statement; empty if nothing is done, or cannot be without losing a comment.
        home: Where it imports from afterwards; "" if it is gone.
        is_blocked: A comment stands in the way.
    """

    moves: dict[ast.alias, Move]
    dropped: list[ast.alias]
    edits: list[Edit]
    home: str
    is_blocked: bool = False


_plans: WeakKeyDictionary[Module, dict[ast.ImportFrom, Plan]] = WeakKeyDictionary()


def plan(module: Module, node: ast.ImportFrom) -> Plan:
    """What becomes of a statement's names."""
    known = _plans.setdefault(module, {})
    if node not in known:
        known[node] = _plan(module, node)
    return known[node]


def _plan(module: Module, node: ast.ImportFrom) -> Plan:
    home = str(node.module)
    found = {alias: _move(module, node, alias) for alias in node.names}
    moves = {alias: move for alias, move in found.items() if move is not None}
    dropped = [alias for alias in node.names if _is_dropped(module, node, alias)]
    if not moves and not dropped:
        return Plan({}, [], [], home)
    if len(dropped) == len(node.names):
        edit = without_line(module, node)
        return Plan({}, dropped, [edit] if edit else [], "" if edit else home)
    if len(moves) + len(dropped) == len(node.names):
        home = next(iter(moves.values())).home
    edits = in_place(module, node, home, moves, dropped)
    if edits is None:
        return Plan({}, [], [], home, is_blocked=True)
    return Plan(moves, dropped, edits, home)


def is_moved(module: Module, name: ast.Name) -> bool:
    """Whether a name's own import is converted, so that its uses stay as they are."""
    binding = module.binding(name)
    if binding is None or not binding.import_nodes:
        return False
    return all(_binding_move(module, binding, node) for node in binding.import_nodes)


def _binding_move(
    module: Module, binding: Binding, node: ast.Import | ast.ImportFrom
) -> Move | None:
    if not isinstance(node, ast.ImportFrom):
        return None
    alias = next((a for a in node.names if (a.asname or a.name) == binding.name), None)
    return plan(module, node).moves.get(alias) if alias is not None else None


def full_name(module: Module, node: ast.ImportFrom, alias: ast.alias) -> str:
    """The dotted name that an import brings."""
    return module.vendor.canonical(f"{node.module}.{alias.name}")


def _move(module: Module, node: ast.ImportFrom, alias: ast.alias) -> Move | None:
    """Where an imported name comes from in the output; None if it is not moved."""
    name = full_name(module, node, alias)
    if has_keep_comment(module, node):
        return None
    if name in GENERIC:
        return _generic_move(module, node, alias, GENERIC[name])
    known = lookup(name)
    if known is None or known.kind in ("none", "type") or known.is_called:
        return None
    if not module.options.allows("ACC022") or _refused(module, node, alias):
        return None
    if known.kind == "torch":
        return Move("torch", known.function)
    found = module.target.importable(known.function)
    return Move(*found) if found else None


def _generic_move(
    module: Module, node: ast.ImportFrom, alias: ast.alias, generic: Generic
) -> Move | None:
    """Torch's own amp functions: they move if every call of them is for CUDA."""
    binding = module.scope(node).find(alias.asname or alias.name)
    if binding is None or not binding.uses or not module.options.allows("ACC022"):
        return None
    if is_exported(module, binding.name):
        return None
    if binding.values or binding.is_opaque or binding.definitions or len(binding.import_nodes) > 1:
        return None
    for name in binding.uses:
        if amp_use(module, name, generic).meaning != "cuda" or is_kept(module, name):
            return None
        if not module.options.allows("ACC041"):
            return None
    found = module.target.importable(generic.function)
    return Move(*found) if found else None


def _refused(module: Module, node: ast.ImportFrom, alias: ast.alias) -> bool:
    """Whether some use of an imported name must stay as it was."""
    binding = module.scope(node).find(alias.asname or alias.name)
    if binding is None:
        return False
    for use in binding.uses:
        known = lookup(module.qualified(use) or "")
        if known is None:
            continue  # it has another meaning besides, as in `try`: that is its own business
        if is_kept(module, use) or isinstance(spell(module, use, known), Refusal):
            return True
    return False


def _is_importable(module: Module, known: Known) -> bool:
    """Whether what takes a name's place can be imported by a name, too."""
    if known.kind in ("none", "torch"):
        return True  # it stays, or is torch's own
    if known.kind == "type" or known.is_called:
        return False
    return module.target.importable(known.function) is not None


def _is_dropped(module: Module, node: ast.ImportFrom, alias: ast.alias) -> bool:
    """Whether all uses of an imported module or tensor class are converted where they are."""
    name = full_name(module, node, alias)
    known = lookup(name)
    if name not in MODULES and (known is None or _is_importable(module, known)):
        return False
    binding = module.scope(node).find(alias.asname or alias.name)
    if binding is None or binding.values or binding.is_opaque or len(set(binding.imports)) != 1:
        return False
    if is_exported(module, binding.name):
        return False
    return bool(binding.uses) and all(is_taken(module, use) for use in binding.uses)
