"""What the rules about calls share: spelling a function, dropping an argument, a whole line."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from itertools import chain

from accel.convert.finding import Edit, Span
from accel.convert.module import Module
from accel.convert.scopes import Binding, Scope
from accel.convert.targets import Argument, Part

_BLOCKS = ("body", "orelse", "finalbody")


def torch_name(module: Module, node: ast.AST) -> str | None:
    """What torch is called where a node stands: its own root, or a name that means torch there.

    None where the name `torch` means something else and nothing else means torch.
    """
    root = node
    while isinstance(root, ast.Attribute):
        root = root.value
    if isinstance(root, ast.Name) and module.qualified(root) == "torch":
        return root.id
    for scope in module.scopes_out(node):
        for name, binding in scope.names.items():
            is_torch = set(binding.imports) == {"torch"}
            is_late = name != "torch" and _is_imported_behind(module, node, scope, name)
            if is_torch and not (is_late or binding.values or binding.is_opaque):
                return name
    free = all("torch" not in scope.names for scope in module.scopes_out(node))
    return "torch" if free else None


def needs_torch(module: Module, node: ast.AST, spelled: str) -> frozenset[str]:
    """The imports that a use of `torch_name`'s answer needs: none where a scope binds it."""
    for scope in module.scopes_out(node):
        if spelled in scope.names:
            is_late = _is_imported_behind(module, node, scope, spelled)
            return frozenset({"torch"}) if is_late else frozenset()
    return frozenset({"torch"})


def _is_imported_behind(module: Module, node: ast.AST, scope: Scope, name: str) -> bool:
    """Whether a file's only imports of torch come behind what its own level does with it."""
    nodes = scope.names[name].import_nodes
    if scope.parent is not None or not nodes or module.function_of(node) is not None:
        return False
    return all(module.span(other).start > module.span(node).start for other in nodes)


def scopes(module: Module) -> list[Scope]:
    """The scopes in which names are imported: the file, its functions and classes."""
    nodes = module.all(ast.FunctionDef), module.all(ast.AsyncFunctionDef), module.all(ast.ClassDef)
    return [module.walk.scopes[node] for node in (module.tree, *chain.from_iterable(nodes))]


def brought(module: Module) -> Iterator[ast.Name]:
    """The uses of names that an import brings, or that are another name for something."""
    for scope in scopes(module):
        for binding in scope.names.values():
            if binding.imports or _is_alias(binding):
                yield from binding.uses


def _is_alias(binding: Binding) -> bool:
    return len(binding.values) == 1 and isinstance(binding.values[0], (ast.Attribute, ast.Name))


def imports(module: Module, name: str) -> bool:
    """Whether the file imports a module, or something from it."""
    return any(
        imported == name or imported.startswith(f"{name}.")
        for scope in scopes(module)
        for binding in scope.names.values()
        for imported in binding.imports
    )


def mentions(module: Module, *words: bytes) -> bool:
    """Whether one of some words is anywhere in the file: a cheap test before a long look."""
    # The text of other vendors' programs has other words than the tree.
    return bool(module.vendor.words) or any(word in module.source.utf8 for word in words)


def argument(call: ast.Call, position: int, keyword: str) -> ast.expr | None:
    """An argument by place or by name; None if it is not given, or hidden behind a star."""
    if any(isinstance(given, ast.Starred) for given in call.args[: position + 1]):
        return None
    if position < len(call.args):
        return call.args[position]
    return next((item.value for item in call.keywords if item.arg == keyword), None)


def has_stars(call: ast.Call) -> bool:
    """Whether `*args` or `**kwargs` hide some of the arguments."""
    return any(isinstance(given, ast.Starred) for given in call.args) or any(
        item.arg is None for item in call.keywords
    )


def has_comment(module: Module, span: Span) -> bool:
    """Whether there may be a comment between two nodes (a hash sign is taken for one)."""
    return b"#" in module.source.utf8[span.start : span.end]


def without_argument(module: Module, call: ast.Call, given: ast.AST) -> Edit | None:
    """The edit that drops one argument of a call, with the comma that goes with it.

    Args:
        module: The file.
        call: The call.
        given: One of its positional arguments, or the value of one of its keywords.

    Returns:
        None if a comment would be lost.
    """
    spans = sorted(_argument_spans(module, call))
    own = next(span for span in spans if span.contains(module.span(given)))
    index = spans.index(own)
    if index + 1 < len(spans):
        gone = Span(own.start, spans[index + 1].start)
    elif index:
        gone = Span(spans[index - 1].end, own.end)
    else:
        gone = Span(own.start, _closing(module, call, own))
    if has_comment(module, gone):
        return None
    # Parentheses around an argument are outside its node.
    if module.source.text(gone).count("(") != module.source.text(gone).count(")"):
        return None
    return Edit(gone, ())


def templated(
    module: Module,
    node: ast.expr,
    function: str,
    names: tuple[str, ...] = (),
    without: ast.expr | None = None,
) -> Edit | None:
    """The edit of a call, or a decorator, for targets that spell a function by a template.

    Args:
        module: The file.
        node: The function that is called, or the decorator.
        function: Ours.
        names: What its positional arguments are called, if the template's come in another order.
        without: An argument that is left out.

    Returns:
        None where the target has no template for these arguments, or a comment would be lost.
    """
    call = module.parent(node)
    if node in getattr(call, "decorator_list", ()):
        parts = module.target.call(function)
        return _whole(module, node, parts)
    if not isinstance(call, ast.Call) or call.func is not node:
        return None
    if has_comment(module, Span(module.span(node).end, module.span(call).end)):
        return None
    places = [given for given in call.args if given is not without]
    if (names and len(places) > len(names)) or (places and function.startswith("custom_")):
        return None  # these take keywords alone
    arguments: list[Argument] = [*places]
    for index, name in enumerate(names[: len(places)]):
        arguments[index] = (f"{name}=", places[index])
    for item in call.keywords:
        if item.value is not without:
            # `enabled` may be joined to a condition of the template's own.
            joined = item.arg == "enabled"
            arguments.append(("enabled=", item.value) if joined else module.span(item))
    return _whole(module, call, module.target.call(function, *arguments))


def _whole(module: Module, node: ast.expr, parts: tuple[Part, ...] | None) -> Edit | None:
    if parts is None:
        return None
    pieces = (p if isinstance(p, (str, Span)) else module.span(p) for p in parts)
    return Edit(module.span(node), tuple(pieces))


def _argument_spans(module: Module, call: ast.Call) -> Iterator[Span]:
    for given in call.args:
        yield module.span(given)
    for item in call.keywords:
        yield module.span(item)


def _closing(module: Module, call: ast.Call, last: Span) -> int:
    """Where the only argument and its trailing comma end."""
    text = module.source.utf8[last.end : module.span(call).end]
    comma = text.find(b",")
    return last.end + comma + 1 if comma >= 0 else last.end


def block_of(module: Module, statement: ast.stmt) -> list[ast.stmt]:
    """The list of statements that a statement is in."""
    parent = module.parent(statement)
    for name in _BLOCKS:
        block = getattr(parent, name, None)
        if isinstance(block, list) and statement in block:
            return block
    return [statement]


def is_alone(module: Module, statement: ast.stmt) -> bool:
    """Whether a statement has its lines to itself: no other one, and no comment."""
    span = module.span(statement)
    first = module.source.starts[module.source.line_of(span.start) - 1]
    before = module.source.utf8[first : span.start]
    after = module.source.utf8[span.end : _line_end(module, span.end)]
    inner = module.source.text(span)
    return not before.strip() and not after.strip() and not _comments(inner)


def without_line(module: Module, statement: ast.stmt) -> Edit | None:
    """The edit that takes a statement and its line away; None where that would lose something.

    An import within `try` is also a test, and stays.
    """
    if len(block_of(module, statement)) < 2 or not is_alone(module, statement):
        return None
    if isinstance(module.parent(statement), ast.Try):
        return None
    span = module.span(statement)
    starts = module.source.starts
    following = module.source.line_of(span.end)
    end = starts[following] if following < len(starts) else len(module.source.utf8)
    # With the line end behind it: text can still be put behind the line before.
    return Edit(Span(starts[module.source.line_of(span.start) - 1], end), ())


def _line_end(module: Module, position: int) -> int:
    line = module.source.line_of(position)
    starts = module.source.starts
    stop = starts[line] if line < len(starts) else len(module.source.utf8)
    begin = starts[line - 1]
    return begin + len(module.source.utf8[begin:stop].rstrip(b"\r\n"))


def _comments(text: str) -> bool:
    if "#" not in text:
        return False
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return any(token.type == tokenize.COMMENT for token in tokens)


def indentation(module: Module, statement: ast.stmt) -> str | None:
    """The white space before a statement; None if something else is on its line before it."""
    span = module.span(statement)
    begin = module.source.starts[module.source.line_of(span.start) - 1]
    head = module.source.utf8[begin : span.start].decode("utf-8")
    return None if head.strip() else head
