"""Which third-party packages a file imports, whether it can do without them, and their uses."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple

from accel.convert.finding import Finding
from accel.convert.module import Module
from accel.convert.nodes import called
from accel.convert.tables.packages import Package, imported
from accel.convert.tokens import pattern

_CAUGHT = frozenset({"ImportError", "ModuleNotFoundError", "Exception", "BaseException"})
_EXITS = frozenset({"exit", "_exit", "quit", "abort", "fatal"})


class Import(NamedTuple):
    """A package in an import statement.

    Attributes:
        package: What it is.
        name: The module, as written.
        node: The statement, or the one name in it.
    """

    package: Package
    name: str
    node: ast.AST


def imports(module: Module) -> Iterator[Import]:
    """The packages of the table that a file imports."""
    for statement in module.all(ast.Import):
        for alias in statement.names:
            package = imported(alias.name)
            if package and not is_local(module, alias.name):
                whole = statement if len(statement.names) == 1 else alias
                yield Import(package, alias.name, whole)
    for node in module.all(ast.ImportFrom):
        if node.level or not node.module:
            continue
        package = imported(node.module, frozenset(alias.name for alias in node.names))
        if package and not is_local(module, node.module):
            yield Import(package, node.module, node)


def find(module: Module) -> Iterator[Finding]:
    """Imports, and the names of what they bring in."""
    found = list(imports(module))
    for one in found:
        yield about(module, one.node, one.package, optional=why_optional(module, one.node))
    if found:
        yield from _uses(module, found)


def about(module: Module, node: ast.AST, package: Package, *, optional: str) -> Finding:
    """What to say of one package where it is imported."""
    what = f"{package.name} ({package.what})"
    if package.verdict == "supported":
        return module.keep(node, "ACC100", f"{what} {package.said}", subject=package.name)
    if optional:
        return module.keep(
            node, "ACC100", f"{what} is optional here: {optional}", subject=package.name
        )
    instead = package.instead()
    return module.flag(
        node,
        "ACC100",
        f"{what} {package.said}",
        package.advice + (f" Candidates: {instead}." if instead else ""),
        effort="rewrite" if package.verdict == "none" else "review",
        blocker=package.verdict == "none",
        subject=package.name,
    )


def is_reference(module: Module, node: ast.expr) -> bool:
    """Whether a chain is read by its own name: an alias of it is looked at where it is made."""
    if not isinstance(getattr(node, "ctx", None), ast.Load):
        return False
    binding = module.binding(node) if isinstance(node, ast.Name) else None
    return isinstance(node, ast.Attribute) or (binding is not None and bool(binding.imports))


def is_local(module: Module, name: str) -> bool:
    """Whether a module of the tree hides the package of that name."""
    root = name.partition(".")[0]
    folder = module.path.rpartition("/")[0].replace("/", ".")
    beside = f"{folder}.{root}" if folder else root
    return any(
        known == start or known.startswith(f"{start}.")
        for known in module.project.modules
        for start in (root, beside)
    )


def why_optional(module: Module, node: ast.AST) -> str:
    """Why a program goes on without an import; "" if it does not."""
    child: ast.AST = _statement_of(module, node)
    for outer in module.ancestors(child):
        if isinstance(outer, ast.Try) and child in outer.body and _survives(outer):
            return "an ImportError is caught"
        if isinstance(outer, ast.If) and child in outer.body and _asks_for_it(outer.test):
            return "it is imported only where it is installed"
        child = outer
    return ""


def _survives(node: ast.Try) -> bool:
    return any(_catches(handler) and _goes_on(handler) for handler in node.handlers)


def _statement_of(module: Module, node: ast.AST) -> ast.stmt:
    if isinstance(node, ast.alias):
        return next(one for one in module.all(ast.Import) if node in one.names)
    return module.statement(node)


def _catches(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(isinstance(kind, ast.Name) and kind.id in _CAUGHT for kind in kinds)


def _goes_on(handler: ast.ExceptHandler) -> bool:
    """Whether the handler neither raises, nor ends the program, nor imports the same again."""
    for node in ast.walk(handler):
        if isinstance(node, ast.Raise):
            return False
        if called(node) in _EXITS:
            return False
    return True


def _asks_for_it(test: ast.expr) -> bool:
    """`if importlib.util.find_spec("flash_attn")`, `if is_flash_attn_available():`."""
    for node in ast.walk(test):
        name = called(node)
        if name == "find_spec" or re.fullmatch(r"is_\w+_available", name):
            return True
    return False


def _uses(module: Module, found: list[Import]) -> Iterator[Finding]:
    """Names of a package with a word in them that must be accounted for."""
    matcher = pattern(module.options.source)
    statements = {_statement_of(module, one.node): one for one in found}
    for node in module.all(ast.Name):
        binding = module.binding(node) if isinstance(node.ctx, ast.Load) else None
        nodes = binding.import_nodes if binding else ()
        one = next((statements[inner] for inner in nodes if inner in statements), None)
        if one is None or not _is_of(module, node, one.package):
            continue
        whole: ast.expr = node
        while isinstance(outer := module.parent(whole), ast.Attribute):
            whole = outer
        if matcher.search(module.text(whole)):
            line = module.source.line_of(module.span(one.node).start)
            yield module.keep(
                whole,
                "ACC101",
                f"a part of {one.package.name}: see its import on line {line}",
                subject=one.package.name,
            )


def _is_of(module: Module, node: ast.Name, package: Package) -> bool:
    """Whether a name stands for a part of a package: its statement may import others too."""
    binding = module.binding(node)
    name = binding.imports[0] if binding and binding.imports else ""
    head, _, leaf = name.rpartition(".")
    return package in (imported(name), imported(head, frozenset({leaf})) if head else None)
