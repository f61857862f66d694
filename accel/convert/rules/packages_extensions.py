"""CUDA code that a program builds or loads: what uses it, and what could stand in for it."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator

from accel.convert.finding import Finding
from accel.convert.module import Module
from accel.convert.rules.packages_imports import is_reference
from accel.convert.rules.packages_plain import without
from accel.convert.sweep.native import describe
from accel.convert.wording import listed

_EXTENSION = "torch.utils.cpp_extension"
_LOADERS = {f"{_EXTENSION}.load", f"{_EXTENSION}.load_inline"}
_BUILDERS = {f"{_EXTENSION}.CUDAExtension"}
# Arguments that only a build for CUDA has, under whatever name the loader goes.
_CUDA_ARGUMENTS = frozenset({"extra_cuda_cflags", "cuda_sources", "with_cuda"})
_LIBRARIES = {
    "ctypes.CDLL",
    "ctypes.PyDLL",
    "ctypes.WinDLL",
    "ctypes.cdll.LoadLibrary",
    "ctypes.windll.LoadLibrary",
    "ctypes.util.find_library",
    "torch.ops.load_library",
    "torch.classes.load_library",
}
_SOURCE = re.compile(r"__global__\s+|__device__\s+\w|#\s*include\s*<cuda")
_PLAIN = re.compile(r"(?:^|_)(?:ref|reference|naive|slow|fallback|native|eager|pytorch)(?:_|$)")
SHOWN = 6  # names that a message lists
_WAYS = (
    "On Ascend call a plain torch version of it, or write it with torch operators, in Triton, or "
    "in Ascend C (torch_npu.utils.cpp_extension.NpuExtension builds C++ for it)."
)


def find(module: Module) -> Iterator[Finding]:
    """Builds, libraries, and CUDA C++ in strings."""
    built: dict[ast.AST, Finding] = {}  # the strings that a build takes, with what is said of it
    for call in module.all(ast.Call):
        name = module.qualified(call.func) or ""
        if _builds(module, call, name):
            finding = _build(module, call, name)
            built.update(dict.fromkeys(_constants(module, call), finding))
            yield finding
        elif name in _LIBRARIES:
            yield from _library(module, call, name)
    for constant in module.all(ast.Constant):
        if isinstance(constant.value, str) and _SOURCE.search(constant.value):
            whole = built.get(constant)
            if whole is None or not whole.span.contains(module.span(constant)):
                yield from _source(module, constant, whole)
    yield from _imports(module)
    for node in module.all(ast.Attribute, ast.Name):
        if module.qualified(node) == f"{_EXTENSION}.CUDA_HOME" and is_reference(module, node):
            yield module.flag(
                node, "ACC102", "asks where the CUDA toolkit is", "It is None elsewhere; " + _WAYS,
                subject="CUDA_HOME",
            )  # fmt: skip


def _builds(module: Module, call: ast.Call, name: str) -> bool:
    if name in _LOADERS | _BUILDERS:
        return True
    # `extension = CppExtension`, and CUDAExtension where there is CUDA.
    binding = module.binding(call.func) if isinstance(call.func, ast.Name) else None
    if binding and any(module.qualified(value) in _BUILDERS for value in binding.values):
        return True
    # A wrapper of the project's own around them. Anything may have an option `with_cuda`.
    words = {word.arg for word in call.keywords if _is_cuda_argument(word)}
    if words == {"with_cuda"} and not any(word.arg == "sources" for word in call.keywords):
        return False
    return bool(words) and not (
        name.startswith("builtins.") and hasattr(builtins, name.rpartition(".")[2])
    )


def _is_cuda_argument(word: ast.keyword) -> bool:
    off = isinstance(word.value, ast.Constant) and not word.value.value
    return word.arg in _CUDA_ARGUMENTS and not off


def _build(module: Module, call: ast.Call, name: str) -> Finding:
    if name in _LOADERS and not _has_cuda(module, call):
        return module.flag(
            call, "ACC102", f"{name} builds C++ when the program runs",
            "It is listed as unsupported on Ascend: build it ahead, with setup.py.",
            effort="review", subject=_name_of(module, call),
        )  # fmt: skip
    users = _users(module, call)
    used = f"; used by {listed(users, SHOWN)}" if users else ""
    plain = plain_versions(module)
    advice = f"A plain version seems to be {listed(plain, SHOWN)}. " if plain else ""
    said = without(module, call, _uses(module, call))
    return module.flag(
        call, "ACC102", f"CUDA code is built here {_as(module, call)}{used}"
        + (f"; {said}" if said else ""),
        advice + _WAYS, effort="rewrite", blocker=not said, subject=_name_of(module, call),
    )  # fmt: skip


def _has_cuda(module: Module, call: ast.Call) -> bool:
    """Whether a loader is given CUDA sources; what cannot be told counts."""
    if any(map(_is_cuda_argument, call.keywords)):
        return True
    given = [*call.args[1:2], *(w.value for w in call.keywords if w.arg in ("sources", None))]
    if module.qualified(call.func) == f"{_EXTENSION}.load_inline":
        return any(word.arg is None for word in call.keywords) or len(call.args) > 2
    texts = [_strings(module, one) for one in given]
    return not texts or any(not one or any(".cu" in text for text in one) for one in texts)


def _name_of(module: Module, call: ast.Call) -> str:
    """The extension's name, where it is a constant; else the function that builds it for others."""
    # A wrapper has a keyword of its own, such as `module_name`.
    named = (word.value for word in call.keywords if (word.arg or "").endswith("name"))
    for given in (*named, *call.args[:1]):
        value = module.constant(given)
        if isinstance(value, str):
            return value
    return name_of_function(module, call) or module.text(call.func)


def _as(module: Module, call: ast.Call) -> str:
    name = _name_of(module, call)
    is_known = name not in (module.text(call.func), name_of_function(module, call))
    return f"as {name}" if is_known else f"by {module.text(call.func)}"


def _users(module: Module, call: ast.AST) -> list[str]:
    """Functions of the file that use what the call gives."""
    names = {name_of_function(module, use) for use in _uses(module, call)}
    own = name_of_function(module, call)
    return sorted(names - {"", own}) or ([own] if own else [])


def _uses(module: Module, call: ast.AST) -> list[ast.AST]:
    """Where the file reads the name that a call's result is assigned to."""
    parent = module.parent(call)
    if not isinstance(parent, (ast.Assign, ast.AnnAssign, ast.NamedExpr)):
        return []
    found: list[ast.AST] = []
    for target in parent.targets if isinstance(parent, ast.Assign) else [parent.target]:
        if isinstance(target, ast.Name):
            binding = module.scope(target).find(target.id)
            found += binding.uses if binding else []
        elif isinstance(target, ast.Attribute):
            found += (
                node
                for node in module.all(ast.Attribute)
                if node.attr == target.attr and isinstance(node.ctx, ast.Load)
            )
    return found


def name_of_function(module: Module, node: ast.AST) -> str:
    """The function, with the classes and functions around it, that a node is in."""
    names = [
        outer.name
        for outer in module.ancestors(node)
        if isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
    ]
    return ".".join(reversed(names))


def plain_versions(module: Module) -> list[str]:
    """Functions that are called after what they replace."""
    return [
        f"{node.name} (line {node.lineno})"
        for node in module.all(ast.FunctionDef)
        if _PLAIN.search(node.name)
    ]


def _library(module: Module, call: ast.Call, name: str) -> Iterator[Finding]:
    texts = [text for argument in call.args[:1] for text in _strings(module, argument)]
    found = next((text for text in texts if module.speaks(text)), None)
    if found is not None:
        yield module.flag(
            call, "ACC104", f"{name} loads {found}, which only CUDA has",
            "Guard it by torch.version.cuda, or leave it out: torch has the like of most functions "
            "of the CUDA runtime.",
            effort="rewrite", blocker=True, subject=found,
        )  # fmt: skip


def _source(module: Module, constant: ast.Constant, build: Finding | None) -> Iterator[Finding]:
    native = describe(str(constant.value))
    if not native.kernels and "\n" not in str(constant.value):
        return
    kernels = f": {listed(native.kernels, SHOWN)}" if native.kernels else ""
    users = _users(module, constant)
    used = f"; used by {listed(users, SHOWN)}" if users else ""
    subject = build.subject if build else listed(native.kernels, SHOWN) or "CUDA C++"
    yield module.flag(
        constant, "ACC105", f"CUDA C++ in a string{kernels}{used}", _WAYS, effort="rewrite",
        blocker=build.blocker if build else True, subject=subject,
    )  # fmt: skip


def _imports(module: Module) -> Iterator[Finding]:
    for node in module.all(ast.ImportFrom):
        if node.module == _EXTENSION and module.speaks(module.text(node)):
            yield module.keep(node, "ACC102", "what it builds is flagged where it is called")


def _strings(module: Module, node: ast.expr) -> list[str]:
    """All constant texts within an expression, through names."""
    return [
        inner.value
        for inner in ast.walk(module.value_of(node))
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str)
    ]


def _constants(module: Module, call: ast.Call) -> Iterator[ast.Constant]:
    """All constants of a call's arguments, through names."""
    for argument in [*call.args, *(word.value for word in call.keywords)]:
        for node in ast.walk(argument):
            whole = module.value_of(node) if isinstance(node, ast.Name) else node
            yield from (n for n in ast.walk(whole) if isinstance(n, ast.Constant))
