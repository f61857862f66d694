"""Whether a file goes on without an extension: what runs where its guard says no."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence

from accel.convert.module import Module
from accel.convert.sweep.native import WITHOUT

_ALL_ERRORS = frozenset({"Exception", "BaseException"})
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def without(module: Module, build: ast.AST, uses: Iterable[ast.AST]) -> str:
    """What runs without an extension, as the end of a message; "" if it cannot be told.

    A place is guarded where a condition before it says that the tensor is on a CUDA device, or
    that the build worked, and something else is written for the other case.

    Args:
        module: The file.
        build: The call that builds it, or the import.
        uses: The names that stand for it.
    """
    own = _outermost(module, build)
    is_caught = _is_caught(module, build)
    if own is None:
        return f"{WITHOUT}: an error of its build is caught" if is_caught else ""
    guards = _Guards(module, frozenset({own.name}) if is_caught else frozenset())
    pending = [use for use in uses if _outermost(module, use) is not own]
    if not is_caught:
        return guards.all_of([build, *pending], set())
    # Who only asks whether it is there needs no guard; who takes it does.
    pending += [node for node in guards.references(own) if _is_taken(module, node)]
    return guards.all_of(pending, {own})


class _Guards:
    """The guards of a file, where functions in `safe` answer whether the extension is there."""

    def __init__(self, module: Module, safe: frozenset[str]) -> None:
        self._module = module
        self._safe = safe
        self._plain: list[ast.stmt | ast.expr] = []

    def all_of(self, places: Sequence[ast.AST], known: set[_Definition]) -> str:
        """The plain path, if every place is guarded, or within what is used under a guard only."""
        pending, seen = list(places), set(known)
        while pending:
            place = pending.pop()
            outer = _outermost(self._module, place)
            if (outer is not None and outer in seen) or self._is_guarded(place):
                continue
            if outer is None or self._module.project.is_wanted(self._module.path, outer.name):
                return ""
            references = self.references(outer)
            if not references:
                return ""  # others may call it
            seen.add(outer)
            pending += references
        return self._said()

    def references(self, definition: _Definition) -> list[ast.AST]:
        """Where a definition's name is read outside of it."""
        module = self._module
        return [
            node
            for node in module.all(ast.Name)
            if node.id == definition.name
            and isinstance(node.ctx, ast.Load)
            and _outermost(module, node) is not definition
        ]

    def _said(self) -> str:
        if not self._plain:
            return ""
        first = min(self._plain, key=lambda node: node.lineno)
        called = next(
            (
                node.func.id
                for node in ast.walk(first)
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            ),
            "",
        )
        with_what = f" with {called}" if called else ""
        return f"{WITHOUT}, slower: line {first.lineno} goes on{with_what}"

    def _is_guarded(self, place: ast.AST) -> bool:
        child = place
        for outer in self._module.ancestors(place):
            found: Sequence[ast.stmt | ast.expr] = ()
            if isinstance(outer, ast.If) and self._holds(outer, child, place):
                found = outer.orelse or self._after(outer)
            elif isinstance(outer, ast.IfExp) and child is outer.body and self._says(outer.test):
                found = [outer.orelse]
            if not found and isinstance(child, ast.stmt):
                found = self._returned_before(outer, child)
            if found and not isinstance(found[0], ast.Raise):
                self._plain.append(found[0])
                return True
            if isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                return False
            child = outer
        return False

    def _holds(self, node: ast.If, child: ast.AST, place: ast.AST) -> bool:
        """Whether a place is run only where the condition, or its part so far, says it."""
        if child is node.test:
            return self._says_before(node.test, place)
        return child in node.body and self._says(node.test)

    def _after(self, node: ast.If) -> Sequence[ast.stmt]:
        """What runs where the condition is false, if its body leaves the function."""
        if not isinstance(node.body[-1], ast.Return):
            return ()
        block = _block(self._module.parent(node), node)
        return block[block.index(node) + 1 :]

    def _returned_before(self, outer: ast.AST, child: ast.stmt) -> Sequence[ast.stmt]:
        """`if not x.is_cuda: return plain(x)` before a statement of the same block."""
        block = _block(outer, child)
        for node in block[: block.index(child)] if block else ():
            if (
                isinstance(node, ast.If)
                and isinstance(node.body[-1], ast.Return)
                and self._denies(node.test)
            ):
                return node.body
        return ()

    def _says_before(self, test: ast.expr, place: ast.AST) -> bool:
        """Whether an earlier part of `a and b` says it: the later is not run without."""
        if not isinstance(test, ast.BoolOp) or not isinstance(test.op, ast.And):
            return False
        for part in test.values:
            if any(node is place for node in ast.walk(part)):
                return False
            if self._says(part):
                return True
        return False

    def _says(self, test: ast.expr) -> bool:
        if isinstance(test, ast.BoolOp):
            said = [self._says(part) for part in test.values]
            return any(said) if isinstance(test.op, ast.And) else all(said)
        if isinstance(test, ast.Call):
            return isinstance(test.func, ast.Name) and test.func.id in self._safe
        return _is_on_cuda(test, ast.Eq) or (
            isinstance(test, ast.Attribute) and test.attr == "is_cuda"
        )

    def _denies(self, test: ast.expr) -> bool:
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            return self._says(test.operand)
        if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.Or):
            return any(map(self._denies, test.values))
        return _is_on_cuda(test, ast.NotEq)


def _is_taken(module: Module, name: ast.AST) -> bool:
    """Whether what a function gives is kept or used, and not only asked for its truth."""
    call = module.parent(name)
    outer = module.parent(call) if isinstance(call, ast.Call) and call.func is name else None
    return not isinstance(outer, (ast.If, ast.IfExp, ast.BoolOp, ast.UnaryOp, ast.Expr))


def _is_on_cuda(test: ast.expr, operator: type[ast.cmpop]) -> bool:
    """`x.device.type == "cuda"`."""
    return (
        isinstance(test, ast.Compare)
        and len(test.ops) == 1
        and isinstance(test.ops[0], operator)
        and isinstance(test.left, ast.Attribute)
        and test.left.attr == "type"
        and isinstance(test.comparators[0], ast.Constant)
        and test.comparators[0].value == "cuda"
    )


def _is_caught(module: Module, node: ast.AST) -> bool:
    """Whether any error of a build is caught, and the program goes on."""
    child = node
    for outer in module.ancestors(node):
        if isinstance(outer, ast.Try) and child in outer.body:
            for handler in outer.handlers:
                kind = handler.type
                catches = kind is None or (isinstance(kind, ast.Name) and kind.id in _ALL_ERRORS)
                if catches and not any(isinstance(n, ast.Raise) for n in ast.walk(handler)):
                    return True
        if isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            return False
        child = outer
    return False


def _outermost(module: Module, node: ast.AST) -> _Definition | None:
    """The function or class of the file's own level that a node is in."""
    found = None
    for outer in (node, *module.ancestors(node)):
        if isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found = outer
    return found


def _block(outer: ast.AST | None, child: ast.stmt) -> list[ast.stmt]:
    """The list of statements that one is in."""
    for name in ("body", "orelse", "finalbody"):
        block = getattr(outer, name, None)
        if isinstance(block, list) and child in block:
            return block
    return []
