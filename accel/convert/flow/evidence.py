"""What an expression is: a device, a tensor or module, something else, or unknown."""

from __future__ import annotations

import ast
import re

from accel.convert.flow.options import option_of
from accel.convert.flow.positions import is_device_string, named_device
from accel.convert.module import Module
from accel.convert.nodes import by_keyword, called, is_none
from accel.convert.scopes import FUNCTIONS

_DEEPEST = 8
# Full names of calls that give no tensor and no module.
_OTHERS = (
    "pathlib.", "os.", "json.", "argparse.", "numpy.", "pandas.", "collections.", "datetime.",
    "re.", "subprocess.", "shutil.", "PIL.", "cv2.", "logging.", "fabric.", "paramiko.", "pint.",
    "requests.", "typing.", "builtins.str", "builtins.int", "builtins.float", "builtins.list",
    "builtins.dict", "builtins.set", "builtins.tuple", "builtins.open", "builtins.bytes",
    "builtins.len", "builtins.range", "builtins.sorted",
)  # fmt: skip
_MODULE_BASES = frozenset(
    {
        "torch.nn.Module", "torch.nn.Sequential", "torch.nn.ModuleList", "torch.nn.Parameter",
        "torch.Tensor", "torch.jit.ScriptModule", "torch.nn.modules.Module",
        "pytorch_lightning.LightningModule", "lightning.LightningModule",
        "lightning.pytorch.LightningModule", "transformers.PreTrainedModel",
    }
)  # fmt: skip
_PLAIN = (ast.Constant, ast.JoinedStr, ast.List, ast.Dict, ast.Set, ast.Tuple, ast.Lambda)


def is_device(module: Module, node: ast.expr, depth: int = 0) -> bool | None:
    """Whether an expression evaluates to a `torch.device` or a device's name; None if unknown."""
    if depth > _DEEPEST:
        return None
    if isinstance(node, ast.Constant):
        return None if node.value is None else is_device_string(node.value)
    if isinstance(node, ast.IfExp):
        return _both(is_device(module, n, depth + 1) for n in (node.body, node.orelse))
    if isinstance(node, ast.BoolOp):
        return _both(is_device(module, n, depth + 1) for n in node.values)
    if isinstance(node, ast.Call):
        return _is_device_call(module, node, depth)
    if isinstance(node, ast.Attribute):
        return _is_device_attribute(module, node, depth)
    if isinstance(node, ast.Name):
        return _is_device_name(module, node, depth)
    if isinstance(node, (ast.JoinedStr, ast.BinOp)):
        return True if starts_with_cuda(module, node) else None
    return None


def starts_with_cuda(module: Module, node: ast.expr) -> bool:
    """Whether text that is put together begins with `cuda:`."""
    first: ast.expr = node
    while isinstance(first, ast.BinOp):
        first = first.left
    if isinstance(first, ast.JoinedStr):
        first = first.values[0] if first.values else first
    value = first.value if isinstance(first, ast.Constant) else None
    return isinstance(value, str) and value.startswith("cuda:")


def _both(answers: object) -> bool | None:
    every = list(answers)  # type: ignore[call-overload]
    if all(answer is True for answer in every):
        return True
    return False if any(answer is False for answer in every) else None


def _is_device_call(module: Module, node: ast.Call, depth: int) -> bool | None:
    name = module.qualified(node.func)
    if name in ("torch.device", "torch.accelerator.current_accelerator"):
        return True
    if name == "builtins.str" and node.args:
        return is_device(module, node.args[0], depth + 1)
    if name and name.endswith((".device", ".device_str", ".default_device_type")):
        return True if name.partition(".")[0] == "accel" else None
    if isinstance(node.func, ast.Attribute):
        inner = node.func.value
        if node.func.attr in ("strip", "lower"):
            return is_device(module, inner, depth + 1)
        if node.func.attr == "format" and starts_with_cuda(module, inner):
            return True
    return True if called(node) in ("get_device", "select_device", "get_default_device") else None


def _is_device_attribute(module: Module, node: ast.Attribute, depth: int) -> bool | None:
    if node.attr == "type":
        return is_device(module, node.value, depth + 1)
    values = module.attribute_values(node)
    if values and all(value is not None for value in values):
        known = [v for v in values if v is not None and not is_none(v)]
        answer = _both(is_device(module, v, depth + 1) for v in known) if known else None
        if answer is not None:
            return answer
    return True if named_device(node.attr) else None


def _is_device_name(module: Module, node: ast.Name, depth: int) -> bool | None:
    binding = module.binding(node)
    if binding is not None and binding.definitions:
        return None
    if binding is None or binding.imports:
        return True if named_device(node.id) else None
    values = [value for value in binding.values if not is_none(value)]
    if values and not binding.parameter and not binding.is_opaque:
        answer = _both(is_device(module, value, depth + 1) for value in values)
        if answer is not None:
            return answer
    return True if named_device(node.id) else None


def may_be_none(module: Module, node: ast.expr, depth: int = 0) -> bool:
    """Whether the program itself gives a variable, attribute or option the value None."""
    if isinstance(node, ast.Constant):
        return node.value is None
    if depth > _DEEPEST:
        return False
    if isinstance(node, (ast.IfExp, ast.BoolOp)):
        parts = node.values if isinstance(node, ast.BoolOp) else [node.body, node.orelse]
        return any(may_be_none(module, part, depth + 1) for part in parts)
    if isinstance(node, ast.Attribute):
        values = module.attribute_values(node)
        if values:
            return any(v is not None and may_be_none(module, v, depth + 1) for v in values)
        option = option_of(module, node.attr)
        default = by_keyword(option, "default") if option is not None else None
        return option is not None and (default is None or may_be_none(module, default, depth + 1))
    binding = module.binding(node) if isinstance(node, ast.Name) else None
    if binding is None:
        return False
    if binding.parameter is not None and _optional(module, binding.parameter):
        return True
    return any(may_be_none(module, value, depth + 1) for value in binding.values)


def _optional(module: Module, parameter: ast.arg) -> bool:
    """Whether a parameter's annotation or default allows None."""
    annotation = parameter.annotation
    if annotation is not None and re.search(r"\b(?:None|Optional)\b", module.text(annotation)):
        return True
    return is_none(default_of(module.parent(parameter), parameter))


def default_of(arguments: ast.AST, parameter: ast.arg) -> ast.expr | None:
    """The default of a parameter."""
    if not isinstance(arguments, ast.arguments):
        return None
    if parameter in arguments.kwonlyargs:
        return arguments.kw_defaults[arguments.kwonlyargs.index(parameter)]
    placed = [*arguments.posonlyargs, *arguments.args]
    if parameter not in placed:
        return None
    at = placed.index(parameter) - (len(placed) - len(arguments.defaults))
    return arguments.defaults[at] if at >= 0 else None


def instance_class(module: Module, node: ast.expr) -> ast.ClassDef | None:
    """The class of this file that an expression is an instance of; None if it is not known."""
    node = module.value_of(node)
    if isinstance(node, ast.Name):
        return _own_self(module, node)
    if isinstance(node, ast.Attribute):
        values = module.attribute_values(node)
        if len(values) != 1 or values[0] is None:
            return None
        node = module.value_of(values[0])
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        binding = module.binding(node.func)
        if binding and len(binding.definitions) == 1 and not binding.values:
            found = binding.definitions[0]
            return found if isinstance(found, ast.ClassDef) else None
    return None


def _own_self(module: Module, node: ast.Name) -> ast.ClassDef | None:
    binding = module.binding(node)
    if binding is None or binding.parameter is None:
        return None
    function = binding.scope.node
    if not isinstance(function, FUNCTIONS) or isinstance(function, ast.Lambda):
        return None
    arguments = [*function.args.posonlyargs, *function.args.args]
    outer = module.parent(function)
    is_first = bool(arguments) and arguments[0] is binding.parameter
    return outer if isinstance(outer, ast.ClassDef) and is_first and node.id == "self" else None


def method_of(owner: ast.ClassDef, name: str) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    """The method of a name in a class's own body."""
    for item in owner.body:
        if isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef)) and item.name == name:
            return item
    return None


def is_torch_class(module: Module, owner: ast.ClassDef, depth: int = 0) -> bool | None:
    """Whether a class of this file is a tensor or module; None where a base is not known."""
    unknown = False
    for base in owner.bases:
        name = module.qualified(base)
        if name in _MODULE_BASES or (name or "").startswith("torch.nn."):
            return True
        if name in ("builtins.object", "typing.Protocol", "abc.ABC"):
            continue
        inner = _definition(module, base)
        answer = is_torch_class(module, inner, depth + 1) if inner and depth < _DEEPEST else None
        if answer:
            return True
        unknown = unknown or answer is None
    return None if unknown else False


def _definition(module: Module, node: ast.expr) -> ast.ClassDef | None:
    binding = module.binding(node) if isinstance(node, ast.Name) else None
    if binding and len(binding.definitions) == 1 and not binding.values:
        found = binding.definitions[0]
        return found if isinstance(found, ast.ClassDef) else None
    return None


def is_tensor_or_module(module: Module, node: ast.expr, depth: int = 0) -> bool | None:
    """Whether an expression is a tensor or module of torch's; None if unknown."""
    if depth > _DEEPEST:
        return None
    if isinstance(node, _PLAIN):
        return False
    own = instance_class(module, node)
    if own is not None:
        return is_torch_class(module, own)
    node = module.value_of(node)
    if isinstance(node, _PLAIN):
        return False
    if isinstance(node, ast.Call):
        return _is_tensor_call(module, node, depth)
    if isinstance(node, ast.BinOp):
        sides = [is_tensor_or_module(module, n, depth + 1) for n in (node.left, node.right)]
        return True if True in sides else None
    if isinstance(node, ast.Subscript):
        return True if is_tensor_or_module(module, node.value, depth + 1) else None
    return None


def _is_tensor_call(module: Module, node: ast.Call, depth: int) -> bool | None:
    name = module.qualified(node.func) or ""
    if name.startswith(("torch.device", "torch.utils.", "torch.distributed.", "torch.cuda.")):
        return None
    if name.startswith(("torch.", "torchvision.models.")) and name != "torch.load":
        return True
    if name.startswith(_OTHERS):
        return False
    if isinstance(node.func, ast.Attribute):
        return True if is_tensor_or_module(module, node.func.value, depth + 1) else None
    return None
