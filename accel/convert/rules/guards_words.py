"""Whether what is compared with 'cuda' is surely a kind of device: a word that has no number."""

from __future__ import annotations

import ast
import re

from accel.convert.flow import is_device, may_be_none
from accel.convert.flow.options import option_of
from accel.convert.module import Module

_DEEPEST = 6
_WORD = re.compile(r"cuda|cpu|npu|mps|xpu|hpu|mlu|musa|meta|xla|auto")
# Names that say so themselves, as arguments of autocast and of functions like it are called.
_TYPE = re.compile(r"(?:^|_)device_?type$", re.IGNORECASE)
_CURRENT = frozenset(
    {
        "torch.accelerator.current_accelerator",
        "torch._C._get_accelerator",
        "torch.get_default_device",
    }
)
_GIVES_WORD = frozenset({"accel.default_device_type", "torch._C._get_privateuse1_backend_name"})


def is_kind(module: Module, node: ast.expr, depth: int = 0) -> bool:
    """Whether an expression is the type of a device, or text that holds no number."""
    if depth > _DEEPEST:
        return False
    if isinstance(node, ast.Constant):
        return node.value is None or (
            isinstance(node.value, str) and _WORD.fullmatch(node.value) is not None
        )
    if isinstance(node, (ast.IfExp, ast.BoolOp)):
        parts = node.values if isinstance(node, ast.BoolOp) else [node.body, node.orelse]
        return all(is_kind(module, part, depth + 1) for part in parts)
    if isinstance(node, ast.Call):
        return read_type(module, node) is not None or module.qualified(node.func) in _GIVES_WORD
    if isinstance(node, ast.Attribute):
        return _is_kind_attribute(module, node, depth)
    return isinstance(node, ast.Name) and _is_kind_name(module, node, depth)


def read_type(module: Module, node: ast.expr) -> ast.expr | None:
    """The object whose `type` an expression reads by `getattr(device, "type", ...)`."""
    if not isinstance(node, ast.Call) or module.qualified(node.func) != "builtins.getattr":
        return None
    name = node.args[1] if 2 <= len(node.args) <= 3 else None
    if not isinstance(name, ast.Constant) or name.value != "type":
        return None
    return node.args[0] if is_device(module, node.args[0]) is not False else None


def is_read_type(module: Module, node: ast.expr) -> bool:
    """Whether an expression is, perhaps by a variable, what `getattr(device, "type")` gave."""
    return read_type(module, module.value_of(node)) is not None


def may_be_nothing(module: Module, node: ast.expr) -> bool:
    """Whether an expression may be None, also where a look-up has no default or that of None."""
    if may_be_none(module, node):
        return True
    value = module.value_of(node)
    if not isinstance(value, ast.Call):
        return False
    if read_type(module, value) is not None:
        return len(value.args) == 3
    func = value.func
    return isinstance(func, ast.Attribute) and func.attr == "get" and len(value.args) == 1


def asks_which_accelerator(module: Module, node: ast.expr) -> bool:
    """Whether what is compared is the type of the accelerator that is there, whatever it is."""
    value = module.value_of(node)
    owner = value.value if isinstance(value, ast.Attribute) else read_type(module, value)
    owner = module.value_of(owner) if owner is not None else None
    return isinstance(owner, ast.Call) and module.qualified(owner.func) in _CURRENT


def _is_kind_attribute(module: Module, node: ast.Attribute, depth: int) -> bool:
    if node.attr == "type":
        return is_device(module, node.value) is True
    values = module.attribute_values(node)
    if _TYPE.search(node.attr):
        return not any(value is not None and _has_number(module, value, depth) for value in values)
    if values:
        return all(value is not None and is_kind(module, value, depth + 1) for value in values)
    option = option_of(module, node.attr)
    words = {word.arg: word.value for word in option.keywords} if option is not None else {}
    choices = words.get("choices")
    return isinstance(choices, (ast.List, ast.Tuple, ast.Set)) and all(
        is_kind(module, choice, depth + 1) for choice in choices.elts
    )


def _is_kind_name(module: Module, node: ast.Name, depth: int) -> bool:
    binding = module.binding(node)
    if _TYPE.search(node.id):
        values = binding.values if binding is not None else []
        return not any(_has_number(module, value, depth) for value in values)
    if binding is None or binding.parameter or binding.is_opaque or binding.imports:
        return False
    return bool(binding.values) and all(
        is_kind(module, value, depth + 1) for value in binding.values
    )


def _has_number(module: Module, node: ast.expr, depth: int) -> bool:
    """Whether an expression is a device that may be written with a number."""
    return is_device(module, node) is True and not is_kind(module, node, depth + 1)
