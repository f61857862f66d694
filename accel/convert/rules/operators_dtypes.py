"""Which dtype an expression shows, and whether it can be on a device."""

from __future__ import annotations

import ast

from accel.convert.module import Module
from accel.convert.nodes import by_keyword, called

# What an Ascend computes in few operators only, by each of torch's names.
WIDE = {
    "torch.float64": "float64",
    "torch.double": "float64",
    "torch.complex64": "complex64",
    "torch.cfloat": "complex64",
    "torch.complex128": "complex128",
    "torch.cdouble": "complex128",
    "torch.complex32": "complex32",
    "torch.chalf": "complex32",
}
METHODS = {"double": "float64", "cfloat": "complex64", "cdouble": "complex128"}
_CASTS = frozenset({"to", "type"})
_MOVES = frozenset({"to", "cuda", "npu"})
# Calls that make a tensor where another one is.
_INHERITS = ("_like", "new_zeros", "new_ones", "new_full", "new_empty", "new_tensor")
_FACTORIES = frozenset(
    {"torch.tensor", "torch.as_tensor", "torch.zeros", "torch.ones", "torch.randn", "torch.rand",
     "torch.empty", "torch.full"}
)  # fmt: skip
_REDUCTIONS = frozenset({"sum", "mean", "prod", "cumsum", "cumprod", "nansum", "norm", "softmax"})


def dtype_of(module: Module, node: ast.expr) -> str | None:
    """The wide dtype that an expression names, as in `torch.float64`."""
    return WIDE.get(module.qualified(node) or "")


def shown(module: Module, node: ast.expr) -> str | None:
    """The wide dtype that a tensor expression plainly has; None for all others."""
    node = module.value_of(node)
    if not isinstance(node, ast.Call):
        return None
    if isinstance(node.func, ast.Attribute):
        name = node.func.attr
        if name in METHODS and not node.args and not node.keywords:
            return METHODS[name]
        if name in _CASTS and _is_method(module, node.func):
            for argument in node.args:
                if found := dtype_of(module, argument):
                    return found
    for keyword in node.keywords:
        if keyword.arg == "dtype":
            return dtype_of(module, keyword.value)
    return None


def on_device(module: Module, call: ast.Call) -> bool:
    """Whether a call with a wide dtype may make its result on a device, as far as it shows."""
    device = by_keyword(call, "device")
    if device is not None:
        return not is_cpu(module, device)
    if any(is_cpu(module, argument) for argument in call.args):
        return False
    name = called(call)
    if isinstance(call.func, ast.Attribute) and _is_method(module, call.func):
        if from_cpu(module, call.func.value):
            return False
        return name in METHODS or name in _CASTS or name in _REDUCTIONS or _inherits(name)
    if _inherits(name) or name in _REDUCTIONS:
        return not any(from_cpu(module, argument) for argument in call.args[:1])
    return _is_moved(module, call)


def is_tensor_method(module: Module, node: ast.Attribute) -> bool:
    """Whether this may be a method of a tensor or module: not of a library, nor of `self`."""
    return _is_method(module, node)


def _is_method(module: Module, node: ast.Attribute) -> bool:
    name = module.qualified(node)
    # `self.double()` of a class of the file's own, and functions of modules, are none.
    if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls", "super"):
        return False
    return name is None or name.startswith("builtins.")


def _inherits(name: str) -> bool:
    return name.endswith(_INHERITS)


def _is_moved(module: Module, call: ast.Call) -> bool:
    """`torch.zeros(..., dtype=torch.float64).to(device)`, at once."""
    parent = module.parent(call)
    if not isinstance(parent, ast.Attribute) or parent.attr not in _MOVES:
        return False
    outer = module.parent(parent)
    if not isinstance(outer, ast.Call) or outer.func is not parent:
        return False
    arguments = [*outer.args, *(word.value for word in outer.keywords)]
    if parent.attr == "to" and not arguments:
        return False
    return not any(
        is_cpu(module, one) or (module.qualified(one) or "").startswith("torch.")
        for one in arguments
    )


def is_cpu(module: Module, node: ast.expr) -> bool:
    """Whether an expression is the CPU by name."""
    node = module.value_of(node)
    if isinstance(node, ast.Call) and module.qualified(node.func) == "torch.device" and node.args:
        return is_cpu(module, node.args[0])
    return isinstance(node, ast.Constant) and node.value in ("cpu", "meta")


def from_cpu(module: Module, node: ast.expr) -> bool:
    """Whether an expression is on the host for certain: `x.cpu()`, `torch.from_numpy(a)`."""
    node = module.value_of(node)
    while isinstance(node, (ast.Call, ast.Subscript, ast.Attribute)):
        if isinstance(node, ast.Call):
            if module.qualified(node.func) in ("torch.from_numpy", "torch.frombuffer"):
                return True
            if isinstance(node.func, ast.Attribute):
                if node.func.attr == "cpu":
                    return True
                if node.func.attr in _MOVES and node.args:
                    return any(is_cpu(module, argument) for argument in node.args)
                if not _is_method(module, node.func):
                    return made_on_cpu(module, node)
            node = node.func
        else:
            node = node.value
    return False


def made_on_cpu(module: Module, call: ast.Call) -> bool:
    """A factory of torch's without a device: its tensor is on the host until it is moved."""
    name = module.qualified(call.func) or ""
    return name in _FACTORIES and not any(word.arg in ("device", None) for word in call.keywords)
