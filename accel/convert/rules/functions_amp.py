"""Calls of torch's own amp functions, which take a device's type: whether that is CUDA."""

from __future__ import annotations

import ast
from typing import Literal, NamedTuple

from accel.convert.finding import Edit, Span
from accel.convert.module import Module
from accel.convert.rules import functions_calls as calls

# cuda: always CUDA's; variable: may be another device; other: a device that is no CUDA's, or none;
# hidden: behind a star; value: not called here; lost: a comment stands in the way.
Meaning = Literal["cuda", "variable", "other", "hidden", "value", "lost"]


class Generic(NamedTuple):
    """One function of torch's that takes a device type.

    Attributes:
        function: Ours, which does not.
        place: Where it is among the positional arguments.
        keyword: Its name.
        following: Positional arguments behind it that ours takes in another order, by name.
        is_default: CUDA is meant where nothing is given.
    """

    function: str
    place: int
    keyword: str
    following: tuple[str, ...] = ()
    is_default: bool = False


_AUTOCAST = Generic("autocast", 0, "device_type", ("dtype", "enabled", "cache_enabled"))
_SCALER = Generic("GradScaler", 0, "device", is_default=True)
_NEVER = 1_000  # keyword only
GENERIC = {
    "torch.autocast": _AUTOCAST,
    "torch.amp.autocast": _AUTOCAST,
    "torch.amp.autocast_mode.autocast": _AUTOCAST,
    "torch.GradScaler": _SCALER,
    "torch.amp.GradScaler": _SCALER,
    "torch.amp.grad_scaler.GradScaler": _SCALER,
    "torch.amp.custom_fwd": Generic("custom_fwd", _NEVER, "device_type"),
    "torch.amp.custom_bwd": Generic("custom_bwd", _NEVER, "device_type"),
    "torch.amp.autocast_mode.custom_fwd": Generic("custom_fwd", _NEVER, "device_type"),
    "torch.amp.autocast_mode.custom_bwd": Generic("custom_bwd", _NEVER, "device_type"),
}


class Use(NamedTuple):
    """One reference to such a function.

    Attributes:
        meaning: What device it is for.
        given: The argument that says so.
        edits: Those of the arguments, where `meaning` is `cuda`.
    """

    meaning: Meaning
    given: ast.expr | None = None
    edits: tuple[Edit, ...] = ()


def use(module: Module, node: ast.expr, generic: Generic) -> Use:
    """What a reference to one of torch's amp functions is for."""
    call, shift = _call(module, node)
    if call is None:
        return Use("value")
    given = calls.argument(call, generic.place + shift, generic.keyword)
    if given is None and calls.has_stars(call):
        return Use("hidden")
    if given is None:
        if not (generic.is_default and not shift):
            return Use("other")
        return Use("cuda")
    if not is_cuda(module, given):
        return Use("other" if isinstance(module.constant(given), str) else "variable", given)
    edits = _without_device(module, node, call, given, generic, shift)
    return Use("lost", given) if edits is None else Use("cuda", given, edits)


def _call(module: Module, node: ast.expr) -> tuple[ast.Call | None, int]:
    """The call of a function, or the `functools.partial` of it, and where its arguments begin."""
    parent = module.parent(node)
    if not isinstance(parent, ast.Call):
        return None, 0
    if parent.func is node:
        return parent, 0
    if parent.args[:1] == [node] and module.qualified(parent.func) == "functools.partial":
        return parent, 1
    return None, 0


def is_cuda(module: Module, given: ast.expr) -> bool:
    """Whether an argument is the string `cuda` whatever happens."""
    if isinstance(given, ast.Attribute):
        values = module.attribute_values(given)
        if values and all(v is not None and module.constant(v) == "cuda" for v in values):
            return True
    if isinstance(given, ast.Name) and _is_open(module, given):
        return False
    return module.constant(given) == "cuda"


def _is_open(module: Module, name: ast.Name) -> bool:
    """Whether `exec` may set a name, as a script's configuration file does."""
    binding = module.binding(name)
    if binding is None or binding.scope.parent is not None:
        return False
    return any(module.qualified(call.func) == "builtins.exec" for call in module.all(ast.Call))


def _without_device(
    module: Module, node: ast.expr, call: ast.Call, given: ast.expr, generic: Generic, shift: int
) -> tuple[Edit, ...] | None:
    is_only = len(call.args) + len(call.keywords) == 1 and not shift
    if is_only and generic.place == _NEVER:  # a decorator with no other argument
        rest = Span(module.span(node).end, module.span(call).end)
        return None if calls.has_comment(module, rest) else (Edit(rest, ()),)
    edit = calls.without_argument(module, call, given)
    if edit is None:
        return None
    edits = [edit]
    behind = call.args[generic.place + 1 + shift :] if given in call.args else []
    for name, value in zip(generic.following, behind, strict=False):
        span = module.span(value)
        edits.append(Edit(span, (f"{name}=", span)))
    return tuple(edits)
