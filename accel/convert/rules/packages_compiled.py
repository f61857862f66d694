"""Compiled modules of a project's own: imports of what is no Python file of its tree."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple

from accel.convert.finding import Finding
from accel.convert.module import Module
from accel.convert.rules.packages_extensions import SHOWN, name_of_function, plain_versions
from accel.convert.rules.packages_imports import why_optional
from accel.convert.rules.packages_plain import without
from accel.convert.tables.packages import imported
from accel.convert.wording import listed

# What people call the compiled part of a package.
_USUAL = re.compile(
    r"_ext|_C|_cuda|_kernels?|_backend|_native|(?:.*_)?ext(?:ension)?s?_?cuda|\w*_cuda"
)
_WAYS = (
    "Look whether it is built from CUDA sources. On Ascend call a plain torch version of it, or "
    "write it with torch operators, in Triton, or in Ascend C."
)


class Compiled(NamedTuple):
    """One import of a compiled module.

    Attributes:
        name: What it is called.
        bound: The names in this file that stand for it, or for a part of it.
        node: The statement.
    """

    name: str
    bound: tuple[str, ...]
    node: ast.Import | ast.ImportFrom


def find(module: Module) -> Iterator[Finding]:
    """Their imports, with the functions that use them, and those uses."""
    for one in _imports(module):
        yield _about(module, one)
        yield from _uses(module, one)


def _imports(module: Module) -> Iterator[Compiled]:
    # Of a file alone nobody can tell what stands beside it, but for names that say it.
    is_alone = len(module.project.modules) < 2
    for node in module.all(ast.Import):
        for alias in node.names:
            top = alias.name.partition(".")[0]
            speaks = not is_alone and module.speaks(top) and imported(alias.name) is None
            if speaks and not _is_python(module, alias.name):
                yield Compiled(alias.name, (alias.asname or top,), node)
    for statement in module.all(ast.ImportFrom):
        names = frozenset(alias.name for alias in statement.names)
        if imported(statement.module or "", names) is None and not (
            is_alone and not _sure(statement)
        ):
            yield from _from(module, statement)


def _sure(node: ast.ImportFrom) -> bool:
    """`from . import _C`, `from ._ext import nms`."""
    parts = {*(node.module or "").split("."), *(alias.name for alias in node.names)}
    return bool(node.level) and bool(parts & {"_C", "_ext"})


def _from(module: Module, node: ast.ImportFrom) -> Iterator[Compiled]:
    # Names first: they are cheap to look at, and few are of this kind.
    parts = (node.module or "").split(".") if node.level else [(node.module or "").split(".")[0]]
    if (node.module or "").rpartition(".")[2] == "_ext":
        yield from _built(module, node)
        return
    inside = node.level and "_ext" in module.path.split("/")  # files that a build writes
    if inside or any(part and (_USUAL.fullmatch(part) or module.speaks(part)) for part in parts):
        base = _absolute(module, node)
        if base is not None and not _is_python(module, base):
            # `from .._ext.roi_align import f`, `from my_cuda import f`
            names = tuple(alias.asname or alias.name for alias in node.names)
            yield Compiled(node.module or "", names, node)
        return
    for alias in node.names:
        if _USUAL.fullmatch(alias.name) and alias.name not in module.project.names:
            # `from . import roi_align_cuda`, `from pkg import _C`
            base = _absolute(module, node)
            whole = f"{base}.{alias.name}" if base else alias.name
            if base is not None and _is_folder(module, base) and not _is_python(module, whole):
                yield Compiled(alias.name, (alias.asname or alias.name,), node)


def _built(module: Module, node: ast.ImportFrom) -> Iterator[Compiled]:
    """`from .._ext import roi_align`: a build writes Python files there that define nothing."""
    for alias in node.names:
        one = Compiled(f"_ext.{alias.name}", (alias.asname or alias.name,), node)
        taken = {outer.attr for outer in _attributes(module, one)}
        if not taken & module.project.names:
            yield one


def _absolute(module: Module, node: ast.ImportFrom) -> str | None:
    """The module that a statement imports from, as the tree's files are called."""
    if not node.level:
        return node.module
    folders = module.path.split("/")[:-1]
    if node.level - 1 > len(folders):
        return None
    kept = folders[: len(folders) - (node.level - 1)]
    return ".".join([*kept, *([node.module] if node.module else [])])


def _is_python(module: Module, name: str) -> bool:
    """Whether the tree has a file, or a folder of modules, of this name; anywhere in it."""
    inner = f".{name}."
    for known in module.project.modules:
        dotted = f".{known}."
        at = dotted.find(inner)
        # A folder with nothing but the script that builds the extension is none of modules.
        if at >= 0 and dotted[at + len(inner) :].partition(".")[0] not in ("setup", "build"):
            return True
    return False


def _is_folder(module: Module, name: str) -> bool:
    """Whether a dotted name is a folder, so that what is imported from it are modules."""
    if not name:
        return True
    file = module.project.modules.get(name, "")
    return file.endswith("/__init__.py") or (not file and _is_python(module, name))


def _about(module: Module, one: Compiled) -> Finding:
    what = f"{one.name} is no Python file of this tree, but compiled code, by its name"
    optional = why_optional(module, one.node)
    if optional:
        return module.keep(one.node, "ACC103", f"{what}; {optional}", subject=one.name)
    names = list(_names(module, one))
    users = sorted({name for use in names if (name := name_of_function(module, use))})
    used = f"; used by {listed(users, SHOWN)}" if users else ""
    plain = plain_versions(module)
    advice = f"A plain version seems to be {listed(plain, SHOWN)}. " if plain else ""
    said = without(module, one.node, names)
    speaks = module.speaks(module.text(one.node)) or any(
        module.speaks(outer.attr) for outer in _attributes(module, one)
    )
    return module.flag(
        one.node, "ACC103", f"{what}{used}" + (f"; {said}" if said else ""), advice + _WAYS,
        effort="rewrite", blocker=speaks and not said, subject=one.name,
    )  # fmt: skip


def _names(module: Module, one: Compiled) -> Iterator[ast.Name]:
    for node in module.all(ast.Name):
        if node.id in one.bound and isinstance(node.ctx, ast.Load):
            binding = module.binding(node)
            if binding is not None and one.node in binding.import_nodes:
                yield node


def _attributes(module: Module, one: Compiled) -> Iterator[ast.Attribute]:
    """What is taken of it by name."""
    for node in _names(module, one):
        outer = module.parent(node)
        if isinstance(outer, ast.Attribute):
            yield outer


def _uses(module: Module, one: Compiled) -> Iterator[Finding]:
    line = module.source.line_of(module.span(one.node).start)
    for node in _names(module, one):
        whole: ast.expr = node
        while isinstance(outer := module.parent(whole), ast.Attribute):
            whole = outer
        if module.speaks(module.text(whole)):
            yield module.keep(
                whole, "ACC103", f"compiled code of {one.name}: see its import on line {line}",
                subject=one.name,
            )  # fmt: skip
