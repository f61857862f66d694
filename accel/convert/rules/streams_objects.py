"""What a program does with streams that torch's generic ones, which converted calls give, lack."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from accel.convert.finding import Edit, Finding
from accel.convert.module import Module
from accel.convert.rules.functions_calls import scopes

# Calls whose value is a stream.
_STREAMS = frozenset(
    {
        "torch.cuda.Stream", "torch.cuda.current_stream", "torch.cuda.default_stream",
        "torch.cuda.streams.Stream",
    }
)  # fmt: skip
_CLASSES = frozenset(
    {
        "torch.cuda.Stream", "torch.cuda.Event", "torch.cuda.streams.Stream",
        "torch.cuda.streams.Event",
    }
)  # fmt: skip
HANDLES = frozenset({"cuda_stream", "cuda_event"})
_PRIORITIES = frozenset({"priority", "priority_range"})
_AS_STREAM = "A converted stream is torch's generic one"


def find(module: Module) -> Iterator[Finding]:
    """Raw handles, priorities, and questions about the class itself."""
    for node in module.all(ast.Attribute):
        if node.attr in HANDLES:
            yield from _handle(module, node)
        elif node.attr in _PRIORITIES and _is_stream(module, node.value):
            yield module.flag(
                node, "ACC050", f"{_AS_STREAM}, which has no {node.attr}.",
                "Keep the number that was given to accel.Stream(priority=...).",
                subject=node.attr,
            )  # fmt: skip
    for compare in module.all(ast.Compare):
        yield from _class(module, compare)
    for call in module.all(ast.Call):
        yield from _class(module, call)


def _handle(module: Module, node: ast.Attribute) -> Iterator[Finding]:
    """`.cuda_stream`: of a stream that is converted, or of something that comes from elsewhere."""
    if _is_made(module, node.value) and module.target.name == "accel":
        yield module.edit(
            node, "ACC052",
            "The stream is torch's generic one; native_handle is its raw handle, for <CUDA> code.",
            Edit(module.attribute_span(node), ("native_handle",)),
            imports=frozenset(), effort="review", subject=node.attr,
        )  # fmt: skip
        return
    if node.attr in module.project.names or _is_stored(module, node.attr):
        return
    yield module.flag(
        node, "ACC052", "It is a raw handle of the <CUDA> runtime, for code that calls it.",
        f"{_AS_STREAM} and has it as native_handle; other devices' code wants their own.",
        subject=node.attr,
    )  # fmt: skip


def _is_stream(module: Module, node: ast.expr) -> bool:
    """Whether an expression is a stream: made in this file, or annotated as one."""
    binding = module.binding(node) if isinstance(node, ast.Name) else None
    parameter = binding.parameter if binding is not None else None
    if parameter is not None and parameter.annotation is not None:
        return any(module.qualified(n) in _STREAMS for n in ast.walk(parameter.annotation))
    return _is_made(module, node)


def _is_made(module: Module, node: ast.expr) -> bool:
    """Whether an expression makes or is one of CUDA's streams, in this file."""
    values: list[ast.expr | None] = [module.value_of(node)]
    if isinstance(node, ast.Attribute):
        values = module.attribute_values(node)
    calls = [value for value in values if isinstance(value, ast.Call)]
    return bool(values) and all(
        value in calls and module.qualified(value.func) in _STREAMS for value in values
    )


def _is_stored(module: Module, name: str) -> bool:
    """Whether the file itself gives something such an attribute, or binds such a name."""
    stores = (a for a in module.all(ast.Attribute) if not isinstance(a.ctx, ast.Load))
    if any(a.attr == name for a in stores):
        return True
    return any(name in scope.names for scope in scopes(module))


def _class(module: Module, question: ast.Compare | ast.Call) -> Iterator[Finding]:
    for part in _places(module, question):
        name = module.qualified(part)
        if name in _CLASSES:
            kind = name.rpartition(".")[2]
            yield module.flag(
                question, "ACC050", f"The class of a converted {kind.lower()} is torch's own.",
                f"Ask isinstance(x, accel.{kind}).", subject=name,
            )  # fmt: skip
            return


def _places(module: Module, question: ast.Compare | ast.Call) -> list[ast.expr]:
    """Where a class stands in `type(s) is torch.cuda.Stream` and `issubclass(kind, (…, …))`."""
    if isinstance(question, ast.Compare):
        sides = [question.left, *question.comparators]
        if not any(_is_call(module, side, "builtins.type") for side in sides):
            return []
    elif _is_call(module, question, "builtins.issubclass"):
        sides = question.args[1:]
    else:
        return []
    several = [s.elts if isinstance(s, (ast.Tuple, ast.List, ast.Set)) else [s] for s in sides]
    return [part for parts in several for part in parts]


def _is_call(module: Module, node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Call) and module.qualified(node.func) == name


def is_asked_class(module: Module, node: ast.expr) -> bool:
    """Whether a class stands in such a question, and then stays as it is."""
    outer = module.parent(node)
    if isinstance(outer, (ast.Tuple, ast.List, ast.Set)):
        outer = module.parent(outer)
    if not isinstance(outer, (ast.Compare, ast.Call)):
        return False
    return node in _places(module, outer) and module.qualified(node) in _CLASSES
