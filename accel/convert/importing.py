"""Where the output's own imports go."""

from __future__ import annotations

import ast
import re

from accel.convert.finding import Edit, Span
from accel.convert.module import Module

# Names whose conversion is spelled with torch's own name.
_TORCH = re.compile(rb"Tensor|OutOfMemoryError|AcceleratorError")


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
    lines = [_line(name, module) for name in sorted(needed) if not _has(module, name)]
    if not lines:
        return []
    text = module.source.newline.join(lines)
    anchor = _anchor(module, first_use)
    if anchor is None:
        return [_before(module, _first(module), text)]
    return [_behind(module, anchor, text)]


def replacing_line(module: Module, node: ast.stmt, edit: Edit) -> Edit | None:
    """The edit that takes an import away, or puts ours there if ours would go behind it.

    What `import_edit` would insert behind the line is then within it, and left out with it.

    Returns:
        None where something else than this library may have to be imported in that place.
    """
    lacking = [name for name in sorted(module.target.imports) if not _has(module, name)]
    if node is not _anchor(module, None):
        return edit
    if "torch" not in module.walk.module.names and _TORCH.search(module.source.utf8):
        return None
    if not lacking:
        return edit
    text = module.source.newline.join(_line(name, module) for name in lacking)
    return Edit(edit.span, (text + module.source.newline,))


def _line(name: str, module: Module) -> str:
    if name == "accel" and module.library_name != "accel":
        return f"import accel as {module.library_name}"
    return f"import {name}"


def _has(module: Module, name: str) -> bool:
    """Whether the module's own level imports it, unconditionally, under the name that is used."""
    wanted = module.library_name if name == "accel" else name
    for node in module.tree.body:
        if isinstance(node, ast.Import):
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
    """Whether a statement comes after something at the module's level that needs the imports."""
    if first_use is None or module.span(node).start < first_use:
        return False
    place = Span(first_use, first_use)
    user = next((n for n in module.tree.body if module.span(n).contains(place)), None)
    return not isinstance(user, (ast.FunctionDef, ast.AsyncFunctionDef))


def _imports_torch(node: ast.stmt) -> bool:
    if isinstance(node, ast.Import):
        return any(alias.name.partition(".")[0] == "torch" for alias in node.names)
    if isinstance(node, ast.ImportFrom) and not node.level:
        return (node.module or "").partition(".")[0] == "torch"
    return False


def _behind(module: Module, node: ast.stmt, text: str) -> Edit:
    """Behind a statement's last line, whatever else is on it: `import torch  # why`."""
    source = module.source
    line = source.line_of(module.span(node).end)
    stop = source.starts[line] if line < len(source.starts) else len(source.utf8)
    begin = source.starts[line - 1]
    end = begin + len(source.utf8[begin:stop].rstrip(b"\r\n"))
    if end == stop:  # the last line, without an end
        return _before(module, source.starts[source.line_of(module.span(node).start) - 1], text)
    # The line end is replaced, since an empty span would touch the edits beside it.
    return Edit(Span(end, stop), (source.newline + text, Span(end, stop)))


def _before(module: Module, position: int, text: str) -> Edit:
    return Edit(Span(position, position), (text + module.source.newline,))


def _first(module: Module) -> int:
    """The line of the first statement: behind `#!`, the coding line and a licence."""
    if not module.tree.body:
        return len(module.source.utf8)
    first = module.tree.body[0]
    decorators = getattr(first, "decorator_list", [])
    start = min(module.span(node).start for node in [first, *decorators])
    return module.source.starts[module.source.line_of(start) - 1]
