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
        yield from _compared(module, compare)
    for call in module.all(ast.Call):
        if module.qualified(call.func) == "builtins.issubclass" and len(call.args) == 2:
            yield from _classes(module, call, call.args[1:])


def _handle(module: Module, node: ast.Attribute) -> Iterator[Finding]:
    """`.cuda_stream`: of a stream that is converted, or of something that comes from elsewhere."""
    if _is_made(module, node.value) and module.target.name == "accel":
        yield module.edit(
            node, "ACC052",
            "The stream is torch's generic one, whose raw handle, for CUDA code, is native_handle.",
            Edit(module.attribute_span(node), ("native_handle",)),
            imports=frozenset(), effort="review", subject=node.attr,
        )  # fmt: skip
        return
    if node.attr in module.project.names or _is_stored(module, node.attr):
        return
    yield module.flag(
        node, "ACC052", "It is a raw handle of the CUDA runtime, for code that is written in CUDA.",
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


def _compared(module: Module, node: ast.Compare) -> Iterator[Finding]:
    """`type(s) is torch.cuda.Stream`."""
    sides = [node.left, *node.comparators]
    types = [s for s in sides if isinstance(s, ast.Call)]
    if any(module.qualified(side.func) == "builtins.type" for side in types):
        yield from _classes(module, node, sides)


def _classes(module: Module, node: ast.expr, places: list[ast.expr]) -> Iterator[Finding]:
    names = (module.qualified(part) for place in places for part in ast.walk(place))
    found = next((name for name in names if name in _CLASSES), None)
    if found is not None:
        kind = found.rpartition(".")[2]
        yield module.flag(
            node, "ACC050", f"The class of a converted {kind.lower()} is torch's generic one.",
            f"Ask isinstance(x, accel.{kind}).", subject=found,
        )  # fmt: skip
