"""ACC066 to ACC069: environment variables of CUDA's, read and written."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from accel.convert.finding import Finding, Span
from accel.convert.flow import sinks
from accel.convert.module import Module
from accel.convert.rules.environment_rules import (
    ADVICE,
    INERT,
    PLATFORM,
    TWINS,
    VARIABLE_PREFIXES,
    VARIABLES,
)
from accel.convert.rules.environment_rules import RULES as RULES

_ENVIRON = ("os.environ", "os.environb")
_SET = "sets the variable for every vendor"
_READ = "reads the variable by whichever vendor's name it was set"
_BY_HAND = (
    "Where it is set for another process, set each vendor's name of it beside it, as "
    "CUDA_VISIBLE_DEVICES and ASCEND_RT_VISIBLE_DEVICES; in this process use accel.setenv and "
    "accel.getenv."
)


def find(module: Module) -> Iterator[Finding]:
    """Every use of an environment variable that is one of the platform's."""
    taken: set[ast.AST] = set()
    for item in module.all(ast.Subscript):
        if _is_environ(module, item.value):
            yield from _subscript(module, item, taken)
    for call in module.all(ast.Call):
        yield from _call(module, call, taken)
    for compare in module.all(ast.Compare):
        if len(compare.ops) == 1 and _is_environ(module, compare.comparators[0]):
            yield from _membership(module, compare, taken)
    for word in module.all(ast.keyword):
        if word.arg and _is_variable(word.arg):
            start = module.span(word).start
            yield _for_a_process(module, Span(start, start + len(word.arg)), word.arg)
    for node in module.all(ast.Constant):
        if node not in taken and isinstance(node.value, str) and _is_variable(node.value):
            yield from _elsewhere(module, node)


def _is_variable(text: str) -> bool:
    """Whether a string, wherever it stands, is the name of a variable that is known."""
    if text in VARIABLES:
        return True
    return text.startswith(VARIABLE_PREFIXES) and PLATFORM.fullmatch(text) is not None


def _is_environ(module: Module, node: ast.expr) -> bool:
    return module.qualified(node) in _ENVIRON


def _variable(module: Module, key: ast.expr, taken: set[ast.AST]) -> str | None:
    """The variable that a key names, if it has one of the platform's words; then it is judged."""
    name = module.constant(key)
    if not isinstance(name, str) or not module.speaks(name):
        return None
    taken.add(key)
    return name


# --- os.environ["X"] -----------------------------------------------------------------------------


def _subscript(module: Module, node: ast.Subscript, taken: set[ast.AST]) -> Iterator[Finding]:
    name = _variable(module, node.slice, taken)
    if name is None:
        return
    parent = module.parent(node)
    if name not in TWINS[module.options.source]:
        yield _foreign(module, node, name)
    elif isinstance(node.ctx, ast.Store):
        plain = isinstance(parent, ast.Assign) and len(parent.targets) == 1
        value = _value(module, parent) if isinstance(parent, ast.Assign) and plain else None
        yield from _write(module, parent if value else node, node.slice, value)
    elif isinstance(node.ctx, ast.Del):
        alone = isinstance(parent, ast.Delete) and len(parent.targets) == 1
        yield from _write(module, parent if alone else node, node.slice, "None" if alone else None)
    elif _catches_missing(module, node):
        message = f"{name} is read where a missing one is caught as KeyError, which getenv is not"
        yield module.flag(node, "ACC066", message, "Ask `accel.getenv(...) is None` instead.")
    else:
        yield from _convert(module, node, _READ, "getenv", node.slice)


def _value(module: Module, node: ast.Assign) -> ast.expr | Span:
    """What is assigned; with its parentheses where comments are within them."""
    whole, target, value = (module.span(n) for n in (node, node.targets[0], node.value))
    text = module.source.utf8
    if b"#" not in text[target.end : value.start] + text[value.end : whole.end]:
        return node.value
    start = text.index(b"=", target.end) + 1
    while text[start : start + 1] in (b" ", b"\t"):
        start += 1
    return Span(start, whole.end)


def _write(
    module: Module, node: ast.AST, key: ast.expr, value: ast.expr | Span | str | None
) -> Iterator[Finding]:
    if value is None:
        message = "the variable is written together with something else"
        yield module.flag(
            node, "ACC066", message, "Write accel.setenv(name, value) on its own line."
        )
    else:
        yield from _convert(module, node, _SET, "setenv", key, ", ", value)


def _convert(
    module: Module, node: ast.AST, message: str, name: str, *parts: str | Span | ast.AST
) -> Iterator[Finding]:
    function = module.target.function(name)
    if function is None:
        yield module.flag(
            node,
            "ACC066",
            f"the target {module.target.name} has no call for this",
            _BY_HAND,
            subject="target",
        )
    else:
        yield module.convert(node, "ACC066", message, f"{function}(", *parts, ")")


def _catches_missing(module: Module, node: ast.AST) -> bool:
    """Whether a `try` around a node handles KeyError."""
    child = node
    for outer in module.ancestors(node):
        if isinstance(outer, ast.Try) and child in outer.body:
            for handler in outer.handlers:
                names = module.text(handler.type) if handler.type else "KeyError"
                if any(word in names for word in ("KeyError", "LookupError", "Exception")):
                    return True
        child = outer
    return False


# --- os.getenv("X"), os.environ.get("X") ---------------------------------------------------------


def _call(module: Module, node: ast.Call, taken: set[ast.AST]) -> Iterator[Finding]:
    called = module.qualified(node.func) or ""
    method = called.rpartition(".")[2]
    if (called != "os.getenv" and not called.startswith(_ENVIRON)) or not node.args:
        return
    name = _variable(module, node.args[0], taken)
    if name is None:
        return
    if name not in TWINS[module.options.source]:
        yield _foreign(module, node.args[0], name)
        return
    key, rest = node.args[0], node.args[1:]
    statement = isinstance(module.parent(node), ast.Expr)
    plain = {word.arg for word in node.keywords} <= {"default"}
    if method in ("getenv", "get") and plain:
        function = module.target.function("getenv")
        if function is None:
            yield from _convert(module, node, _READ, "getenv")
        else:
            yield module.convert(node.func, "ACC066", _READ, function)
            yield module.keep(key, "ACC066", "the name of the variable, which getenv knows")
    elif method == "setdefault" and statement and len(rest) == 1 and not node.keywords:
        yield from _convert(module, node, _SET, "setenv", key, ", ", rest[0], ", overwrite=False")
    elif method == "pop" and statement and len(rest) == 1:
        yield from _convert(module, node, _SET, "setenv", key, ", None")
    else:
        message = f"{name} is used through {called}, which accel.setenv and getenv cannot replace"
        yield module.flag(node, "ACC066", message, _BY_HAND)


def _membership(module: Module, node: ast.Compare, taken: set[ast.AST]) -> Iterator[Finding]:
    name = _variable(module, node.left, taken)
    if name is None or not isinstance(node.ops[0], (ast.In, ast.NotIn)):
        return
    if name not in TWINS[module.options.source]:
        yield _foreign(module, node.left, name)
        return
    function = module.target.function("getenv")
    if function is None:
        yield from _convert(module, node, _READ, "getenv")
        return
    asked = " is not None" if isinstance(node.ops[0], ast.In) else " is None"
    parts: list[str | ast.AST] = [f"{function}(", node.left, f"){asked}"]
    if isinstance(module.parent(node), (ast.Compare, ast.BinOp)):
        parts = ["(", *parts, ")"]
    yield module.convert(node, "ACC066", _READ, *parts)


# --- other variables, other places ---------------------------------------------------------------


def _foreign(module: Module, node: ast.AST, name: str) -> Finding:
    """A variable that has no twin of another vendor's in accel."""
    if not PLATFORM.fullmatch(name):
        return module.keep(
            node, "ACC069", f"{name} is an environment variable of this program's own"
        )
    if name in INERT:
        return module.keep(node, "ACC069", f"{name} is read by CUDA alone: other devices ignore it")
    advice = next((text for prefix, text in ADVICE if name.startswith(prefix)), _BY_HAND)
    message = f"{name} is read by NVIDIA's libraries alone"
    if module.options.source != "cuda":
        message = f"{name} is read by one vendor's libraries alone"
    return module.flag(node, "ACC067", message, advice, subject=name)


def _elsewhere(module: Module, node: ast.Constant) -> Iterator[Finding]:
    name = str(node.value)
    kinds = {sink.kind for sink in sinks(module, node)}
    if kinds <= {"message", "help", "discarded", "text"}:
        return  # words for people
    if name in TWINS[module.options.source] and _is_read_by_name(module, node):
        yield module.keep(node, "ACC066", "the name of a variable, which setenv and getenv know")
        return
    yield _for_a_process(module, node, name)


def _for_a_process(module: Module, node: ast.AST | Span, name: str) -> Finding:
    return module.flag(
        node,
        "ACC068",
        f"{name} is set or read for another process, or in a way that is no plain access",
        _BY_HAND,
        subject=name,
    )


def _is_read_by_name(module: Module, node: ast.Constant) -> bool:
    """Whether the string is given to a variable that only plain accesses use."""
    parent = module.parent(node)
    if not isinstance(parent, ast.Assign) or not isinstance(parent.targets[0], ast.Name):
        return _is_argument_of_accel(module, node)
    binding = module.scope(parent).find(parent.targets[0].id)
    if binding is None or len(binding.values) != 1 or not binding.uses:
        return False
    return all(_is_access(module, use) for use in binding.uses)


def _is_access(module: Module, use: ast.AST) -> bool:
    outer = module.parent(use)
    if isinstance(outer, ast.Subscript):
        return _is_environ(module, outer.value)
    if isinstance(outer, ast.Call) and use in outer.args:
        called = module.qualified(outer.func) or ""
        return called == "os.getenv" or called.startswith((*_ENVIRON, "accel."))
    return isinstance(outer, ast.Compare) and _is_environ(module, outer.comparators[0])


def _is_argument_of_accel(module: Module, node: ast.Constant) -> bool:
    """Whether the string already is an argument of accel's own functions: converted before."""
    call = module.parent(node)
    if not isinstance(call, ast.Call):
        return False
    return (module.qualified(call.func) or "") in ("accel.setenv", "accel.getenv")
