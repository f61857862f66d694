"""What the rest of a file shows of a value whose making it does not show."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from accel.convert.flow.evidence import is_tensor_or_module
from accel.convert.module import Module
from accel.convert.nodes import leaf

# Methods that tensors and modules have, and hardly anything else has.
_METHODS = frozenset(
    {
        "parameters", "named_parameters", "state_dict", "load_state_dict", "zero_grad", "backward",
        "requires_grad_", "named_modules", "register_buffer", "detach", "unsqueeze", "squeeze",
        "permute", "contiguous", "argmax", "softmax", "masked_fill", "half", "bfloat16", "eval",
        "data_ptr", "element_size",
    }
)  # fmt: skip
_TYPE = re.compile(r"\b(?:Tensor|LongTensor|FloatTensor|Module|Parameter)\b")
_NAME = re.compile(
    r"(?:^|_)(?:model|net|network|module|tensor|logits|input_ids|inputs?|labels?|targets?|images?)$"
)
_CLASS = re.compile(r"(?:Model|Net|Network)(?:For\w+)?\d*$|\.from_pretrained$")
_MOVES = frozenset({"to", "cpu", "cuda", "numpy"})  # of the result of a move
_MOVING = frozenset({"non_blocking", "dtype", "memory_format", "copy"})
# Functions of torch that take values of any kind.
_ANY = ("torch.save", "torch.device", "torch.is_tensor", "torch.tensor", "torch.as_tensor",
        "torch.distributed.", "torch.utils.", "torch.multiprocessing.", "torch.cuda.",
        "torch.typename", "torch.manual_seed")  # fmt: skip


def is_shown(module: Module, node: ast.expr) -> bool:
    """Whether a file shows that a value is a tensor or module: made, annotated or used as one."""
    if is_tensor_or_module(module, node) is True:
        return True
    if isinstance(node, ast.Call):
        words = {word.arg: word.value for word in node.keywords}
        given = words.get("return_tensors")
        return isinstance(given, ast.Constant) and given.value == "pt"
    if isinstance(node, ast.Subscript):
        return is_shown(module, node.value)
    if isinstance(node, ast.Name) and _is_annotated(module, node):
        return True
    if isinstance(node, ast.Attribute):
        values = [value for value in module.attribute_values(node) if value is not None]
        if any(is_tensor_or_module(module, value) for value in values):
            return True
    return any(_is_use(module, use) for use in _uses(module, node))


def is_called(module: Module, node: ast.expr) -> bool:
    """Whether a value is called somewhere, which no Python module can be."""
    return any(
        isinstance(outer := module.parent(use), ast.Call) and outer.func is use
        for use in _uses(module, node)
    )


def is_moved(module: Module, call: ast.Call) -> bool:
    """Whether a call of `to` has further arguments, or a result, as those of torch have."""
    if any(word.arg in _MOVING for word in call.keywords):
        return True
    if any((module.qualified(a) or "").startswith("torch.") for a in call.args[1:]):
        return True
    outer = module.parent(call)
    return isinstance(outer, ast.Attribute) and outer.attr in _METHODS | _MOVES


def names_value(node: ast.expr) -> bool:
    """Whether a value's name says that it is a tensor or module: `model`, `self.net`, `Net()`."""
    if isinstance(node, ast.Call):
        return _CLASS.search(_chain(node.func)) is not None
    return _NAME.search(leaf(node).lower()) is not None


def _chain(node: ast.expr) -> str:
    """The names of `Net` and `lib.Net.from_pretrained`; nothing of another expression."""
    if isinstance(node, ast.Attribute):
        return f"{_chain(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _is_annotated(module: Module, node: ast.Name) -> bool:
    binding = module.binding(node)
    annotation = binding.parameter.annotation if binding and binding.parameter else None
    return annotation is not None and _TYPE.search(module.text(annotation)) is not None


def _uses(module: Module, node: ast.expr) -> Iterator[ast.expr]:
    """Where the same variable or attribute is read."""
    if isinstance(node, ast.Name):
        binding = module.binding(node)
        yield from binding.uses if binding is not None else ()
    elif isinstance(node, ast.Attribute):
        text, owner = module.text(node), module.class_of(node)
        within = owner if text.startswith("self.") else None
        for other in module.all(ast.Attribute):
            is_same = other.attr == node.attr and module.text(other) == text
            if is_same and (within is None or module.class_of(other) is within):
                yield other


def _is_use(module: Module, use: ast.expr) -> bool:
    """Whether a use is one of a tensor or module."""
    parent = module.parent(use)
    if isinstance(parent, ast.Attribute):
        outer = module.parent(parent)
        return parent.attr in _METHODS and isinstance(outer, ast.Call) and outer.func is parent
    if isinstance(parent, ast.Call) and use in parent.args:
        name = module.qualified(parent.func) or ""
        return name.startswith("torch.") and not name.startswith(_ANY)
    return False
