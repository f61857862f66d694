"""Code that TorchScript compiles, in which no function of this library can be called."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import replace

from accel.convert.finding import Finding, Span
from accel.convert.module import Module

_SCRIPT = frozenset({"torch.jit.script", "torch.jit.script_method", "torch.jit.export"})
_CLASSES = frozenset({"torch.jit.ScriptModule"})


def except_scripted(module: Module, findings: Iterable[Finding]) -> Iterator[Finding]:
    """Findings with the conversions in scripted code left to a human."""
    spans = scripted(module)
    for finding in findings:
        if finding.action == "convert" and any(span.contains(finding.span) for span in spans):
            finding = replace(
                finding,
                action="flag",
                edits=(),
                imports=frozenset(),
                effort="review",
                message="TorchScript compiles this code and can call no function of accel's in it.",
                advice="Give the device to the function as an argument, or do not script it.",
            )
        yield finding


def scripted(module: Module) -> list[Span]:
    """The functions and classes of a file that TorchScript compiles."""
    if b"jit" not in module.source.utf8:
        return []
    found: set[ast.AST] = set()
    for function in module.all(ast.FunctionDef):
        if any(module.qualified(d) in _SCRIPT for d in function.decorator_list):
            found.add(function)
    for owner in module.all(ast.ClassDef):
        names = {module.qualified(node) for node in (*owner.bases, *owner.decorator_list)}
        if names & (_CLASSES | _SCRIPT):
            found.add(owner)
    for call in module.all(ast.Call):
        if call.args and module.qualified(call.func) == "torch.jit.script":
            found.update(_definitions(module, call.args[0]))
    return [module.span(node) for node in found]


def _definitions(module: Module, node: ast.expr) -> list[ast.AST]:
    """The function, or the class of the object, that `torch.jit.script` is given."""
    node = module.value_of(node)
    if isinstance(node, ast.Call):
        node = node.func
    binding = module.binding(node) if isinstance(node, ast.Name) else None
    return list(binding.definitions) if binding else []
