"""Reading the names of CUDA devices in a program, and writing what takes their place."""

from __future__ import annotations

import ast
import re
from typing import NamedTuple

from accel.convert.finding import Finding, Span
from accel.convert.flow.options import option_of
from accel.convert.module import Module
from accel.convert.nodes import by_keyword, is_none, is_self, terminal_name
from accel.convert.scopes import Binding

Piece = str | Span | ast.AST

_NAME = re.compile(r"cuda(?::(\d+))?")
_FIELD = re.compile(r"cuda:\{0?(?::d)?\}")
_PERCENT = re.compile(r"cuda:%[dsi]")
# `low_rank` and `lora_rank` are no process's: only these words before `rank` say one.
_RANK_NAME = (
    r"^_*rank$|(?:^|_)(?:local|global|world|node|dist|distributed|ddp|fsdp|gpu|cuda|device|dev|my|"
    r"cur|current|this|self|proc|process|worker|parallel|dp|tp|pp|ep|cp|sp|mp|mpi|hvd|group|src|"
    r"dst|source|target|main|master|default|peer|root|trainer)_?rank$"
)
_RANK = re.compile(
    _RANK_NAME + r"|(?:^|_)(?:gpu|gpu_?id|gpu_?idx|gpu_?index|gpu_?num|device_?id|device_?idx|"
    r"device_?index|dev_?id|cuda_?id|device_?num)$",
    re.IGNORECASE,
)
_INT_NAME = re.compile(_RANK_NAME + r"|(?:^|_)rank_?(?:id|idx|index)$", re.IGNORECASE)
_CHOICE = re.compile(
    r"(?:^|_)(?:impl|implementation|backend|kernel|engine|mode|kind|lang|language|platform|"
    r"provider|framework|target|arch|method|variant|name|suffix|ext|format|fmt|key|flavor)s?$",
    re.IGNORECASE,
)
_INT_CALLS = frozenset(
    {
        "builtins.int", "builtins.len", "torch.distributed.get_rank", "torch.cuda.current_device",
        "torch.distributed.get_node_local_rank", "torch.cuda.device_count",
        "torch.distributed.get_world_size", "torch.accelerator.current_device_index",
        "torch.accelerator.device_count",
    }
)  # fmt: skip
_WORD = re.compile(rb"[\w\x80-\xff]+\Z")
_DEEPEST = 6


# On a CPU the device of any number is the CPU, to which the comparison would then be true.
COMPARED = "It is compared with one device, which would be the CPU itself on a CPU."
COMPARED_ADVICE = (
    "Compare the number, device.index, where accel.is_accelerator(device); note that torch's "
    "device without a number equals none with a number."
)


class Place(NamedTuple):
    """A CUDA device as the program names it.

    Attributes:
        number: The expression of its index, in pieces; empty for a device without one.
    """

    number: tuple[Piece, ...] = ()


def place_of(module: Module, node: ast.expr) -> Place | None:
    """The CUDA device that a text names: a literal, an f-string, `%`, `+` or `.format`."""
    if isinstance(node, ast.Constant):
        match = _NAME.fullmatch(node.value) if isinstance(node.value, str) else None
        if match is None:
            return None
        return Place((match.group(1),) if match.group(1) else ())
    value = _index_of(node)
    if value is None:
        return None
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        return Place((value.value,)) if value.value.isdecimal() else None
    return Place((value,) if is_int(module, value) else ("int(", value, ")"))


def device_arguments(node: ast.Call) -> tuple[ast.expr | None, ast.expr | None]:
    """The name and the number that `torch.device` is given."""
    words = {word.arg: word.value for word in node.keywords}
    if len(node.args) > 2 or not words.keys() <= {"type", "index", "device"}:
        return None, None
    named = node.args[0] if node.args else words.get("type", words.get("device"))
    number = node.args[1] if len(node.args) > 1 else words.get("index")
    if isinstance(named, ast.Starred) or isinstance(number, ast.Starred):
        return None, None
    if is_none(number):
        number = None
    return named, number


def _index_of(node: ast.expr) -> ast.expr | None:
    """The expression behind `cuda:` in a text that is put together."""
    if isinstance(node, ast.JoinedStr):
        return _in_fstring(node)
    if isinstance(node, ast.BinOp) and isinstance(node.left, ast.Constant):
        text = node.left.value
        if isinstance(node.op, ast.Add) and text == "cuda:":
            return _without_str(node.right)
        if isinstance(node.op, ast.Mod) and _full(_PERCENT, text):
            right = node.right
            if isinstance(right, ast.Tuple):
                return right.elts[0] if len(right.elts) == 1 else None
            return right
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        inner = node.func.value
        plain = len(node.args) == 1 and not node.keywords
        if node.func.attr == "format" and isinstance(inner, ast.Constant) and plain:
            starred = isinstance(node.args[0], ast.Starred)
            return node.args[0] if _full(_FIELD, inner.value) and not starred else None
    return None


def _full(pattern: re.Pattern[str], text: object) -> bool:
    return isinstance(text, str) and pattern.fullmatch(text) is not None


def _in_fstring(node: ast.JoinedStr) -> ast.expr | None:
    if len(node.values) != 2:
        return None
    first, second = node.values
    if not (isinstance(first, ast.Constant) and first.value == "cuda:"):
        return None
    if not isinstance(second, ast.FormattedValue) or second.conversion not in (-1, 115):
        return None
    form = second.format_spec
    if form is not None:
        parts = form.values if isinstance(form, ast.JoinedStr) else []
        if not (len(parts) == 1 and isinstance(parts[0], ast.Constant) and parts[0].value == "d"):
            return None
    return _without_str(second.value)


def _without_str(node: ast.expr) -> ast.expr:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return node
    plain = node.func.id == "str" and len(node.args) == 1 and not node.keywords
    return node.args[0] if plain else node


def template_of(node: ast.Constant, module: Module) -> ast.expr | None:
    """The whole text that a literal `cuda:`, `cuda:%d` or `cuda:{}` is the beginning of."""
    parent = module.parent(node)
    if isinstance(parent, ast.BinOp) and parent.left is node:
        return parent
    if isinstance(parent, ast.JoinedStr) and parent.values and parent.values[0] is node:
        return parent
    if isinstance(parent, ast.Attribute) and parent.attr == "format":
        outer = module.parent(parent)
        return outer if isinstance(outer, ast.Call) and outer.func is parent else None
    return None


def named_index(node: ast.expr) -> bool:
    """Whether an expression's name says that it is the number of a device."""
    return _RANK.search(terminal_name(node)) is not None


def names_choice(name: str) -> bool:
    """Whether a name, such as `impl` or `backend`, says that it holds a choice of the program's."""
    return _CHOICE.search(name) is not None


def is_int(module: Module, node: ast.expr, depth: int = 0) -> bool | None:
    """Whether an expression is an integer; None if unknown."""
    if depth > _DEEPEST:
        return None
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int) and not isinstance(node.value, bool)
    if isinstance(node, ast.Call):
        return True if module.qualified(node.func) in _INT_CALLS else None
    if isinstance(node, ast.BinOp):
        if is_int(module, node.left, depth + 1) is False:
            return False
        if isinstance(node.op, (ast.Mod, ast.FloorDiv)):
            return True if is_int(module, node.right, depth + 1) else None
        sides = (is_int(module, node.left, depth + 1), is_int(module, node.right, depth + 1))
        return True if any(sides) else None
    if isinstance(node, ast.IfExp):
        sides = (is_int(module, node.body, depth + 1), is_int(module, node.orelse, depth + 1))
        return True if all(sides) else None
    if isinstance(node, ast.Attribute):
        return _is_int_attribute(module, node, depth)
    if isinstance(node, ast.Name):
        binding = module.binding(node)
        if binding is None or binding.imports:
            return True if _INT_NAME.search(node.id) else None
        return _is_int_name(module, binding, depth)
    if isinstance(node, ast.Subscript):
        return False if module.qualified(node.value) == "os.environ" else None
    return None


def _is_int_attribute(module: Module, node: ast.Attribute, depth: int) -> bool | None:
    values = module.attribute_values(node)
    if values:
        answers = [v is not None and is_int(module, v, depth + 1) for v in values]
        return True if all(answers) else None
    written = option_of(module, node.attr)
    if written is not None:
        kind = by_keyword(written, "type")
        return module.qualified(kind) == "builtins.int" if kind is not None else False
    return True if _INT_NAME.search(node.attr) else None


def _is_int_name(module: Module, binding: Binding, depth: int) -> bool | None:
    if binding.parameter is not None:
        annotation = binding.parameter.annotation
        if annotation is not None:
            return module.qualified(annotation) == "builtins.int"
        return True if _INT_NAME.search(binding.name) else None
    if binding.values and not binding.is_opaque:
        answers = [is_int(module, value, depth + 1) for value in binding.values]
        if all(answers):
            return True
        return False if False in answers else None
    return _counts(module, binding)


def _counts(module: Module, binding: Binding) -> bool | None:
    """Whether a name is the variable of a loop over `range`."""
    for store in binding.stores:
        loop = module.parent(store)
        if isinstance(loop, (ast.For, ast.comprehension)) and isinstance(loop.iter, ast.Call):
            if module.qualified(loop.iter.func) != "builtins.range":
                return None
        else:
            return None
    return True if binding.stores else None


def call(module: Module, function: str, place: Place) -> tuple[Piece, ...] | None:
    """The pieces of a call of ours for a device; None where the target has no such function."""
    arguments = (place.number,) if place.number else ()
    return module.target.call(function, *arguments)


def device_call(module: Module, node: ast.expr) -> tuple[Piece, ...] | None:
    """What makes a device of what a program gives to `.cuda` and its like."""
    if is_get_device(module, node):
        return get_device(module, node)
    if named_index(node) or is_int(module, node):
        return module.target.call("device", node)
    return module.target.call("device_named", node)


def text_for(module: Module, place: Place) -> tuple[Piece, ...] | None:
    """What a device's name as a string becomes; a device without an index stays without one."""
    return call(module, "device_str" if place.number else "default_device_type", place)


def is_get_device(module: Module, node: ast.expr) -> bool:
    """Whether an expression is a tensor's `x.get_device()`, which is -1 on a CPU."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    owner = node.func.value
    known = (
        is_self(owner)
        or "get_device" in module.project.names
        or module.qualified(owner) is not None
    )
    return node.func.attr == "get_device" and not (node.args or node.keywords or known)


def get_device(module: Module, node: ast.expr) -> tuple[Piece, ...]:
    """`x.device` for `x.get_device()`."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        raise TypeError(f"x.get_device() is a call, not {type(node).__name__}")
    start = module.span(node).start
    return (Span(start, attribute_span(module, node.func).start), "device")


def converted(
    module: Module,
    node: ast.AST,
    rule: str,
    message: str,
    *parts: Piece,
    imports: frozenset[str] | None = None,
) -> Finding:
    """A finding that replaces an expression, with a blank where a word stands right before it.

    `return'cuda'in device` would otherwise become one word with what takes its place.
    """
    start = module.span(node).start
    before = module.source.utf8[max(start - 1, 0) : start]
    if _WORD.fullmatch(before) and isinstance(parts[0], str) and parts[0][:1].isidentifier():
        parts = (" ", *parts)
    return module.convert(node, rule, message, *parts, imports=imports)


def attribute_span(module: Module, node: ast.Attribute) -> Span:
    """The bytes of an attribute's own name, as long as it is in the text."""
    end = module.span(node).end
    match = _WORD.search(module.source.utf8[module.span(node.value).end : end])
    return Span(end - len(match.group()) if match else end - len(node.attr), end)
