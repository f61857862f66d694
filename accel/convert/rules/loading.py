"""ACC070 to ACC072: where `torch.load` puts what it reads."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from accel.convert.finding import Edit, Finding, Span
from accel.convert.module import Module
from accel.convert.rules.devices_conditions import choice_of
from accel.convert.rules.devices_spelling import Piece, Place, call, converted, place_of
from accel.convert.rules.loading_checkpoints import feeds_state
from accel.convert.rules.loading_rules import RULES as RULES

_LOADERS = frozenset({"torch.load", "torch.jit.load"})
_ADVICE = "Give map_location=accel.map_location(), or map_location='cpu' and move what is read."


def find(module: Module) -> Iterator[Finding]:
    """Locations that are given, and loads that give none."""
    for node in module.all(ast.Call):
        place = _given(module, node)
        if place is not None:
            yield from _location(module, place)
        elif module.qualified(node.func) == "torch.load":
            yield from _absent(module, node)


def _given(module: Module, node: ast.Call) -> ast.expr | None:
    """The `map_location` of a call."""
    for word in node.keywords:
        if word.arg == "map_location":
            return word.value
    if len(node.args) > 1 and module.qualified(node.func) in _LOADERS:
        return node.args[1]
    return None


def _location(module: Module, node: ast.expr) -> Iterator[Finding]:
    if isinstance(node, ast.Lambda):
        yield from _lambda(module, node)
        return
    if isinstance(node, ast.Dict):
        yield from _table(module, node)
        return
    place = _place(module, node)
    if place is not None:
        yield from _replace(module, node, place)


def _place(module: Module, node: ast.expr) -> Place | None:
    """The CUDA device that an expression is, as text or as `torch.device`."""
    if isinstance(node, ast.IfExp):
        choice = choice_of(module, node)
        return choice.place if choice is not None else None
    if isinstance(node, ast.Call):
        name = module.qualified(node.func)
        if name == "torch.cuda.current_device":
            return Place()
        if name == "torch.device" and not node.keywords and 1 <= len(node.args) <= 2:
            first = node.args[0]
            place = _place(module, first)
            if place is None or len(node.args) == 1:
                return place
            return None if place.number else Place((node.args[1],))
    return place_of(module, node)


def _replace(module: Module, node: ast.expr, place: Place) -> Iterator[Finding]:
    parts = call(module, "map_location", place)
    if parts is None:
        yield module.no_target(node, "ACC070")
    else:
        yield converted(
            module, node, "ACC070", "It puts what is read on the device that is there.", *parts
        )


def _lambda(module: Module, node: ast.Lambda) -> Iterator[Finding]:
    """`lambda storage, loc: storage.cuda(n)`."""
    names = [argument.arg for argument in node.args.args]
    body = node.body
    if not _is_cuda_call(body, names):
        if "cuda" in module.text(node):
            yield module.flag(
                node, "ACC070", "A function of the program's own says where it goes.", _ADVICE
            )
        return
    arguments = body.args if isinstance(body, ast.Call) else []
    place = Place()
    if arguments:
        place = _place(module, arguments[0]) or Place((arguments[0],))
    used = {n.id for a in arguments for n in ast.walk(a) if isinstance(n, ast.Name)}
    if used & set(names):
        yield module.flag(
            node, "ACC070", "A function of the program's own says where it goes.", _ADVICE
        )
        return
    yield from _replace(module, node, place)


def _is_cuda_call(body: ast.expr, names: list[str]) -> bool:
    return (
        isinstance(body, ast.Call)
        and isinstance(body.func, ast.Attribute)
        and body.func.attr == "cuda"
        and isinstance(body.func.value, ast.Name)
        and body.func.value.id in names[:1]
        and len(body.args) <= 1
        and not body.keywords
    )


def _table(module: Module, node: ast.Dict) -> Iterator[Finding]:
    """`{'cuda:0': 'cuda:%d' % rank}`: what was saved elsewhere is named as well."""
    for key, value in zip(node.keys, node.values, strict=True):
        source = place_of(module, key) if key is not None else None
        target = _place(module, value)
        if key is None or source is None:
            continue
        to = call(module, "device_str", target) if target is not None else None
        of = call(module, "device_str", source) if source.number else None
        if target is None or to is None or of is None:
            yield module.flag(
                node, "ACC071", "It is a table of devices, some of which are <CUDA>'s.", _ADVICE
            )
            return
        yield module.keep(key, "ACC071", "It is what a checkpoint saved on <CUDA> says.")
        parts: tuple[Piece, ...] = (*to, ", ", *of, ": ", *to)
        message = "What was saved on the device that is there goes the same way."
        yield converted(module, value, "ACC071", message, *parts)


def _absent(module: Module, node: ast.Call) -> Iterator[Finding]:
    """A load that leaves everything where the file says it was."""
    if len(node.args) != 1 or any(word.arg is None for word in node.keywords):
        return
    if isinstance(node.args[0], ast.Starred):
        return
    parts = module.target.call("map_location")
    if parts is None or not feeds_state(module, node):
        yield module.flag(
            node.func,
            "ACC072",
            "Without map_location a file saved on one kind of device cannot be read on another.",
            _ADVICE,
            subject="torch.load",
        )
        return
    at = _behind(module, node)
    if at is None:
        yield module.flag(node.func, "ACC072", "The call is written unusually.", _ADVICE)
        return
    yield module.edit(
        node.func,
        "ACC072",
        "A state goes to the module's own device; it is read on the one that is there.",
        Edit(Span(at, at), (", map_location=", *(str(part) for part in parts))),
    )


def _behind(module: Module, node: ast.Call) -> int | None:
    """The byte behind the only positional argument and the parentheses around it."""
    text, argument = module.source.utf8, module.span(node.args[0])
    before = text[module.span(node.func).end : argument.start]
    at = argument.end
    if before.count(b"(") > 1 and (b"#" in before or b"#" in text[at : module.span(node).end]):
        return None
    for _ in range(before.count(b"(") - 1):
        at = text.index(b")", at) + 1
    return at
