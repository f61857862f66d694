"""ACC031 to ACC035: comparisons of a device with 'cuda'."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from accel.convert.finding import Finding
from accel.convert.flow import is_device
from accel.convert.module import Module
from accel.convert.nodes import terminal_name
from accel.convert.rules.devices_spelling import (
    COMPARED,
    COMPARED_ADVICE,
    Piece,
    converted,
    names_choice,
    place_of,
)
from accel.convert.rules.guards_branches import other_branches
from accel.convert.rules.guards_content import Content, content, guarded
from accel.convert.rules.guards_rules import RULES as RULES
from accel.convert.rules.guards_words import (
    asks_which_accelerator,
    is_kind,
    is_read_type,
    may_be_nothing,
)

_FUSED = re.compile(r"fused|triton|flash|kernel|plugin|custom|impl\b|compile_ext", re.IGNORECASE)
_PARSE = frozenset(
    {"replace", "split", "rsplit", "partition", "rpartition", "strip", "lstrip", "rstrip",
     "removeprefix", "find", "index", "count", "endswith"}
)  # fmt: skip
_EXACT = (
    "Only the very word equals it: 'cuda:0' does not, and no torch.device does. It is not known "
    "whether the other side always is a word without a number."
)
_EXACT_ADVICE = (
    "Compare the type, torch.device(device).type, or write accel.is_accelerator(device)."
)
_ADVICE = (
    "If it asks for any accelerator, write accel.is_accelerator(device); if for <CUDA>, add "
    "`# accel: keep`."
)


def find(module: Module) -> Iterator[Finding]:
    """Comparisons with the names of CUDA devices."""
    for node in module.all(ast.Compare):
        yield from _compare(module, node)
    for called in module.all(ast.Call):
        if isinstance(called.func, ast.Attribute) and called.args:
            yield from _method(module, called, called.func)
    for case in module.all(ast.MatchValue):
        if _is_cuda(module, case.value):
            yield module.flag(case.value, "ACC031", "It is a case for <CUDA>.", _ADVICE)


def _is_cuda(module: Module, node: ast.AST) -> bool:
    """Whether an expression is a name of CUDA's, or `torch.device("cuda").type`."""
    if isinstance(node, ast.Attribute) and node.attr == "type":
        call = node.value
        if not isinstance(call, ast.Call) or module.qualified(call.func) != "torch.device":
            return False
        node = call.args[0] if call.args else call
    return (
        isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and (node.value in ("cuda", "cuda:") or re.fullmatch(r"cuda:\d+", node.value) is not None)
    )


# --- == != in not in ------------------------------------------------------------------------------


def _compare(module: Module, node: ast.Compare) -> Iterator[Finding]:
    if len(node.ops) != 1:
        parts = [node.left, *node.comparators]
        if any(_is_cuda(module, part) for part in parts):
            yield module.flag(node, "ACC031", "It is a chain of comparisons with <CUDA>.", _ADVICE)
        return
    left, op, right = node.left, node.ops[0], node.comparators[0]
    if isinstance(op, (ast.Eq, ast.NotEq)):
        literal, other = (left, right) if _is_cuda(module, left) else (right, left)
        if _is_cuda(module, literal) and not _is_cuda(module, other):
            yield _equal(module, node, literal, other, isinstance(op, ast.NotEq))
    elif isinstance(op, (ast.In, ast.NotIn)):
        negated = isinstance(op, ast.NotIn)
        if _is_cuda(module, left):
            yield _within(module, node, left, right, negated)
        elif any(_is_cuda(module, item) for item in _items(right)):
            yield _among(module, node, left, right, negated)


def _items(node: ast.expr) -> list[ast.expr]:
    return node.elts if isinstance(node, (ast.Tuple, ast.List, ast.Set)) else []


def _equal(
    module: Module, node: ast.Compare, literal: ast.expr, other: ast.expr, negated: bool
) -> Finding:
    kept = _kept(module, node, literal, other)
    if kept is not None:
        return kept
    place = place_of(module, literal)
    if place is not None and place.number:
        return module.flag(literal, "ACC032", COMPARED, COMPARED_ADVICE)
    if not is_kind(module, other):
        return module.flag(literal, "ACC031", _EXACT, _EXACT_ADVICE)
    return _question(module, node, other, negated)


def _within(
    module: Module, node: ast.Compare, literal: ast.expr, other: ast.expr, negated: bool
) -> Finding:
    """`'cuda' in text`: text is a device's name, or a table or a longer text."""
    kept = _kept(module, node, literal, other)
    return kept if kept is not None else _begins(module, node, literal, other, negated)


def _begins(
    module: Module, node: ast.expr, literal: ast.expr, text: ast.expr, negated: bool
) -> Finding:
    """Whether a device's name has `cuda`, `cuda:` or `cuda:0` in it; each asks another thing."""
    value = literal.value if isinstance(literal, ast.Constant) else "cuda"
    if value == "cuda":
        return _question(module, node, text, negated)
    parts = ask(module, text)
    if value != "cuda:" or parts is None or not _is_still(module, text):
        return module.flag(literal, "ACC032", COMPARED, COMPARED_ADVICE)
    message = "It asks whether the device is an accelerator with a number."
    is_alone = isinstance(module.parent(node), (ast.If, ast.While, ast.Assign, ast.Return))
    before, after = ("", "") if is_alone else ("(", ")")
    if negated:
        before, after = ("not (", ")") if is_alone else ("(not (", "))")
    return converted(module, node, "ACC031", message, before, *parts, ' and ":" in ', text, after)


def _is_still(module: Module, node: ast.expr) -> bool:
    """Whether an expression may be computed twice: a name, an attribute, or str() of these."""
    if isinstance(node, ast.Call) and module.qualified(node.func) == "builtins.str" and node.args:
        node = node.args[0]
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name)


def _among(
    module: Module, node: ast.Compare, left: ast.expr, right: ast.expr, negated: bool
) -> Finding:
    """`device in ('cuda', 'mps')`."""
    literals = _items(right)
    texts = [item.value for item in literals if isinstance(item, ast.Constant)]
    kept = _kept(module, node, right, left)
    if kept is not None:
        return kept
    if "npu" in texts:
        return module.keep(right, "ACC034", "Ascend's devices are in the list.")
    if texts == ["cuda"] and is_kind(module, left):
        return _question(module, node, left, negated)
    return module.flag(
        right,
        "ACC034",
        "The list names some accelerators and leaves others out.",
        "Allow what `accel.is_accelerator(device)` is true for.",
    )


def _question(module: Module, node: ast.AST, other: ast.expr, negated: bool) -> Finding:
    parts = ask(module, other)
    if parts is None:
        return module.flag(node, "ACC031", "The target has no such question.", _ADVICE)
    if negated:
        inner = isinstance(module.parent(node), (ast.UnaryOp, ast.Compare, ast.BinOp))
        parts = ("(not ", *parts, ")") if inner else ("not ", *parts)
    return converted(
        module, node, "ACC031", "It asks whether the device is an accelerator.", *parts
    )


def ask(module: Module, device: ast.expr) -> tuple[Piece, ...] | None:
    """The question whether a device, given by itself, its type or its text, is an accelerator."""
    return module.target.call("is_accelerator", _bare(module, device))


def _bare(module: Module, node: ast.expr) -> tuple[Piece, ...]:
    """`d` for `d.type` and `str(d)`; `str(d)` for a `d` that may be None, which names no device."""
    if isinstance(node, ast.Attribute) and node.attr == "type":
        return (node.value if is_device(module, node.value) else node,)
    is_text = isinstance(node, ast.Call) and module.qualified(node.func) == "builtins.str"
    inner = node.args[0] if is_text and isinstance(node, ast.Call) and node.args else node
    if may_be_nothing(module, inner):
        return (node,) if is_text else ("str(", node, ")")
    return (inner,)


# --- startswith, replace, … -----------------------------------------------------------------------


def _method(module: Module, node: ast.Call, func: ast.Attribute) -> Iterator[Finding]:
    first = node.args[0]
    if func.attr == "startswith":
        if _is_cuda(module, first):
            kept = _kept(module, node, first, func.value)
            yield kept or _begins(module, node, first, func.value, False)
        elif isinstance(first, ast.Tuple) and any(_is_cuda(module, item) for item in first.elts):
            yield module.flag(node, "ACC031", "Several kinds of devices begin so.", _ADVICE)
    elif func.attr in _PARSE and _is_cuda(module, first):
        if is_device(module, func.value):
            yield module.flag(
                first,
                "ACC035",
                "The name of a <CUDA> device is taken apart as text.",
                "Use torch.device(name).type and .index, which any device has.",
            )
        else:
            yield module.keep(first, "ACC035", "The text that is taken apart is no device's name.")


# --- what stays -----------------------------------------------------------------------------------


def _kept(module: Module, node: ast.expr, literal: ast.expr, other: ast.expr) -> Finding | None:
    """A finding if a comparison is no general question about a device; None if it is."""
    known = is_device(module, other)
    if known is not True and not is_read_type(module, other):
        if _names_choice(other) or known is False:
            return module.keep(literal, "ACC033", "It names a choice of the program's own.")
        if _reads_file(module, node):
            return module.keep(literal, "ACC033", "What it is compared with was read from a file.")
        return module.flag(
            literal,
            "ACC031",
            "It is not known whether what it is compared with is a device.",
            _ADVICE,
        )
    if _is_choice(module, node):
        return module.keep(
            literal, "ACC033", "It chooses an implementation that only <CUDA> has, not a device."
        )
    if asks_which_accelerator(module, other):
        return module.flag(
            literal,
            "ACC031",
            "It asks which accelerator is there, and not whether one is.",
            _ADVICE,
        )
    beside = other_branches(module, node)
    if beside:
        return module.flag(
            literal,
            "ACC031",
            f"The program has a branch of its own for {beside} beside this one.",
            "Put one for other accelerators behind them: accel.is_accelerator(device).",
        )
    held = _held(module, node)
    if held.only_cuda:
        return module.flag(
            literal,
            "ACC030",
            f"It guards {held.only_cuda}: another device must not take this branch.",
            "See what other devices do here; write a branch for them if the other does not serve.",
        )
    if held.kernel:
        return module.keep(literal, "ACC033", f"It guards the kernel {held.kernel}.")
    return None


def _names_choice(node: ast.expr) -> bool:
    return names_choice(terminal_name(node)) or (
        isinstance(node, (ast.Dict, ast.List, ast.Set, ast.Tuple, ast.Constant, ast.JoinedStr))
    )


def _reads_file(module: Module, node: ast.AST) -> bool:
    """Within code that walks the graph of a saved program."""
    function = module.function_of(node)
    names = {n.attr for n in ast.walk(function) if isinstance(n, ast.Attribute)} if function else ()
    return bool({"attributeNames", "findAllNodes", "findNode", "copyAttributes"} & set(names))


def _is_choice(module: Module, node: ast.expr) -> bool:
    """A condition that chooses among implementations: `impl == 'cuda' and d.type == 'cuda'`."""
    whole: ast.AST = node
    while isinstance(module.parent(whole), (ast.BoolOp, ast.UnaryOp)):
        whole = module.parent(whole)
    others = [n for n in ast.walk(whole) if isinstance(n, (ast.Name, ast.Attribute))]
    inside = set(ast.walk(node))
    names = [n.id if isinstance(n, ast.Name) else n.attr for n in others if n not in inside]
    if any(_FUSED.search(name) for name in names) or _asks_vendor(module, others, inside):
        return True
    parent = module.parent(whole)
    if isinstance(parent, ast.Assign):
        return any(_FUSED.search(module.text(target)) for target in parent.targets)
    if isinstance(parent, ast.keyword):
        return _FUSED.search(parent.arg or "") is not None
    return False


def _asks_vendor(
    module: Module, names: list[ast.Name | ast.Attribute], inside: set[ast.AST]
) -> bool:
    """A question about CUDA alone beside the comparison, as `check_cuda_p2p_support()`."""
    for node in names:
        parent = module.parent(node)
        if node in inside or not isinstance(parent, ast.Call) or parent.func is not node:
            continue
        name = node.id if isinstance(node, ast.Name) else node.attr
        known = (module.qualified(node) or "").startswith("torch.cuda.")
        vendor = re.search("cuda|rocm|hip", name.lower()) is not None
        if vendor and not known and not name.startswith(("is_cuda", "use_cuda")):
            return True
    return False


def _held(module: Module, node: ast.expr) -> Content:
    """What runs only if the comparison is true."""
    positive = not (
        isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.NotEq, ast.NotIn))
    )
    body = guarded(module, node) if positive else None
    if not positive:
        return Content("", _custom_after(module, node))
    return content(module, body) if body is not None else Content("", "")


def _custom_after(module: Module, node: ast.expr) -> str:
    """What an early `return` for other devices keeps for CUDA: kernels of the program's own."""
    parent = module.parent(node)
    function = module.function_of(node)
    if not (isinstance(parent, ast.If) and isinstance(parent.body[-1], (ast.Return, ast.Raise))):
        return ""
    name = getattr(function, "name", "")
    return name if _FUSED.search(name) else ""
