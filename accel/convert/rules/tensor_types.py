"""ACC045 to ACC049: torch's old tensor classes, as `torch.cuda.FloatTensor`, and their names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Literal

from accel.convert.finding import Finding
from accel.convert.module import Module
from accel.convert.rules import tensor_types_compare as compares
from accel.convert.rules.functions_calls import needs_torch, torch_name
from accel.convert.rules.functions_table import DTYPES, lookup
from accel.convert.rules.functions_uses import default_refusal, is_default
from accel.convert.rules.tensor_types_rules import RULES as RULES

# Where a class's name goes: to what takes one, beside `x.type()`, into a collection, or elsewhere.
Sink = Literal["taken", "compared", "listed", "unknown"]


def find(module: Module) -> Iterator[Finding]:
    """Names of tensor classes in strings, and `isinstance` with the classes."""
    for node in module.all(ast.Constant):
        if isinstance(node.value, str):
            match = compares.NAME.fullmatch(node.value)
            if match and match.group(1) in DTYPES and not _is_in_fstring(module, node):
                yield _string(module, node, DTYPES[match.group(1)])
    if module.target.classes:
        return  # a class of the target's own is no CPU tensor's
    for compare in module.all(ast.Compare):
        yield from compares.find(module, compare)
    for call in module.all(ast.Call):
        is_test = isinstance(call.func, ast.Name) and call.func.id == "isinstance"
        if is_test and len(call.args) == 2 and _is_classes(module, call.args[1]):
            yield _isinstance(module, call)


def _is_in_fstring(module: Module, node: ast.expr) -> bool:
    return isinstance(module.parent(node), ast.JoinedStr)


# --- strings -----------------------------------------------------------------------------------


def _string(module: Module, node: ast.Constant, dtype: str) -> Finding:
    if is_default(module, node):
        said = default_refusal(dtype)
        return module.flag(node, said.rule, said.message, said.advice, subject=said.subject)
    sink = _sink(module, node, 0)
    if sink == "listed" and not _is_asked(module):
        sink = "unknown"
    exact = module.target.tensor_class(str(node.value))
    if exact is not None and sink != "unknown":
        return _named(module, node, exact)
    torch, spelled = torch_name(module, node), module.target.function("tensor_type_name")
    what = f"{node.value!r} is what tensor.type() returns on <CUDA>"
    if sink == "unknown" or torch is None or spelled is None:
        return module.flag(
            node, "ACC046", f"{what}, and where it goes cannot be told.",
            f"Write accel.tensor_type_name(torch.{dtype}), or better a dtype and a device.",
            subject="tensor_type_name",
        )  # fmt: skip
    if sink == "listed" and (_has_cpu_name(module, node) or compares.is_mixed(module, node)):
        return module.flag(
            node, "ACC046", f"{what}; on a CPU the name is the same as the CPU's beside it.",
            "Compare dtypes and on_accelerator(tensor) instead of names.",
            subject="tensor_type_name",
        )  # fmt: skip
    imports = module.target.imports | needs_torch(module, node, torch)
    text = f"{spelled}(torch.{dtype})".replace("(torch.", f"({torch}.")
    compare = module.parent(node)
    if sink == "compared" and isinstance(compare, ast.Compare):
        return _comparison(module, compare, node, text, imports)
    return module.convert(
        node, "ACC046", f"{what}; the name is that of the device which is here.", text,
        imports=imports, effort="review" if sink == "listed" else "auto",
    )  # fmt: skip


def _named(module: Module, node: ast.Constant, exact: str) -> Finding:
    """The name of a class of the target's own, in the quotes that are there."""
    text, value = module.text(node), str(node.value)
    new = text.replace(value, exact) if value in text else repr(exact)
    return module.convert(
        node, "ACC046", f"{value!r} is what tensor.type() returns on <CUDA>; {exact!r} there.", new
    )


def _sink(module: Module, node: ast.expr, depth: int) -> Sink:
    """Where a string, or a variable that holds it, goes."""
    parent = module.parent(node)
    if isinstance(parent, ast.IfExp) and node is not parent.test:
        return _sink(module, parent, depth)
    if isinstance(parent, ast.Call) and parent.args[:1] == [node]:
        return "taken" if _takes_a_name(parent) else "unknown"
    if isinstance(parent, ast.Compare):
        return "compared" if compares.asked(parent, node) is not None else "unknown"
    if isinstance(parent, (ast.List, ast.Tuple, ast.Set)):
        return "listed"
    if isinstance(parent, ast.Dict) and node in parent.keys:
        return "listed"
    if isinstance(parent, ast.Assign) and depth < 3:
        return _variable_sink(module, parent, depth)
    return "unknown"


def _variable_sink(module: Module, assign: ast.Assign, depth: int) -> Sink:
    for target in assign.targets:
        if not isinstance(target, ast.Name):
            return "unknown"
        binding = module.scope(target).find(target.id)
        if binding is None or len(binding.values) != 1 or binding.is_opaque or not binding.uses:
            return "unknown"
        if any(_sink(module, use, depth + 1) != "taken" for use in binding.uses):
            return "unknown"
    return "taken"


def _takes_a_name(call: ast.Call) -> bool:
    is_cast = isinstance(call.func, ast.Attribute) and call.func.attr == "type"
    return is_cast and len(call.args) == 1


def _comparison(
    module: Module, compare: ast.Compare, node: ast.Constant, text: str, imports: frozenset[str]
) -> Finding:
    """On a CPU the names are equal, where CUDA's never were: the tensor's place is asked too."""
    tensor = compares.asked(compare, node)
    parts = module.target.call("on_accelerator", tensor) if tensor is not None else None
    if parts is None:
        return module.flag(
            node, "ACC046", "The target has no way to ask whether a tensor is on the device.",
            "Compare dtypes and devices instead of names.", subject="target",
        )  # fmt: skip
    equal = isinstance(compare.ops[0], ast.Eq)
    span = module.span(node)
    whole = module.span(compare)
    before, after = type(whole)(whole.start, span.start), type(whole)(span.end, whole.end)
    joint = (" and ",) if equal else (" or not ",)
    pieces = (before, text, after, *joint, *parts)
    if not compares.may_stand_bare(module, compare, ast.And if equal else ast.Or):
        pieces = ("(", *pieces, ")")
    return module.convert(
        compare, "ACC046", "The name is that of the device that is here, and no CPU tensor's.",
        *pieces, imports=imports,
    )  # fmt: skip


def _is_asked(module: Module) -> bool:
    """Whether the file asks any tensor for its class's name."""
    return any(
        isinstance(call.func, ast.Attribute)
        and call.func.attr == "type"
        and not call.args
        and not call.keywords
        for call in module.all(ast.Call)
    )


def _has_cpu_name(module: Module, node: ast.Constant) -> bool:
    same = str(node.value).replace("torch.cuda.", "torch.")
    return any(other.value == same for other in module.all(ast.Constant))


# --- isinstance --------------------------------------------------------------------------------


def _is_classes(module: Module, node: ast.expr) -> bool:
    """Whether a class, or each of a tuple of classes, is one of CUDA's."""
    classes = node.elts if isinstance(node, ast.Tuple) else [node]
    found = [lookup(module.qualified(c) or "") for c in classes]
    return bool(found) and all(known is not None and known.kind == "type" for known in found)


def _isinstance(module: Module, call: ast.Call) -> Finding:
    tensor = call.args[0]
    parts = module.target.call("on_accelerator", tensor) if compares.is_plain(tensor) else None
    group = call.args[1]
    classes = group.elts if isinstance(group, ast.Tuple) else [group]
    known = all(compares.is_converted(module, node) for node in classes)
    if parts is None or not known or torch_name(module, group) is None:
        return module.flag(
            call, "ACC047", "On a CPU, the class that takes this one's place is the CPU's.",
            "Test on_accelerator(tensor) and tensor.dtype instead of the class.",
            subject="isinstance",
        )  # fmt: skip
    pieces = (module.span(call), " and ", *parts)
    if not compares.may_stand_bare(module, call, ast.And):
        pieces = ("(", *pieces, ")")
    return module.convert(
        call, "ACC047", "The class is that of the device which is here, and never a CPU tensor's.",
        *pieces,
    )  # fmt: skip
