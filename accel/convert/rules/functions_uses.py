"""One use of a name of `torch.cuda`: what it becomes, or why it cannot."""

from __future__ import annotations

import ast
from typing import NamedTuple

from accel.convert.finding import Edit
from accel.convert.module import Module
from accel.convert.rules.functions_calls import needs_torch, templated, torch_name
from accel.convert.rules.functions_questions import asks
from accel.convert.rules.functions_table import Known, lookup

_DEFAULT = "torch.set_default_tensor_type"
# Classes here that only make objects of torch's.
_AUTOCAST = ("enabled", "dtype", "cache_enabled")  # torch.cuda.amp's order
_MADE = ("Stream", "Event")


class Spelling(NamedTuple):
    """What is written in the place of a use; with `edit`, in that of the call around it."""

    text: str
    imports: frozenset[str]
    edit: Edit | None = None


class Refusal(NamedTuple):
    """Why a use is for a human."""

    message: str
    advice: str
    subject: str = ""
    rule: str = ""


def chain(module: Module, name: ast.expr) -> tuple[ast.expr, Known] | None:
    """The known name of `torch.cuda` that an attribute chain from a name on up is; None if none."""
    node = name
    while True:
        known = lookup(module.qualified(node) or "")
        if known is not None:
            return node, known
        parent = module.parent(node)
        if not isinstance(parent, ast.Attribute):
            return None
        node = parent


def spell(module: Module, node: ast.expr, known: Known) -> Spelling | Refusal:
    """What a use becomes."""
    name = module.qualified(node) or ""
    if known.kind == "none":
        return Refusal(known.message, known.advice, name)
    if not isinstance(getattr(node, "ctx", None), ast.Load):
        return Refusal(
            f"{name} is replaced by the program itself.",
            "Replace the function that the converted calls use instead.",
            name,
            "ACC026",
        )
    if asks(module, node, name):
        return Refusal(
            f"{name} raises without <CUDA>, and the program takes that for an answer.",
            "Ask accel.is_available() in place of what is caught, and convert again.",
            name,
            "ACC028",
        )
    if known.function in _MADE and isinstance(module.parent(node), ast.Attribute):
        return Refusal(
            f"What takes the place of {name} makes objects of torch's own classes.",
            f"Take the method from an object, or from torch.{known.function}.",
            name,
        )
    if known.kind == "type" and _has_twin(module, node, name):
        return Refusal(
            f"On a CPU the class in the place of {name} is the CPU's, which is a key here too.",
            "Make the dtype and the device's type the key.",
            name,
        )
    if known.kind == "type" and is_default(module, node):
        return default_refusal(known.dtype)
    exact = module.target.tensor_class(name) if known.kind == "type" else None
    if exact is not None:
        return Spelling(exact, module.target.imports)
    if is_type(module, node):
        return _as_type(module, node, known, name)
    if known.kind in ("torch", "type"):
        torch = torch_name(module, node)
        if torch is None:
            return _no_torch(name)
        imports = needs_torch(module, node, torch)
        if known.kind == "torch":
            return Spelling(f"{torch}.{known.function}", imports)
    spelled = module.target.function(known.function)
    if known.is_called:
        spelled = module.target.text(known.function)
    if not spelled:
        order = _AUTOCAST if known.function == "autocast" else ()
        edit = templated(module, node, known.function, order)
        if edit is not None:
            return Spelling("", module.target.imports, edit)
        return _no_target(module, name)
    if known.kind == "type":
        text = f"{spelled}({torch}.{known.dtype})"
        return Spelling(text, module.target.imports | imports)
    return Spelling(spelled, module.target.imports)


def _has_twin(module: Module, node: ast.expr, name: str) -> bool:
    """Whether a class of CUDA's and the CPU's own are both keys of a dictionary."""
    parent = module.parent(node)
    twin = name.replace("torch.cuda.", "torch.")
    if not isinstance(parent, ast.Dict) or node not in parent.keys:
        return False
    return any(key is not None and module.qualified(key) == twin for key in parent.keys)


def _as_type(module: Module, node: ast.expr, known: Known, name: str) -> Spelling | Refusal:
    """In an annotation, `isinstance`, or as a base class."""
    base = isinstance(module.parent(node), ast.ClassDef)
    if known.kind in ("class", "torch") and not (base and known.function in _MADE):
        if known.kind == "torch":
            torch = torch_name(module, node)
            if torch is None:
                return _no_torch(name)
            return Spelling(f"{torch}.{known.function}", needs_torch(module, node, torch))
        spelled = module.target.function(known.function)
        if spelled is None:
            return _no_target(module, name)
        return Spelling(spelled, module.target.imports)
    if known.kind == "type" and is_annotation(module, node):
        torch = torch_name(module, node)
        if torch is None:
            return _no_torch(name)
        return Spelling(f"{torch}.Tensor", needs_torch(module, node, torch))
    if known.kind == "type" and not base:
        torch, spelled = torch_name(module, node), module.target.function(known.function)
        if torch is not None and spelled is not None:
            imports = module.target.imports | needs_torch(module, node, torch)
            return Spelling(f"{spelled}({torch}.{known.dtype})", imports)
    return Refusal(
        f"{name} is used as a type, and what takes its place is a function.",
        "Test for or derive from the class of torch that is meant, e.g. torch.autocast.",
        name,
    )


def _no_torch(name: str) -> Refusal:
    return Refusal(
        f"What takes the place of {name} is in torch, and torch has no name here.",
        "Import torch under a name of its own, and convert again.",
        name,
    )


def _no_target(module: Module, name: str) -> Refusal:
    return Refusal(
        f"The target {module.target.name} has nothing for {name}.",
        "Convert to the target accel, or write this by hand.",
        "target",
    )


def default_refusal(dtype: str) -> Refusal:
    """Why a class of CUDA's as torch's default is for a human: torch takes no other device's."""
    return Refusal(
        "Only CUDA's classes and the CPU's may be torch's default tensor type.",
        f"Write torch.set_default_dtype(torch.{dtype}) and torch.set_default_device("
        "accel.device()); torch.Tensor(...) stays on the CPU with these.",
        _DEFAULT,
        "ACC048",
    )


def is_default(module: Module, node: ast.AST) -> bool:
    """Whether a node is the argument of `torch.set_default_tensor_type`."""
    call = module.parent(node)
    return isinstance(call, ast.Call) and module.qualified(call.func) == _DEFAULT


def is_type(module: Module, node: ast.AST) -> bool:
    """Whether a node stands where a class must stand."""
    if is_annotation(module, node):
        return True
    parent = module.parent(node)
    if isinstance(parent, ast.ClassDef):
        return node in parent.bases
    inner = node
    while isinstance(parent, (ast.Tuple, ast.BinOp)):
        inner, parent = parent, module.parent(parent)
    return (
        isinstance(parent, ast.Call)
        and isinstance(parent.func, ast.Name)
        and parent.func.id in ("isinstance", "issubclass")
        and inner in parent.args[1:]
    )


def is_annotation(module: Module, node: ast.AST) -> bool:
    """Whether a node is in the annotation of a parameter, a variable or a function."""
    child = node
    for outer in module.ancestors(node):
        if isinstance(outer, ast.arg):
            return True
        if isinstance(outer, ast.AnnAssign):
            return child is outer.annotation
        if isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return child is outer.returns
        if isinstance(outer, (ast.stmt, ast.Lambda, ast.Call)):
            return False
        child = outer
    return False
