"""ACC022, ACC024: the import statements that bring names of `torch.cuda`."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from accel.convert.finding import Finding
from accel.convert.module import Module
from accel.convert.rules.functions_amp import GENERIC
from accel.convert.rules.functions_guards import is_of_two
from accel.convert.rules.functions_modules import left, plain, said_of_two
from accel.convert.rules.functions_plan import full_name, plan
from accel.convert.rules.functions_table import MODULES, is_cuda, lookup
from accel.convert.targets import cautions


def find(module: Module) -> Iterator[Finding]:
    """What becomes of the imports of `torch.cuda` and of names from it."""
    for node in module.all(ast.Import):
        if any(is_cuda(alias.name) for alias in node.names):
            yield plain(module, node)
    for statement in module.all(ast.ImportFrom):
        if not statement.level and statement.module:
            finding = _from(module, statement)
            if finding is not None:
                yield finding
            for alias in statement.names:
                if is_of_two(module, statement, alias):
                    name = full_name(module, statement, alias)
                    yield said_of_two(module, alias, alias, name)


def _from(module: Module, node: ast.ImportFrom) -> Finding | None:
    names = [full_name(module, node, alias) for alias in node.names]
    if not any(n in MODULES or n in GENERIC or lookup(n) or is_cuda(n) for n in names):
        return None
    if node.names[0].name == "*":
        return module.flag(
            node,
            "ACC024",
            f"All names of {node.module} are imported at once; which are used cannot be told.",
            "Import the names that are used, and convert again.",
            subject=str(node.module),
        )
    if any(_is_of_two(module, node, alias) for alias in node.names):
        return _of_two(module, node)
    found = plan(module, node)
    if found.is_blocked:
        return module.flag(
            node, "ACC022",
            "Names of torch.cuda are imported beside others, and a comment stands between them.",
            "The uses are converted where they are: take out the names that are left over.",
            subject=str(node.module),
        )  # fmt: skip
    if not found.edits:
        is_ours = any(name not in GENERIC and (is_cuda(name) or lookup(name)) for name in names)
        return _unmoved(module, node) if is_ours else None
    message = "The names are those of what any device has."
    if not found.home:
        message = "Nothing uses these names any more."
    rule = "ACC027" if found.home == "torch" != node.module else "ACC022"
    homes = {move.home for move in found.moves.values()}
    said = cautions(move.name for move in found.moves.values())
    return module.edit(
        node, rule, "; ".join([message.rstrip("."), *said]) if said else message, *found.edits,
        imports=_needed(module, homes), effort="review" if said else "auto",
    )  # fmt: skip


def _needed(module: Module, homes: set[str]) -> frozenset[str]:
    """What must be imported before: `torch_npu`, which makes torch.npu."""
    is_made = any(home.startswith("torch.npu") for home in homes)
    return module.target.imports - {"torch"} if is_made else frozenset()


def _is_of_two(module: Module, node: ast.ImportFrom, alias: ast.alias) -> bool:
    """Whether a name comes from torch.amp in one branch and from torch.cuda.amp in another."""
    binding = module.scope(node).find(alias.asname or alias.name)
    if binding is None or len(set(binding.imports)) < 2:
        return False
    is_generic = any(name in GENERIC for name in binding.imports)
    return is_generic and any(is_cuda(name) for name in binding.imports)


def _of_two(module: Module, node: ast.ImportFrom) -> Finding | None:
    if not is_cuda(str(node.module)):
        return None  # said at the other import
    return module.flag(
        node, "ACC041", "The same name is imported from torch.amp too, with other arguments.",
        "Import it from accel once, and leave the device type out of its calls.",
        subject=str(node.module),
    )  # fmt: skip


def _unmoved(module: Module, node: ast.ImportFrom) -> Finding:
    for alias in node.names:
        name = full_name(module, node, alias)
        known = lookup(name)
        if known is not None and known.kind == "none":
            return module.flag(node, known.rule, known.message, known.advice, subject=name)
    return left(module, node, f"Importing from {node.module}")
