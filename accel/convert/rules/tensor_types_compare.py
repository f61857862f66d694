"""Comparisons with CUDA's tensor classes, whose place the CPU's own take on a CPU."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from accel.convert.finding import Finding
from accel.convert.module import Module
from accel.convert.rules.functions_table import DTYPES, lookup
from accel.convert.rules.functions_uses import Refusal, spell
from accel.convert.targets import Part

NAME = re.compile(r"torch\.cuda\.(\w+Tensor)")
_BARE = (ast.If, ast.While, ast.Assert, ast.Return, ast.Assign)
_EQUAL, _UNEQUAL = (ast.Eq, ast.Is, ast.In), (ast.NotEq, ast.IsNot, ast.NotIn)
_GROUPS = (ast.List, ast.Tuple, ast.Set)


def find(module: Module, compare: ast.Compare) -> Iterator[Finding]:
    """`tensor.type() in (names)` and `kind == torch.cuda.FloatTensor`: the device is asked too."""
    if len(compare.ops) != 1 or not isinstance(compare.ops[0], (*_EQUAL, *_UNEQUAL)):
        return
    tensor = _member(compare)
    if tensor is not None:
        if not _has_names(module):
            return  # each name is flagged where it stands
        parts = module.target.call("on_accelerator", tensor)
        if parts is not None:
            message = "The names are those of the device that is here, and no CPU tensor's."
            yield _with(module, compare, "ACC046", message, parts)
    elif _has_classes(module, compare):
        available = module.target.function("is_available")
        if available is not None:
            message = "The class is that of the device which is here, and on a CPU there is none."
            yield _with(module, compare, "ACC045", message, (f"{available}()",))


def is_mixed(module: Module, node: ast.Constant) -> bool:
    """Whether a name is in a test for membership that CUDA's names alone do not answer."""
    compare = module.parent(module.parent(node))
    if not isinstance(compare, ast.Compare) or module.parent(node) not in compare.comparators:
        return False
    return _member(compare) is None


def _with(
    module: Module, compare: ast.Compare, rule: str, message: str, parts: tuple[Part, ...]
) -> Finding:
    equal = isinstance(compare.ops[0], _EQUAL)
    pieces: tuple[Part, ...] = (
        module.span(compare), " and " if equal else " or not ", *parts,
    )  # fmt: skip
    if not may_stand_bare(module, compare, ast.And if equal else ast.Or):
        pieces = ("(", *pieces, ")")
    return module.convert(compare, rule, message, *pieces)


def _member(compare: ast.Compare) -> ast.expr | None:
    """The tensor that is asked whether its class's name is among some, which all are CUDA's."""
    group = compare.comparators[0]
    if len(compare.ops) != 1 or not isinstance(compare.ops[0], (ast.In, ast.NotIn)):
        return None
    if not isinstance(group, _GROUPS) or not all(map(_is_name, group.elts)):
        return None
    return asked(compare, group)


def _is_name(node: ast.expr) -> bool:
    if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
        return False
    match = NAME.fullmatch(node.value)
    return match is not None and match.group(1) in DTYPES


def _has_classes(module: Module, compare: ast.Compare) -> bool:
    """Whether a side is a class of CUDA's, or a group of such, that is converted."""
    for side in (compare.left, *compare.comparators):
        classes = side.elts if isinstance(side, _GROUPS) else [side]
        if classes and all(is_converted(module, node) for node in classes):
            return True
    return False


def _has_names(module: Module) -> bool:
    """Whether the target has names for tensor classes."""
    return bool(module.target.classes) or module.target.function("tensor_type_name") is not None


def is_converted(module: Module, node: ast.expr) -> bool:
    """Whether an expression is one of CUDA's tensor classes, for which the target has another."""
    if not isinstance(node, ast.Attribute):
        return False  # of a variable it is not known what else it may be
    known = lookup(module.qualified(node) or "")
    if known is None or known.kind != "type":
        return False
    return not isinstance(spell(module, node, known), Refusal)


def asked(compare: ast.Compare, node: ast.expr) -> ast.expr | None:
    """The tensor in `tensor.type() == "torch.cuda.FloatTensor"`, if it is a plain name."""
    if len(compare.ops) != 1 or not isinstance(compare.ops[0], (*_EQUAL, *_UNEQUAL)):
        return None
    other = compare.comparators[0] if compare.left is node else compare.left
    if not isinstance(other, ast.Call) or other.args or other.keywords:
        return None
    if not isinstance(other.func, ast.Attribute) or other.func.attr != "type":
        return None
    return other.func.value if is_plain(other.func.value) else None


def may_stand_bare(module: Module, node: ast.expr, kind: type[ast.boolop]) -> bool:
    """Whether `a and b` may take a node's place without parentheses."""
    parent = module.parent(node)
    if isinstance(parent, ast.BoolOp):
        return isinstance(parent.op, kind)
    return isinstance(parent, _BARE)


def is_plain(node: ast.expr) -> bool:
    """Whether an expression is a chain of names, which may be read twice."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name)
