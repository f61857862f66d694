"""ACC062: comparisons with the name of the collectives' library."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from accel.convert.finding import Finding
from accel.convert.module import Module

_BACKEND = re.compile(r"backend", re.IGNORECASE)
_VENDORS = frozenset({"nccl", "hccl", "xccl", "mccl", "cncl", "rccl"})
_MESSAGE = "asks whether the backend is an accelerator's; gloo, that of a CPU, is not"
_ADVICE = "Write accel.is_accelerator_backend(...) if any accelerator's backend is meant."


def comparisons(module: Module, taken: set[ast.AST]) -> Iterator[Finding]:
    """Comparisons of one value with the backend's name."""
    for node in module.all(ast.Compare):
        if len(node.ops) == 1:
            yield from _compare(module, node, taken)
    for call in module.all(ast.Call):
        func = call.func
        asks = isinstance(func, ast.Attribute) and func.attr == "startswith" and len(call.args) == 1
        if isinstance(func, ast.Attribute) and asks and compared(module, call.args[0]):
            yield from _convert(module, call, func.value, False, call.args[0], taken)


def compared(module: Module, node: ast.expr) -> bool:
    """Whether an expression is the backend's name: a string, or torch's member of that value."""
    if isinstance(node, ast.Constant):
        value = node.value
        return isinstance(value, str) and value.lower() == "nccl"
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)) and len(node.elts) == 1:
        return compared(module, node.elts[0])
    return (module.qualified(node) or "").endswith("distributed.Backend.NCCL")


def names_vendors(node: ast.AST) -> bool:
    """Whether a list holds several vendors' backends, and nothing else."""
    if not isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        return False
    values = [e.value if isinstance(e, ast.Constant) else None for e in node.elts]
    return len(values) > 1 and _VENDORS.issuperset(map(str, values))


def _compare(module: Module, node: ast.Compare, taken: set[ast.AST]) -> Iterator[Finding]:
    left, right, operator = node.left, node.comparators[0], node.ops[0]
    if isinstance(operator, (ast.Eq, ast.NotEq, ast.Is, ast.IsNot)):
        other, name = (left, right) if compared(module, right) else (right, left)
    elif isinstance(operator, (ast.In, ast.NotIn)):
        # `backend in ("nccl",)` and `"nccl" in backend`.
        listed = isinstance(right, (ast.Tuple, ast.List, ast.Set))
        other, name = (left, right) if listed else (right, left)
    else:
        return
    if compared(module, name):
        negated = isinstance(operator, (ast.NotEq, ast.IsNot, ast.NotIn))
        yield from _convert(module, node, other, negated, name, taken)


def _convert(
    module: Module,
    node: ast.expr,
    other: ast.expr,
    negated: bool,
    name: ast.expr,
    taken: set[ast.AST],
) -> Iterator[Finding]:
    taken.update(ast.walk(name))
    if not _is_backend(module, other):
        message = f"{module.text(other)} is compared with a backend, and may be none of torch's"
        yield module.flag(node, "ACC062", message, _ADVICE)
        return
    parts = module.target.call("is_accelerator_backend", other)
    if parts is None:
        yield module.flag(
            node,
            "ACC062",
            f"the target {module.target.name} has no call for this",
            "Convert to the target accel, or compare by hand.",
            subject="target",
        )
        return
    if negated:
        tight = isinstance(module.parent(node), (ast.Compare, ast.BinOp, ast.Attribute))
        parts = ("(not ", *parts, ")") if tight else ("not ", *parts)
    yield module.convert(node, "ACC062", _MESSAGE, *parts)


def _is_backend(module: Module, node: ast.expr) -> bool:
    """Whether an expression is a backend of torch.distributed, by its name or what made it."""
    value = module.value_of(node)
    for each in (node, value):
        for part in ast.walk(each):
            word = getattr(part, "id", None) or getattr(part, "attr", None)
            if word is None and isinstance(part, ast.Constant):
                word = part.value
            if isinstance(word, str) and _BACKEND.search(word):
                return True
    return False
