"""The type that `torch.cuda.amp.autocast` casts to where it is told none: always float16."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from accel.convert.finding import Edit, Finding, Span
from accel.convert.module import Module
from accel.convert.rules.functions_amp import GENERIC
from accel.convert.rules.functions_calls import argument, has_stars, needs_torch, torch_name

CUDA_AUTOCAST = frozenset({"torch.cuda.amp.autocast", "torch.cuda.amp.autocast_mode.autocast"})
_SETTERS = frozenset({"torch.set_autocast_dtype", "torch.set_autocast_gpu_dtype"})
_HALVES = frozenset({"torch.float16", "torch.half"})
_DTYPE = 1  # its place in both kinds of calls


def default_dtype(module: Module, node: ast.expr) -> Iterator[Finding]:
    """Write float16 where an autocast around it may have set another type.

    torch.autocast, and ours, take the type that is in force; torch.cuda.amp's took float16.
    """
    call = module.parent(node)
    if not isinstance(call, ast.Call) or call.func is not node or has_stars(call):
        return
    if argument(call, _DTYPE, "dtype") is not None or not _sets_another(module):
        return
    torch, at = torch_name(module, node), _end(module, call)
    if torch is None or at is None or module.target.function("autocast") is None:
        start = module.span(module.statement(node)).start
        yield module.flag(
            Span(start, start + 1), "ACC040",
            "Without a dtype it casts to float16, whatever is in force around it.",
            "Give dtype=torch.float16.", subject="torch.cuda.amp.autocast",
        )  # fmt: skip
        return
    comma = ", " if call.args or call.keywords else ""
    yield module.edit(
        node, "ACC040", "torch.cuda.amp.autocast casts to float16 where it is told nothing.",
        Edit(Span(at, at), (f"{comma}dtype={torch}.float16",)),
        imports=needs_torch(module, node, torch), subject="torch.cuda.amp.autocast",
    )  # fmt: skip


def _sets_another(module: Module) -> bool:
    """Whether a file makes autocasts to another type than float16, or may."""
    for call in module.all(ast.Call):
        name = module.qualified(call.func) or ""
        generic = GENERIC.get(name)
        if name in _SETTERS:
            return True
        if name not in CUDA_AUTOCAST and (generic is None or generic.function != "autocast"):
            continue
        dtype = argument(call, _DTYPE, "dtype")
        if dtype is not None and module.qualified(dtype) not in _HALVES:
            return True
    return False


def _end(module: Module, call: ast.Call) -> int | None:
    """Where an argument can be added; None where the last one is in parentheses."""
    end = module.span(call).end
    given = [*call.args, *call.keywords]
    if not given:
        return end - 1
    at = max(module.span(item).end for item in given)
    return at if module.source.utf8[at:end].count(b")") == 1 else None
