"""ACC150 to ACC153: what only a vendor's package has, for sources other than CUDA.

What it shares with `torch.cuda` is converted by the other families, see `vendors.py`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence

from accel.convert.finding import Edit, Finding, Span
from accel.convert.keeping import is_commented, is_switched_off
from accel.convert.module import Module
from accel.convert.rules.functions_calls import brought
from accel.convert.rules.functions_plan import is_moved
from accel.convert.rules.reverse_rules import OPERATORS, OTHERS
from accel.convert.rules.reverse_rules import RULES as RULES

_BOUND = re.compile(r"cuda(?::\d+)?|nccl")
_GUARDS = ("ImportError", "ModuleNotFoundError", "Exception")


def find(module: Module) -> Iterator[Finding]:
    """Uses of a vendor's package that no name of torch's stands for."""
    package = module.vendor.package
    if not package:
        return
    for node in module.all(ast.Attribute):
        if isinstance(module.parent(node), ast.Attribute):
            continue  # the longest chain is looked at
        name = module.qualified(node) or ""
        if name.startswith(f"{package}."):
            yield _own(module, node, name)
    for statement in module.all(ast.ImportFrom):
        if statement.level == 0 and (statement.module or "").partition(".")[0] == package:
            yield from _imported(module, statement)


def _own(module: Module, node: ast.AST, name: str) -> Finding:
    package, _, rest = name.partition(".")
    leaf = rest.rpartition(".")[2]
    if leaf in OPERATORS or (rest == leaf and leaf.startswith(module.vendor.name)):
        advice = OPERATORS.get(leaf, OPERATORS[""])
        message = f"{name} is an operator of {package} alone"
        return module.flag(node, "ACC152", message, advice, effort="rewrite", subject=leaf)
    advice = next((text for prefix, text in OTHERS if rest.startswith(prefix)), OTHERS[-1][1])
    return module.flag(node, "ACC153", f"{name} is {package}'s own", advice, subject=name)


def _imported(module: Module, node: ast.ImportFrom) -> Iterator[Finding]:
    names = [alias.asname or alias.name for alias in node.names]
    shim = next((name for name in names if name.startswith("transfer_to_")), None)
    if shim is None:
        for alias in node.names:
            yield _own(module, node, f"{node.module}.{alias.name}")
        return
    yield module.flag(
        node,
        "ACC151",
        f"{shim} makes CUDA's calls work on this vendor's devices while the program runs",
        "Convert the program from CUDA as well, then take this line out: a converted program needs "
        "no shim.",
        subject=shim,
    )


# --- import torch_npu ----------------------------------------------------------------------------


def imports(module: Module, findings: Sequence[Finding]) -> Iterator[Finding]:
    """The imports of the vendor's package, after all else: those that nothing needs any more go."""
    package = module.vendor.package
    if not package:
        return
    for node in module.all(ast.Import):
        for alias in node.names:
            if alias.name.partition(".")[0] == package:
                yield _import(module, node, alias, findings)


def _import(
    module: Module, node: ast.Import, alias: ast.alias, findings: Sequence[Finding]
) -> Finding:
    package = module.vendor.package
    used = _line_of_use(module, alias, findings)
    if package in module.target.imports:
        return module.keep(node, "ACC150", f"the target {module.target.name} needs {package}")
    if used:
        return module.keep(node, "ACC150", f"line {used} still needs {package}")
    if not any(finding.action == "convert" for finding in findings):
        return module.keep(node, "ACC150", f"it may be what loads {package} for other files")
    if _is_guarded(module, node):
        return module.keep(node, "ACC150", "an import that may fail does no harm on other devices")
    edit = _removal(module, node, alias)
    if edit is None:
        return module.flag(
            node, "ACC150", f"nothing needs {package} any more", "Take this import out."
        )
    loader = "accel" if "accel" in module.target.imports else "torch 2.5 and later"
    message = f"nothing needs {package} any more: {loader} loads it where its devices are"
    return module.edit(node, "ACC150", message, edit, imports=frozenset())


def _line_of_use(module: Module, alias: ast.alias, findings: Sequence[Finding]) -> int:
    """The first line that goes on using an imported name, or what its import makes; 0 if none."""
    name = alias.asname or alias.name.partition(".")[0]
    edits = [edit for finding in findings for edit in finding.edits]
    staying = [
        finding.span
        for finding in findings
        if finding.action == "flag" or is_commented(finding) or is_switched_off(finding)
    ]
    uses: list[ast.expr | ast.stmt] = [
        use for use in module.all(ast.Name) if use.id == name and isinstance(use.ctx, ast.Load)
    ]
    uses += _made(module)
    uses += [node for node, at in _bound(module) if any(span.contains(at) for span in staying)]
    lines = [use.lineno for use in uses if not _is_taken(module.span(use), edits)]
    return min(lines, default=0)


def _made(module: Module) -> Iterator[ast.expr]:
    """Uses of `torch.npu`, which is there once the package is imported."""
    for node in module.all(ast.Attribute):
        if node.attr == "cuda" and module.qualified(node) == "torch.cuda":
            yield node
    for name in brought(module):
        if (module.qualified(name) or "").startswith("torch.cuda") and not is_moved(module, name):
            yield name


def _bound(module: Module) -> Iterator[tuple[ast.expr | ast.stmt, Span]]:
    """What has a meaning with the package alone: `.npu()`, `"npu:0"`, an import of `torch.npu`."""
    for node in module.all(ast.Attribute):
        if node.attr in ("cuda", "is_cuda"):
            yield node, module.attribute_span(node)
    for constant in module.all(ast.Constant):
        if isinstance(constant.value, str) and _BOUND.fullmatch(constant.value):
            yield constant, module.span(constant)
    for plain in module.all(ast.Import):
        if any(alias.name.startswith("torch.cuda") for alias in plain.names):
            yield plain, module.span(plain)
    for statement in module.all(ast.ImportFrom):
        if (statement.module or "").startswith(("torch.cuda", module.vendor.package)):
            yield statement, module.span(statement)


def _is_taken(span: Span, edits: Sequence[Edit]) -> bool:
    return any(edit.span.contains(span) and not edit.keeps(span) for edit in edits)


def _is_guarded(module: Module, node: ast.AST) -> bool:
    for outer in module.ancestors(node):
        if isinstance(outer, ast.Try):
            names = [module.text(h.type) if h.type else "Exception" for h in outer.handlers]
            if any(guard in name for name in names for guard in _GUARDS):
                return True
    return False


def _removal(module: Module, node: ast.Import, alias: ast.alias) -> Edit | None:
    """The edit that takes one name out of an import, or the whole line."""
    if len(node.names) > 1:
        index = node.names.index(alias)
        if index:
            start = module.span(node.names[index - 1]).end
            return Edit(Span(start, module.span(alias).end), ())
        return Edit(Span(module.span(alias).start, module.span(node.names[1]).start), ())
    source = module.source
    line = source.line_of(module.span(node).start)
    text = source.line_text(line).partition("#")[0].strip()
    siblings = getattr(module.parent(node), "body", [])
    if text != module.text(node).strip() or siblings == [node]:
        return Edit(module.span(node), ("pass",))  # beside other statements, or alone in a block
    end = source.starts[line] if line < len(source.starts) else len(source.utf8)
    return Edit(Span(source.starts[line - 1], end), ())
