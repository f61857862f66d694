"""What calls do with their arguments: messages, paths, functions of the file's own."""

from __future__ import annotations

import ast

from accel.convert.flow.evidence import instance_class, method_of
from accel.convert.module import Module
from accel.convert.scopes import Binding

_LOGGING = frozenset(
    {"debug", "info", "warning", "warn", "error", "critical", "exception", "log", "write",
     "fail", "skip", "skipif", "skipTest", "set_description", "set_postfix_str", "echo", "secho"}
)  # fmt: skip
_PATHS = ("os.path.", "pathlib.", "os.makedirs", "os.mkdir", "glob.", "shutil.", "urllib.")
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def is_message(module: Module, call: ast.Call, called: str) -> bool:
    """Whether a call prints, logs, or makes an exception."""
    if called.startswith(("logging.", "warnings.")) or called in ("builtins.print", "sys.exit"):
        return True
    leaf = called.rpartition(".")[2]
    if leaf.endswith(("Error", "Exception", "Warning", "SkipTest")):
        return True
    func = call.func
    if isinstance(func, ast.Attribute) and func.attr in _LOGGING:
        return True
    return isinstance(module.parent(call), ast.Raise)


def gives_default(call: ast.Call, called: str, where: int | str) -> bool:
    """Whether an argument is what a call gives where there is nothing: `d.get("x", "cuda")`."""
    if called in ("os.getenv", "os.environ.get"):
        return where in (1, "default")
    if called == "builtins.getattr":
        return where == 2
    if called in ("dataclasses.field", "pydantic.Field", "attr.ib", "attrs.field"):
        return where == "default"
    is_lookup = isinstance(call.func, ast.Attribute) and call.func.attr in (
        "get",
        "pop",
        "setdefault",
    )
    return is_lookup and where == 1


def is_path(call: ast.Call, called: str) -> bool:
    """Whether a call takes paths or addresses."""
    return called == "builtins.open" or called.startswith(_PATHS)


def parameter_of(module: Module, call: ast.Call, where: int | str) -> Binding | None:
    """The parameter of the file's own function that an argument becomes."""
    found = definition_of(module, call.func)
    if found is None or any(isinstance(argument, ast.Starred) for argument in call.args):
        return None
    function, skipped = found
    return parameter_at(module, function, where if isinstance(where, str) else where + skipped)


def parameter_at(
    module: Module, function: ast.FunctionDef | ast.AsyncFunctionDef, where: int | str
) -> Binding | None:
    """The binding of a parameter by place or name."""
    arguments = function.args
    placed = [*arguments.posonlyargs, *arguments.args]
    if isinstance(where, int):
        names = [placed[where].arg] if where < len(placed) else []
    else:
        named = {argument.arg for argument in (*arguments.args, *arguments.kwonlyargs)}
        names = [where] if where in named else []
    return module.walk.scopes[function].names.get(names[0]) if names else None


def definition_of(
    module: Module, func: ast.expr
) -> tuple[ast.FunctionDef | ast.AsyncFunctionDef, int] | None:
    """The function of this file that a call reaches, and how many parameters are bound before."""
    if isinstance(func, ast.Name):
        binding = module.binding(func)
        if binding is None or len(binding.definitions) != 1 or binding.values or binding.imports:
            return None
        found = binding.definitions[0]
        if isinstance(found, ast.ClassDef):
            init = method_of(found, "__init__")
            return (init, 1) if init else None
        return (found, 0) if isinstance(found, _FUNCTIONS) else None
    if isinstance(func, ast.Attribute):
        owner = instance_class(module, func.value)
        method = method_of(owner, func.attr) if owner else None
        if method is None:
            return None
        static = any(
            isinstance(d, ast.Name) and d.id == "staticmethod" for d in method.decorator_list
        )
        return method, 0 if static else 1
    return None


def spawned(module: Module, call: ast.Call, index: int) -> Binding | None:
    """The parameter that the element `index` of `args=(...)` becomes: processes and threads."""
    target = next((word.value for word in call.keywords if word.arg in ("target", "fn")), None)
    name = module.qualified(call.func) or ""
    is_spawn = name.endswith("spawn")
    if target is None and is_spawn and call.args:
        target = call.args[0]
    if target is None and name.startswith("torch.distributed.rpc.") and len(call.args) > 1:
        target = call.args[1]
    found = definition_of(module, target) if target is not None else None
    if found is None:
        return None
    # `spawn` gives the process's number first.
    return parameter_at(module, found[0], index + found[1] + (1 if is_spawn else 0))


def defaulted(arguments: ast.arguments, default: ast.AST) -> ast.arg | None:
    """The parameter that a default belongs to."""
    placed = [*arguments.posonlyargs, *arguments.args]
    if default in arguments.defaults:
        index = arguments.defaults.index(default)
        return placed[len(placed) - len(arguments.defaults) + index]
    if default in arguments.kw_defaults:
        return arguments.kwonlyargs[arguments.kw_defaults.index(default)]
    return None
