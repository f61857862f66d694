"""Where the output's own imports go."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from accel.convert.finding import Edit, Span
from accel.convert.module import Module
from accel.convert.scopes import FUNCTIONS

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def import_edit(module: Module, needed: set[str], first_use: int | None = None) -> list[Edit]:
    """The edit that adds the imports a file lacks, in one place, after its first import of torch.

    Never before the docstring or `from __future__`. Where torch is imported within a condition, a
    `try` or a function, or only behind the first use, they go behind the leading imports.

    Args:
        module: The file.
        needed: Modules, by their dotted names.
        first_use: The byte of the first converted place, if something before torch's import may
            need them already.
    """
    lines = [_line(name, module) for name in sorted(needed) if not _has(module, name, first_use)]
    if not lines:
        return []
    anchor = _anchor(module, first_use)
    if anchor is None:
        return [_before(module, lines)]
    return [_behind(module, _last_beside(module, anchor, first_use), lines)]


def _line(name: str, module: Module) -> str:
    if name == "accel" and module.library_name != "accel":
        return f"import accel as {module.library_name}"
    return f"import {name}"


def _has(module: Module, name: str, first_use: int | None) -> bool:
    """Whether the module's own level imports it, early enough, under the name that is used."""
    wanted = module.library_name if name == "accel" else name
    for node in module.tree.body:
        if isinstance(node, ast.Import) and not _is_late(module, node, first_use):
            for alias in node.names:
                if alias.name == name and (alias.asname or alias.name) == wanted:
                    return True
    return False


def _anchor(module: Module, first_use: int | None) -> ast.stmt | None:
    """The statement that the imports go behind."""
    head: ast.stmt | None = None
    leading = True
    for index, node in enumerate(module.tree.body):
        if _imports_torch(node) and not _is_late(module, node, first_use):
            return node
        is_head = _is_docstring(index, node) or isinstance(node, (ast.Import, ast.ImportFrom))
        leading = leading and is_head
        if leading and not _is_late(module, node, first_use):
            head = node
    return head


def _is_docstring(index: int, node: ast.stmt) -> bool:
    return (
        index == 0
        and isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _is_late(module: Module, node: ast.stmt, first_use: int | None) -> bool:
    """Whether something that needs the imports may run before a statement of the module's level."""
    start, end = module.span(node)
    if first_use is None or end <= first_use:
        return False
    place = Span(first_use, first_use)
    if start <= first_use:
        return True
    for earlier in module.tree.body:
        span = module.span(earlier)
        if first_use <= span.end and span.start < start and _runs(module, earlier, place):
            return True
    return False


def _runs(module: Module, node: ast.stmt, place: Span) -> bool:
    """Whether a statement needs what is in a place when it runs, or calls what may need it."""
    if module.span(node).contains(place) and not isinstance(node, _DEFINITIONS):
        return True
    parts = [node]
    if isinstance(node, _DEFINITIONS):
        # A body waits until it is called; decorators, defaults and annotations do not.
        parts = [*node.decorator_list, *_signature(node)]  # type: ignore[list-item]
        if any(module.span(part).contains(place) for part in parts):
            return True
        if node.decorator_list:
            return True
    return any(isinstance(inner, ast.Call) for part in parts for inner in _at_once(part))


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[ast.expr]:
    yield from (child for child in ast.walk(node.args) if isinstance(child, ast.expr))
    if node.returns is not None:
        yield node.returns


def _at_once(node: ast.AST) -> Iterator[ast.AST]:
    """What is evaluated when a piece of code is reached: all but the bodies of functions."""
    waiting = [node]
    while waiting:
        inner = waiting.pop()
        yield inner
        waiting += [n for n in ast.iter_child_nodes(inner) if not isinstance(n, FUNCTIONS)]


def _imports_torch(node: ast.stmt) -> bool:
    if isinstance(node, ast.Import):
        return any(alias.name.partition(".")[0] == "torch" for alias in node.names)
    if isinstance(node, ast.ImportFrom) and not node.level:
        return (node.module or "").partition(".")[0] == "torch"
    return False


def _last_beside(module: Module, node: ast.stmt, first_use: int | None) -> ast.stmt:
    """The last of the imports that follow one another on a statement's line."""
    body = module.tree.body
    for following in body[body.index(node) + 1 :]:
        is_beside = following.lineno == node.end_lineno
        is_import = isinstance(following, (ast.Import, ast.ImportFrom))
        if not (is_beside and is_import) or _is_late(module, following, first_use):
            break
        node = following
    return node


def _behind(module: Module, node: ast.stmt, lines: list[str]) -> Edit:
    """Behind a statement's last line: `import torch  # why`; within it if more follows there."""
    source = module.source
    end = module.span(node).end
    line = source.line_of(end)
    stop = source.starts[line] if line < len(source.starts) else len(source.utf8)
    rest = source.utf8[end:stop]
    if _goes_on(rest):
        return Edit(Span(end, end), ("".join(f"; {text}" for text in lines),))
    text = source.newline.join(lines)
    if rest.endswith((b"\n", b"\r")):
        text += source.newline
    else:  # the last line, without an end
        text = source.newline + text
    # Beside the edits of the lines around it, so that it stays if one of them is taken away.
    return Edit(Span(stop, stop), (text,))


def _goes_on(rest: bytes) -> bool:
    """Whether more than a comment stands behind a statement, by the rest of its line."""
    code = rest.strip()
    behind = code.removeprefix(b";").strip()
    return code[:1] in (b";", b"\\") and behind != b"" and not behind.startswith(b"#")


def _before(module: Module, lines: list[str]) -> Edit:
    """Before the first statement: behind `#!`, the coding line and a licence."""
    text = "".join(line + module.source.newline for line in lines)
    if not module.tree.body:
        position = len(module.source.utf8)
    else:
        first = module.tree.body[0]
        decorators = getattr(first, "decorator_list", [])
        start = min(module.span(node).start for node in [first, *decorators])
        position = module.source.starts[module.source.line_of(start) - 1]
    return Edit(Span(position, position), (text,))
