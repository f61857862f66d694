"""Moves to CUDA whose failing is caught: the handler is what the program does on a CPU."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import replace

from accel.convert.finding import Finding, Span
from accel.convert.flow.positions import is_device_position
from accel.convert.flow.questions import is_question
from accel.convert.module import Module
from accel.convert.rules.devices_spelling import attribute_span

# Each is a move, or makes something on a device, wherever it stands.
_MOVES = frozenset({"ACC001", "ACC007"})
_PLACES = (ast.Call, ast.Constant, ast.JoinedStr, ast.BinOp, ast.Name, ast.Attribute)
_NAMES = frozenset({"ACC002", "ACC004", "ACC005"})
_TRIED = (
    "Without <CUDA> it raises, and the program catches that: on a CPU it would go on as if there "
    "were a device."
)


def except_tried(module: Module, findings: Iterable[Finding]) -> Iterator[Finding]:
    """Findings with the conversions that would no longer raise, where raising is an answer."""
    tried = _tried(module)
    for finding in findings:
        if tried and finding.action == "convert" and _raises(module, finding, tried):
            finding = replace(
                finding,
                action="flag",
                edits=(),
                imports=frozenset(),
                effort="review",
                message=module.vendor.spoken(_TRIED),
                advice="Ask accel.is_available() first, then convert the move.",
            )
        yield finding


def _tried(module: Module) -> dict[Span, ast.expr]:
    """Expressions under a `try` or `with`, by where their findings stand."""
    found: dict[Span, ast.expr] = {}
    blocks: list[ast.Try | ast.With | ast.AsyncWith]
    blocks = [*module.all(ast.Try), *module.all(ast.With), *module.all(ast.AsyncWith)]
    for outer in blocks:
        for statement in outer.body:
            for node in ast.walk(statement):
                if isinstance(node, ast.Attribute) and node.attr == "cuda":
                    found[attribute_span(module, node)] = node  # a move's finding is its name
                elif isinstance(node, _PLACES):
                    found.setdefault(module.span(node), node)
    return found


def _raises(module: Module, finding: Finding, tried: dict[Span, ast.expr]) -> bool:
    """Whether a finding's code raises without CUDA, and something catches that."""
    node = tried.get(finding.span)
    if node is None or not is_question(module, node):
        return False
    if finding.rule in _MOVES:
        return True
    return (
        finding.rule in _NAMES
        and is_device_position(module, node)
        and not _is_only_named(module, node)
    )


def _is_only_named(module: Module, node: ast.expr) -> bool:
    """Whether `torch.device` makes an object of a name, which raises nothing."""
    parent = module.parent(node)
    call = module.parent(parent) if isinstance(parent, ast.keyword) else parent
    return isinstance(call, ast.Call) and module.qualified(call.func) == "torch.device"
